"""The desk: what the collector tells others, in order, at least once, and what became of it."""
