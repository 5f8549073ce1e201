"""The agent as a whole in this process: what its tasks do with its parts."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from tocsin_agent.app import Agent
from tocsin_agent.config import AgentSettings, HostSettings, SpoolSettings
from tocsin_agent.identity import Identity
from tocsin_agent.probes import HOST_PROBES
from tocsin_agent.sidefiles import OWED
from tocsin_agent.spool import Spool
from tocsin_proto.codec import decode_frame
from tocsin_proto.units import Duration

PATIENCE_S = 10.0
NOBODY = Identity("edge-1", "127.0.0.1:9", 0, b"", b"", b"")  # discard: nobody listens
QUIET = AgentSettings(
    collector=NOBODY.collector,
    host=HostSettings(off=tuple(name for name in HOST_PROBES if name != "load")),
    spool=SpoolSettings(sync_every=Duration("100ms")),
)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - files tell nobody when they change
            await asyncio.sleep(0.01)


def test_a_gap_that_has_arrived_is_not_owed_any_more_after_the_next_sync(tmp_path: Path) -> None:
    Spool.open(tmp_path / "spool", now_ms=1_760_000_000_000, random_bytes=lambda n: b"s" * n).abandon()

    async def main() -> None:
        agent = Agent(QUIET, tmp_path / "agent.toml", tmp_path, NOBODY, {})
        owed = agent.spool.active.folder / OWED
        assert owed.exists(), "an unclean start owes a gap"
        stop = asyncio.Event()
        running = asyncio.create_task(agent.run(stop))
        await until(lambda: agent.spool.last_seq > 0)
        (entry, *_) = agent.spool.read(1, 1)
        assert decode_frame(entry.raw).gaps
        agent.spool.ack(agent.spool.last_seq)
        agent._flushed()
        await until(lambda: not owed.exists())
        stop.set()
        await running

    asyncio.run(main())
