"""The agent's own spool, link and uplink against the real listener: nothing lost, nothing twice, whatever happens between."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from tests.support.ingest_rig import PATIENCE_S, Credentials, Rig, clock_record, frame, rig

from tocsin_agent.identity import Identity
from tocsin_agent.link import Link
from tocsin_agent.spool import Spool
from tocsin_agent.uplink import Hooks, Uplink
from tocsin_agent.wishes import Facts
from tocsin_collector.ingest.server import IngestConfig, IngestServer
from tocsin_proto import records


def agent_of(one: Rig, credentials: Credentials, spool: Spool, assigned: list[records.Assignment]) -> Uplink:
    assert credentials.key_pem is not None
    assert credentials.certificate_pem is not None
    address = f"localhost:{one.port}"
    identity = Identity("edge-1", address, 0, credentials.key_pem, credentials.certificate_pem, credentials.ca_pem)
    return Uplink(
        Link(spool, Facts("0.1.0", "edge-1")),
        identity,
        address=address,
        clock=clock_record,
        uniform=lambda low, high: 0.0,
        hooks=Hooks(assigned.append, lambda request: None),
        sleep=lambda seconds: asyncio.sleep(0.01),
    )


def opened(folder: Path) -> Spool:
    return Spool.open(folder, now_ms=clock_record().wall_ms, random_bytes=os.urandom)


def fill(spool: Spool, count: int) -> None:
    for _ in range(count):
        spool.begin()
        seq, follows = spool.next_seq()
        spool.append(msgspec.structs.replace(frame(seq), follows=follows))


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - the agent's parts tell nobody when they change
            await asyncio.sleep(0.01)


async def kept(one: Rig) -> list[tuple[int, int]]:
    """(frames, distinct frames) in the journal, by spool."""
    return await one.rows(
        "SELECT count(*), count(DISTINCT body) FROM journal WHERE kind = 'frame' GROUP BY spool_id ORDER BY 1"
    )


def play(folder: Path, scene: Callable[[Rig, Uplink, Spool, list[records.Assignment]], Awaitable[None]]) -> None:
    async def scenes() -> None:
        async with rig(folder) as one:
            spool, assigned = opened(folder / "spool"), []
            uplink = agent_of(one, await one.add_agent("edge-1"), spool, assigned)
            running = asyncio.create_task(uplink.run())
            try:
                await scene(one, uplink, spool, assigned)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                spool.close()

    asyncio.run(scenes())


def test_a_backlog_arrives_whole_and_once_although_the_stream_is_ended_in_between(tmp_path: Path) -> None:
    async def scene(one: Rig, uplink: Uplink, spool: Spool, assigned: list[records.Assignment]) -> None:
        for round_ in range(1, 6):
            fill(spool, 300)
            uplink.wake()
            # In the middle of it, wherever that is.
            await until(lambda seen=(round_ - 1) * 300: spool.first_unacked > seen + 1)
            one.ingest.disconnect("edge-1", "a test")
        await until(lambda: spool.first_unacked == 1501)
        assert await kept(one) == [(1500, 1500)]
        assert uplink.link.counters.poisoned == uplink.link.counters.protocol_errors == 0

    play(tmp_path, scene)


def test_an_agent_waits_for_a_collector_that_restarts_and_goes_on(tmp_path: Path) -> None:
    async def scene(one: Rig, uplink: Uplink, spool: Spool, assigned: list[records.Assignment]) -> None:
        fill(spool, 50)
        uplink.wake()
        await until(lambda: spool.first_unacked == 51)
        await one.ingest.stop()
        fill(spool, 50)
        one.ingest = IngestServer(
            IngestConfig(listen=f"localhost:{one.port}"), one.pipeline, one.authority, clock=one.clock
        )
        assert await one.ingest.start() == one.port
        await until(lambda: spool.first_unacked == 101)
        assert await kept(one) == [(100, 100)]

    play(tmp_path, scene)


def test_both_generations_of_a_spool_arrive_after_an_unclean_start(tmp_path: Path) -> None:
    before = opened(tmp_path / "spool")
    fill(before, 40)
    before.sync()
    before.abandon()

    async def scene(one: Rig, uplink: Uplink, spool: Spool, assigned: list[records.Assignment]) -> None:
        assert spool.spool_id != before.spool_id
        fill(spool, 10)
        uplink.wake()
        await until(lambda: spool.first_unacked == 11 and len(spool.generations) == 1)
        assert await kept(one) == [(10, 10), (40, 40)]

    play(tmp_path, scene)


def test_an_assignment_reaches_the_agent_and_its_report_comes_back(tmp_path: Path) -> None:
    async def scene(one: Rig, uplink: Uplink, spool: Spool, assigned: list[records.Assignment]) -> None:
        await until(lambda: uplink.link.is_open)
        one.ingest.assign(
            "edge-1", records.Assignment("e1", (records.AssignedDevice("sw-1", "192.0.2.1", "snmp", b"{}"),))
        )
        await until(lambda: bool(assigned))
        uplink.say(records.AssignmentReport("e1"))
        fill(spool, 1)
        uplink.wake()
        await until(lambda: spool.first_unacked == 2)
        (facts,) = one.ingest.sessions()
        assert (facts.applied_etag, facts.hostname, facts.version) == ("e1", "edge-1", "0.1.0")

    play(tmp_path, scene)


def test_a_revoked_agent_stops_by_itself(tmp_path: Path) -> None:
    async def scene(one: Rig, uplink: Uplink, spool: Spool, assigned: list[records.Assignment]) -> None:
        await until(lambda: uplink.link.is_open)
        assert await one.ingest.revoke("edge-1", actor="zm")
        await until(lambda: uplink.state.startswith("revoked"))

    play(tmp_path, scene)
