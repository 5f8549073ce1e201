"""From what is on the disk to a running engine: newest usable snapshot, then the journal behind it.

Not the place where anything is told or written: replay emits nothing, it is only compared. The invariant: where replay and
committed effects differ, the committed ones win, and the difference is reported.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import structlog

from tocsin_collector.batch import digest, entry_of
from tocsin_collector.core.engine import Engine
from tocsin_collector.core.snapshot import SnapshotError
from tocsin_collector.store.base import Mark, Row, Store
from tocsin_collector.store.snapshots import Snapshots

log = structlog.get_logger(__name__)

PAGE_BYTES = 4 * 1024 * 1024
DIFFERENCES_TOLD_MAX = 10


class Recovered(NamedTuple):
    """An engine that has applied everything committed.

    offset, received_ms: of the newest entry; offset also lies behind every snapshot, so that no id is ever used twice.
    differences: entries whose replayed effects were not those that were committed.
    """

    engine: Engine
    marks: list[Mark]
    offset: int
    received_ms: int
    replayed: int
    differences: int


async def recover(
    store: Store, snapshots: Snapshots | None, *, monotonic: Callable[[], float] = time.monotonic
) -> Recovered:
    """Read snapshots and journal. What cannot be used is told of; in the end there is always an engine."""
    began = monotonic()
    truth = await store.truth()
    bounds = await store.bounds()
    highest = snapshots.highest() if snapshots else 0
    if snapshots and highest > bounds.last:
        snapshots.set_aside(bounds.last)
        log.error("the database is older than a snapshot: entries are lost", newest_entry=bounds.last, snapshot=highest)
    engine = _newest(snapshots, bounds.first, bounds.last)
    replayed = differences = 0
    if engine is None:
        engine = Engine.from_truth(truth)
        how = "committed truth"
    else:
        how = "snapshot"
        replayed, differences = await _replay(store, engine)
        if differences:
            log.error("replay differs from what is committed: starting from committed truth", entries=differences)
            engine = Engine.from_truth(truth)
    log.info(
        "engine recovered",
        source=how,
        offset=truth.offset,
        replayed=replayed,
        differences=differences,
        seconds=round(monotonic() - began, 3),
    )
    marks = await store.high_waters()
    return Recovered(engine, marks, max(truth.offset, highest), truth.at_ms, replayed, differences)


def _newest(snapshots: Snapshots | None, first: int, last: int) -> Engine | None:
    for offset, data in snapshots.newest() if snapshots else ():
        if not first - 1 <= offset <= last:
            log.warning("snapshot does not fit the journal", snapshot=offset, first=first, last=last)
            continue
        try:
            return Engine.restore(data)
        except SnapshotError as exc:
            log.warning("snapshot of another engine, not used", snapshot=offset, problem=str(exc))
    return None


async def _replay(store: Store, engine: Engine) -> tuple[int, int]:
    """Entries applied, and how many of them led to other effects than before. Stops where the journal cannot be read."""
    replayed = differences = 0
    while rows := await store.read_journal(engine.offset + 1, PAGE_BYTES):
        stored = await store.digests(rows[0].offset, rows[-1].offset)
        for row in rows:
            problem = _difference(engine, row, stored.get(row.offset, b""))
            replayed += 1
            if not problem:
                continue
            differences += 1
            if differences <= DIFFERENCES_TOLD_MAX:
                log.error("replay differs", offset=row.offset, kind=row.kind, agent=row.agent, problem=problem)
            if engine.offset != row.offset:
                return replayed, differences  # not even applied: nothing behind it can be right
    return replayed, differences


def _difference(engine: Engine, row: Row, stored: bytes) -> str:
    if row.offset != engine.offset + 1:
        return f"entries {engine.offset + 1} to {row.offset - 1} are missing"
    try:
        effects = engine.step(entry_of(row))
    except Exception as exc:
        log.exception("journal entry cannot be replayed", offset=row.offset)
        return f"{type(exc).__name__} in replay"
    return "" if (digest(effects) if effects else b"") == stored else "other effects"
