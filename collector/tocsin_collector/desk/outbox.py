"""The transactional outbox: every notice that the store holds for a channel is told, in order, at least once.

Not the writer of notices: they come into the store in the transaction of their incident. The invariant: a notice is due
until its outcome is durable, so whatever ends this process, the next one goes on where it was.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import structlog

from tocsin_collector.config import Channel
from tocsin_collector.desk import base, due
from tocsin_collector.desk.base import ChannelError, Connector, Surroundings
from tocsin_collector.desk.schedule import Pace
from tocsin_collector.desk.worker import ChannelStatus, Pipeline, Reads, Worker
from tocsin_collector.pipeline import PipelineStoppedError
from tocsin_collector.store.read import open_readonly
from tocsin_proto.settings import Problem, SettingsError

log = structlog.get_logger(__name__)

RESTART_S = 5.0


async def open_reads(path: Path) -> Reads:
    """A read-only connection with a thread of its own."""
    from tocsin_collector.store.threaded import ThreadedConnection

    connection = ThreadedConnection(partial(open_readonly, path))
    await connection
    return connection


def connectors(channels: Sequence[Channel], surroundings: Surroundings, file: Path) -> dict[str, Connector]:
    """The connector of each configured channel. SettingsError names every channel that cannot work."""
    found: dict[str, Connector] = {}
    problems = []
    for index, channel in enumerate(channels):
        try:
            found[channel.id] = base.connector(channel, surroundings)
        except ChannelError as error:
            problems.append(Problem(str(file), f"channel[{index}].{error.key}", error.problem))
    if problems:
        raise SettingsError(problems)
    return found


class Outbox:
    """One per collector. `run` is its task. luck: uniform in [0, 1)."""

    def __init__(
        self,
        pipeline: Pipeline,
        path: Path,
        connectors: Mapping[str, Connector],
        *,
        clock: Callable[[], int],
        luck: Callable[[], float],
        pace: Pace | None = None,
        connect: Callable[[Path], Awaitable[Reads]] = open_reads,
    ) -> None:
        self._pipeline = pipeline
        self._path = path
        self._clock = clock
        self._connect = connect
        self._workers = {
            channel: Worker(channel, connector, pipeline, clock=clock, luck=luck, pace=pace or Pace())
            for channel, connector in connectors.items()
        }
        pipeline.on_notice(self.wake)

    def wake(self) -> None:
        """A commit held a notice."""
        for worker in self._workers.values():
            worker.wake()

    async def run(self) -> None:
        """Until cancelled, or until the pipeline has stopped."""
        reads = await self._connect(self._path)
        try:
            await self._tell_of_others(reads)
            async with asyncio.TaskGroup() as tasks:
                for worker in self._workers.values():
                    tasks.create_task(self._keep(worker, reads), name=f"channel {worker.channel}")
        finally:
            for worker in self._workers.values():
                await worker.connector.close()
            await reads.close()

    async def retry_dead(self, id: int, actor: str) -> due.Revived:
        """Tell a notice again that was given up. RetryError says why not."""
        now_ms = self._clock()
        revived = await self._pipeline.administer(
            lambda connection: due.retry_dead(connection, id, actor=actor, now_ms=now_ms)
        )
        worker = self._workers.get(revived.channel)
        if worker is not None:
            worker.rescan(id)
        return revived

    def status(self) -> list[ChannelStatus]:
        return [worker.status() for worker in self._workers.values()]

    async def _keep(self, worker: Worker, reads: Reads) -> None:
        """A channel that breaks off takes neither the others nor the collector with it."""
        while True:
            try:
                await worker.run(reads)
            except Exception as error:
                if _is_stopped(error):
                    return
                log.error("deliveries broke off, starting again", channel=worker.channel, exc_info=error)
                await asyncio.sleep(RESTART_S)

    async def _tell_of_others(self, reads: Reads) -> None:
        known = list(self._workers)
        waiting = await reads.whole(lambda connection: due.other_channels(connection, known))
        for channel, count in waiting.items():
            log.warning("notices wait for a channel that is not configured", channel=channel, count=count)


def _is_stopped(error: Exception) -> bool:
    stopped = (PipelineStoppedError,)
    return isinstance(error, stopped) or (isinstance(error, ExceptionGroup) and error.subgroup(stopped) is not None)
