"""Benchmarks: one file each, run as `python -m bench NAME [--quick] --json`. Not tests: nothing here fails on a slow day."""
