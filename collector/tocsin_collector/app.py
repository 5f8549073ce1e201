"""The engine process: everything is built here, started in order, and ended within two seconds.

Not a place for decisions. Invariant: nothing is admitted before the configuration of the files is in force, and nothing that
was admitted is lost on the way out: listeners close first, then the pipeline drains, then the store closes.
"""

import asyncio
import contextlib
import gc
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from socket import gethostname
from typing import cast
from uuid import uuid4

import structlog

from tocsin_collector import configuration, metrics
from tocsin_collector.config import Address, CollectorConfig, Paths, parse_address
from tocsin_collector.control import ControlServer
from tocsin_collector.core.engine import Engine
from tocsin_collector.desk.base import Surroundings
from tocsin_collector.desk.outbox import Outbox, connectors
from tocsin_collector.ingest.authority import Authority
from tocsin_collector.ingest.enrolment import EnrolmentServer
from tocsin_collector.ingest.server import IngestConfig, IngestServer
from tocsin_collector.keeper import Keeper
from tocsin_collector.pipeline import Pipeline
from tocsin_collector.pipeline_status import Limits
from tocsin_collector.store.base import StoreError
from tocsin_collector.store.snapshots import Snapshots
from tocsin_collector.store.sqlite import SqliteStore
from tocsin_collector.verbs import Verbs
from tocsin_collector.vitals import Vitals
from tocsin_collector.web_process import WebProcess
from tocsin_proto.settings import SettingsError
from tocsin_proto.systemd import Notifier

log = structlog.get_logger(__name__)
GC_ALLOCATIONS = 50_000

STOP_S_MAX = 2.0


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


class Collector:
    """One engine process. `serve` is its whole life; `stop` may be called at any time in its loop."""

    def __init__(
        self,
        config: CollectorConfig,
        paths: Paths,
        environ: Mapping[str, str],
        *,
        clock: Callable[[], int] = unix_ms,
    ) -> None:
        self.ports: dict[str, int] = {}
        self._config = config
        self._paths = paths
        self._clock = clock
        self._notifier = Notifier(environ)
        self._web = WebProcess(config.web, paths, environ) if config.web.enabled else None
        self._stopping = asyncio.Event()

    async def serve(self) -> None:
        """Until `stop`. Raises StoreError, AuthorityError, SettingsError, ControlError or OSError when it cannot start."""
        self._authority = authority = Authority.load(self._paths.authority, self._clock())
        self._store = store = await self._open_store()
        try:
            snapshots = Snapshots(self._paths.snapshots)
            self._pipeline = await Pipeline.start(store, snapshots, self._clock, self._limits())
            await self._serve(authority)
        finally:
            await store.close()

    def stop(self) -> None:
        self._stopping.set()

    # ----------------------------------------------------------------------------------------------------- its life

    async def _serve(self, authority: Authority) -> None:
        self._build(authority)
        pipeline = asyncio.create_task(self._pipeline.run(), name="pipeline")
        stopping = asyncio.create_task(self._stopping.wait(), name="stop")
        living = asyncio.create_task(self._live(), name="collector")
        try:
            # Whoever ends first: the order to stop, the store in despair, or a listener that cannot listen.
            await asyncio.wait({pipeline, stopping, living}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._notifier.stopping("stopping")
            began = asyncio.get_running_loop().time()
            stopping.cancel()
            living.cancel()
            await asyncio.gather(stopping, living, return_exceptions=True)
            self._pipeline.stop()
            with contextlib.suppress(TimeoutError):
                # A disk in trouble may hold the last commit for ever: what it holds was never acknowledged.
                async with asyncio.timeout(max(0.2, STOP_S_MAX - 0.3 - (asyncio.get_running_loop().time() - began))):
                    await asyncio.wait({pipeline})
            if not pipeline.done():
                pipeline.cancel()
                log.warning("the store did not take the last commit in time; nothing of it was acknowledged")
            await asyncio.gather(pipeline, return_exceptions=True)
        for task in (pipeline, living):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise _innermost(error)

    def _build(self, authority: Authority) -> None:
        config = self._config
        self._ingest = IngestServer(
            IngestConfig(listen=config.ingest.listen, streams_max=config.ingest.agents_max),
            self._pipeline,
            authority,
            clock=self._clock,
        )
        self._keeper = Keeper(
            self._engine.config if self._engine.config.registry.version else None,
            partial(configuration.read, config, self._paths),
            self._pipeline,
            self._ingest,
        )
        self._enrolment = EnrolmentServer(
            config.enrol.listen,
            "",  # known when the ingest listener has its port
            self._pipeline,
            authority,
            clock=self._clock,
            new_uuid=lambda: str(uuid4()),
            connected=self._ingest.connected,
            held=self._keeper.held,
            on_enrolled=self._keeper.enrolled,
        )
        source = f"tocsin://{config.names[0] if config.names else gethostname()}"
        surroundings = Surroundings(self._paths.secrets, source, config.web.url, self._clock)
        self._outbox = Outbox(
            self._pipeline,
            self._paths.database,
            connectors(config.channel, surroundings, self._paths.file),
            clock=self._clock,
            luck=random.random,
        )
        self._vitals = Vitals(self._pipeline, self._ingest, self._outbox, self._web, self.ports, self._clock)
        verbs = Verbs(
            self._pipeline,
            authority,
            self._ingest,
            self._outbox,
            enrol_address=lambda: str(self._public(config.enrol.listen, "enrol")),
            clock=self._clock,
            status=self._vitals.status,
            metrics=lambda: metrics.text(self._vitals.figures),
            reload=self._keeper.reload,
            revoked=self._keeper.revoked,
            in_force=lambda: self._keeper.in_force,
        )
        self._control = ControlServer(self._paths.control, verbs.answer)

    async def _live(self) -> None:
        """Start everything in order, run until cancelled; then everything ends at once, each in its own time."""
        ends: list[Callable[[], Awaitable[None]]] = []
        try:
            # The agents come first: the registry is composed of them.
            await self._ingest.refresh()
            await self._keeper.reload()
            self.ports["ingest"] = await self._ingest.start()
            ends.append(self._ingest.stop)
            self._enrolment.collector = str(self._public(self._config.ingest.listen, "ingest"))
            self.ports["enrol"] = await self._enrolment.start()
            ends.append(self._enrolment.stop)
            await self._control.start()
            ends.append(self._control.stop)
            if self._web is not None:
                ends.append(self._web.end)
            async with asyncio.TaskGroup() as tasks:
                await self._reside(tasks)
        finally:
            for failed in await asyncio.gather(*(end() for end in ends), return_exceptions=True):
                if isinstance(failed, Exception):
                    log.error("something did not end as it should", error=repr(failed))

    async def _reside(self, tasks: asyncio.TaskGroup) -> None:
        """Start what lives as tasks, then say that we are ready."""
        tasks.create_task(self._outbox.run(), name="outbox")
        tasks.create_task(self._keep_watchdog(), name="watchdog")
        if self._web is not None:
            self._web.on_listening = self._write_ports
            tasks.create_task(self._web.run(), name="web")
            # Not for ever: when it cannot start, monitoring goes on without pages and the supervisor keeps trying.
            await self._web.tried.wait()
        self._write_ports()
        self._on_hangup(tasks)
        self._notifier.ready(f"{len(self._ingest.agents())} agents enrolled")
        # What is there now stays: the garbage collector need not look at it again, nor come after every few hundred frames.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS, 20, 20)
        log.info("collector ready", **self.ports, agents=len(self._ingest.agents()))

    async def _keep_watchdog(self) -> None:
        """Fed from the loop that does the work: when it hangs, systemd starts us again."""
        while True:
            self._notifier.ping()
            await asyncio.sleep(self._notifier.watchdog_s or 3600)

    def _on_hangup(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: tasks.create_task(self._reload(), name="reload"))

    async def _reload(self) -> None:
        self._notifier.reloading()
        try:
            await self._keeper.reload()
        except SettingsError as error:
            log.error(
                "configuration not taken, the old one stays in force", problems=[str(p) for p in error.problems[:20]]
            )
        except Exception as error:
            # Whatever it is: a file that someone has just edited must not end what watches the plant.
            log.error("configuration not taken, the old one stays in force", exc_info=error)
        self._notifier.ready()

    # ----------------------------------------------------------------------------------------------------- its parts

    async def _open_store(self) -> SqliteStore:
        self._paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority = self._paths.state / "ca"
        if authority.exists() and not self._paths.database.exists() and not self._config.store.start_afresh:
            raise StoreError(
                f"{self._paths.database}: is missing, although {authority} is there: a disk that is not mounted? "
                "Bring it back, or begin an empty record with store.start_afresh = true in collector.toml"
            )
        return await SqliteStore.open(
            self._paths.database,
            channels=tuple(channel.id for channel in self._config.channel),
            may_start_afresh=self._config.store.start_afresh,
            quarantine_with=(self._paths.snapshots,),
            incidents_keep_ms=int(self._config.store.incidents_keep),
        )

    def _limits(self) -> Limits:
        store = self._config.store
        return Limits(journal_keep_ms=int(store.journal_keep), journal_bytes_max=int(store.journal_max))

    @property
    def _engine(self) -> Engine:
        return cast(Engine, self._pipeline.engine)

    def _public(self, listen: str, name: str) -> Address:
        """How agents reach a listener: the first public name, with the port that it really has."""
        names = self._config.names or self._authority.server.names
        return Address(names[0], self.ports.get(name, parse_address(listen).port))

    def _write_ports(self) -> None:
        """For tools and tests: where port 0 led to. Whole or not at all."""
        if self._web is not None and self._web.port:
            self.ports["web"] = self._web.port
        partial_file = self._paths.ports.with_suffix(".new")
        partial_file.write_text(json.dumps(self.ports) + "\n")
        partial_file.replace(self._paths.ports)


def _innermost(error: BaseException) -> BaseException:
    """The one thing that went wrong; a TaskGroup wraps it in groups."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def run(config: CollectorConfig, paths: Paths, environ: Mapping[str, str]) -> None:
    """`tocsin-collector run`: serve until SIGTERM or SIGINT."""
    collector = Collector(config, paths, environ)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, collector.stop)
    await collector.serve()
