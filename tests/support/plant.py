"""A plant of one host for tests of store and pipeline: its configuration, its frames, its records."""

from array import array

from tocsin_collector.core.model import (
    Config,
    Device,
    Impact,
    Incident,
    IncidentState,
    Level,
    Registry,
    Rule,
    Severity,
    Site,
)
from tocsin_collector.store.base import Outcome, Row, Transaction
from tocsin_proto import codec, records

HOST = "edge-1"
SPOOL = bytes(range(16))
START_MS = 1_750_000_000_000
SERIES = tuple(
    records.Series("", "disk.used_ratio", "1", records.SeriesKind.GAUGE, (("mount", mount),), 10_000)
    for mount in ("/", "/var")
)
LAYOUT = records.Layout(codec.layout_id(SERIES), SERIES)
FULL = Rule(
    "disk-full",
    "disk.used_ratio",
    (Level(Severity.MAJOR, above=0.9),),
    says="{mount} is full",
    impact=Impact.DEGRADED,
)
CONFIG = Config(Registry(1, (Site("s1"),), (Device(HOST, "s1", is_agent=True),)), (FULL,))


def frame(seq: int, *values: float, follows: int = -1, at_ms: int = 0) -> records.Frame:
    """Frame `seq`, made at `at_ms` (default: one second after the one before), with a value for "/" and "/var"."""
    at_ms = at_ms or START_MS + seq * 1000
    values = values or (0.5, 0.5)
    return records.Frame(
        seq,
        seq - 1 if follows < 0 else follows,
        records.Clock(at_ms, at_ms - START_MS, 7),
        layouts=(LAYOUT,) if seq == 1 else (),
        sections=(records.Section(LAYOUT.id, at_ms, array("d", values).tobytes()),),
    )


def message(frame: records.Frame) -> bytes:
    return codec.encode_agent(frame)


def incident(
    id: str, key: str = "disk-full/edge-1", state: IncidentState = IncidentState.OPEN, **changes: object
) -> Incident:
    facts: dict[str, object] = {
        "rule": "disk-full",
        "device": HOST,
        "severity": Severity.MAJOR,
        "opened_ms": START_MS,
        "detected_ms": START_MS,
        "last_ms": START_MS,
        "site": "s1",
    }
    return Incident(id=id, key=key, state=state, **{**facts, **changes})  # type: ignore[arg-type]


def entry(offset: int, *effects: object, received_ms: int = 0, body: bytes = b"x") -> Transaction:
    """A transaction of one journal entry with these effects."""
    at_ms = received_ms or START_MS + offset
    outcomes = [Outcome(offset, at_ms, effects, bytes(8))] if effects else []  # type: ignore[arg-type]
    return Transaction(rows=[Row(offset, at_ms, "tick", "", b"", body)], outcomes=outcomes, at_ms=at_ms)
