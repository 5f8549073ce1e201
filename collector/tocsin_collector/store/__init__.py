"""What the collector keeps: one SQLite database, one writer, snapshot files beside it."""
