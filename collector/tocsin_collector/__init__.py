"""The collector: one engine process that decides, one web process that shows."""
