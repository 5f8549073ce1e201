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
from tocsin_collector.store import told
from tocsin_collector.store.read import open_readonly
from tocsin_proto.settings import Problem, SettingsError

log = structlog.get_logger(__name__)

RESTART_S = 5.0
OTHERS_EVERY_S = 3600.0
OTHERS_KEPT_MS = (
    86_400_000  # a name that was mistyped, a file that was restored: then the notices find their channel again
)
OTHERS_ROWS_MAX = 500  # given up in one transaction


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
        self._started_ms = clock()
        self._others: dict[str, int] = {}  # channels that are not configured -> how many notices wait for each
        pipeline.on_notice(self.wake)

    def wake(self) -> None:
        """A commit held a notice."""
        for worker in self._workers.values():
            worker.wake()

    async def run(self) -> None:
        """Until cancelled, or until the pipeline has stopped."""
        reads = await self._connect(self._path)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._look_after(reads), name="channels that came and went")
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
        """The configured channels, and those that are not but for which notices wait."""
        gone = [
            ChannelStatus(channel, waiting, 0, 0, 0, 0, 0, 0, due.NOT_CONFIGURED)
            for channel, waiting in sorted(self._others.items())
        ]
        return [worker.status() for worker in self._workers.values()] + gone

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

    async def _look_after(self, reads: Reads) -> None:
        """Channels that are new hear of what is open, those that are gone are waited for no longer than a day."""
        is_caught_up = False
        while True:
            try:
                if not is_caught_up:
                    await self._catch_up()
                    is_caught_up = True
                await self._count_others(reads)
                await self._abandon_others(reads)
            except Exception as error:
                if _is_stopped(error):
                    return
                log.error("channels that came and went could not be looked after", exc_info=error)
            await asyncio.sleep(OTHERS_EVERY_S if is_caught_up else RESTART_S)

    async def _catch_up(self) -> None:
        channels, total, count = list(self._workers), 0, told.CATCH_UP_ROWS_MAX
        while channels and count == told.CATCH_UP_ROWS_MAX:
            now_ms = self._clock()
            count = await self._pipeline.administer(partial(told.catch_up, channels=channels, at_ms=now_ms))
            total += count
        if total:
            log.info("channels are told what they have missed while they were not configured", notices=total)
            self.wake()

    async def _count_others(self, reads: Reads) -> None:
        known, before = list(self._workers), self._others
        self._others = await reads.whole(lambda connection: due.other_channels(connection, known))
        for channel, count in self._others.items():
            if channel not in before:
                log.warning("notices wait for a channel that is not configured", channel=channel, count=count)

    async def _abandon_others(self, reads: Reads) -> None:
        # By our own time, too: a channel that was taken out just now may have old notices.
        now_ms, known = self._clock(), list(self._workers)
        while self._others and now_ms - self._started_ms >= OTHERS_KEPT_MS:
            count = await self._pipeline.administer(
                lambda connection: due.abandon_others(
                    connection, known, before_ms=now_ms - OTHERS_KEPT_MS, now_ms=now_ms, limit=OTHERS_ROWS_MAX
                )
            )
            if count:
                log.error("notices given up, their channel is not configured", count=count)
                await self._count_others(reads)
            if count < OTHERS_ROWS_MAX:
                break


def _is_stopped(error: Exception) -> bool:
    stopped = (PipelineStoppedError,)
    return isinstance(error, stopped) or (isinstance(error, ExceptionGroup) and error.subgroup(stopped) is not None)
