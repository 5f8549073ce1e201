"""What bounds the pipeline, and what it says of itself. Records only."""

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """queue_*: callers wait beyond these. journal_*: entries older, or beyond so many bytes, are trimmed."""

    queue_items_max: int = 8_192
    queue_bytes_max: int = 32 * 1024 * 1024
    journal_keep_ms: int = 48 * 3_600_000
    journal_bytes_max: int = 8 * 1024**3


class Status(msgspec.Struct, frozen=True):
    """Figures of the pipeline for status and metrics; counts since the start."""

    queue_items: int
    queue_bytes: int
    offset: int
    entries: int
    commits: int
    commit_ms_last: float
    commit_ms_max: float
    trouble: str
    replayed: int
    replay_differences: int
    engine_faults: int
    snapshot_offset: int
