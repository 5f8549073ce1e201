"""From the transaction that holds a notice to a receiver that verifies it: real threads, real disk, real sockets."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.desk_rig import notice
from tests.support.receiver import CUT, SECRET, Answer, Receiver

from tocsin_collector.config import Channel
from tocsin_collector.desk.base import Surroundings
from tocsin_collector.desk.outbox import Outbox, connectors
from tocsin_collector.desk.schedule import Pace
from tocsin_collector.pipeline import Pipeline
from tocsin_collector.store import effects
from tocsin_collector.store.base import Outcome, Statements
from tocsin_collector.store.sqlite import SqliteStore

QUICK = Pace(retry_ms=20, retry_ms_min=5, retry_ms_max=50, pause_ms=20, pause_ms_max=50)
INCIDENTS = 150


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


async def deliver(folder: Path, receiver: Receiver) -> None:
    """150 incidents, opened and resolved, each pair in one transaction; returns when the receiver has them all."""
    store = await SqliteStore.open(folder / "tocsin.db", channels=("desk",))
    pipeline = await Pipeline.start(store, None, unix_ms)
    channels = [Channel(id="desk", url=receiver.url, secret_file="desk")]
    surroundings = Surroundings(folder, "//collector.example/tocsin", "", unix_ms)
    found = connectors(channels, surroundings, folder / "collector.toml")
    outbox = Outbox(pipeline, store.path, found, clock=unix_ms, luck=lambda: 0.5, pace=QUICK)

    async def write(connection: Statements) -> None:
        told = [
            notice(f"I-{n}", ordinal, kind)
            for n in range(INCIDENTS)
            for ordinal, kind in enumerate(["opened", "resolved"])
        ]
        await effects.write_outcomes(connection, [Outcome(1 << 40, unix_ms(), told, b"")], ("desk",))

    running = asyncio.create_task(pipeline.run())
    delivering = asyncio.create_task(outbox.run())
    await pipeline.administer(write)
    outbox.wake()
    await asyncio.to_thread(receiver.wait_for, lambda r: len(r.taken()) == 2 * INCIDENTS, 20.0)
    delivering.cancel()
    await asyncio.gather(delivering, return_exceptions=True)
    pipeline.stop()
    await running
    await store.close()


def test_every_incident_arrives_in_order_through_a_receiver_that_fails(tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "desk").write_bytes(SECRET)
    receiver.plan = deque([Answer(503), CUT, Answer(), Answer(429, {"Retry-After": "0"}), CUT, Answer(500)] * 10)

    asyncio.run(deliver(tmp_path, receiver))

    assert receiver.refused == []
    assert {call.is_taken for call in receiver.calls} == {True, False}
    kinds: dict[str, list[str]] = {}
    for call in receiver.taken():
        kinds.setdefault(call.event["subject"], []).append(call.kind)
    assert kinds == {f"I-{n}": ["opened", "resolved"] for n in range(INCIDENTS)}
