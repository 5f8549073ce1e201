"""`python -m bench NAME [--quick] [--json]`: run one benchmark, or `all` of them one after the other.

Talk goes to stderr. With --json the last line of stdout is one JSON object; without it the figures are printed one a line.
"""

import argparse
import json
import sys
from importlib import import_module
from typing import Any

BENCHMARKS = {
    "e2e": "bench.e2e",
    "agent": "bench.agent",
    "demo_start": "bench.demo_start",
    "core": "bench.core",
    "floor": "bench.floor",
}


def run(name: str, *, quick: bool) -> dict[str, Any]:
    """The figures of one benchmark."""
    # By name: a benchmark of the agent must not carry NumPy in its own process.
    figures: dict[str, Any] = import_module(BENCHMARKS[name]).run(quick=quick)
    return figures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Tocsin's benchmarks")
    parser.add_argument("name", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--quick", action="store_true", help="end within 50 s; figures are noisier")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    given = parser.parse_args(arguments)
    if given.name == "all":
        figures: dict[str, Any] = {name: run(name, quick=given.quick) for name in BENCHMARKS}
    else:
        figures = run(given.name, quick=given.quick)
    if given.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
