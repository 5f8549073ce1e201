"""The composition root of the agent: builds its parts, starts its tasks by name, and ends them in order.

No behaviour of its own lives here. Invariant: however the agent ends, what was measured is in the spool and the spool is
closed before the process is; that takes at most about STOP_S, whatever hangs.
"""

import asyncio
import os
import random
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from tocsin_agent import config, status
from tocsin_agent.clocks import Clocks, boot
from tocsin_agent.config import AgentSettings, HostSettings
from tocsin_agent.credentials import Credentials
from tocsin_agent.daemon_thread import DaemonCall
from tocsin_agent.devices import Devices
from tocsin_agent.identity import FOLDER, Identity
from tocsin_agent.link import Link
from tocsin_agent.probes import HOST_PROBES, probe_class
from tocsin_agent.release import version
from tocsin_agent.renewer import Renewer
from tocsin_agent.sampler import BEAT_MS_MAX, Sampler, Target, target
from tocsin_agent.spool import Spool
from tocsin_agent.uplink import Hooks, Uplink
from tocsin_agent.wishes import Facts
from tocsin_proto import exits, logs
from tocsin_proto.records import Assignment, ProbeAnswer, ProbeRequest
from tocsin_proto.settings import Loaded, SettingsError
from tocsin_proto.systemd import Notifier

log = structlog.get_logger(__name__)

STOP_S = 1.5
ASKED_MAX = 16  # on-demand checks under way at once; more are answered with "busy"
RESTART_KEYS = ("collector", "state", "spool", "uplink")


class Agent:
    """One agent, from its settings to its tasks. `path` is read again at a reload."""

    def __init__(
        self, settings: AgentSettings, path: Path, folder: Path, identity: Identity, environ: Mapping[str, str]
    ):
        self.settings = settings
        self.clocks = Clocks(boot())
        self.spool = Spool.open(
            folder / "spool",
            bytes_max=settings.spool.size_max,
            age_ms_max=settings.spool.age_max,
            segment_bytes=settings.spool.segment,
            now_ms=self.clocks.wall_ms(),
            random_bytes=secrets.token_bytes,
        )
        self.link = Link(self.spool, Facts(version(), socket.gethostname()[:255], tuple(config.KINDS)))
        self.uplink = Uplink(
            self.link,
            identity,
            address=config.collector_address(settings.collector or identity.collector),
            clock=self.clocks.now,
            uniform=random.SystemRandom().uniform,
            hooks=Hooks(self._assign, self._ask),
            first_retry_s_max=settings.uplink.first_retry_max / 1000,
        )
        self.renewer = Renewer(
            self.uplink,
            folder / FOLDER,
            now_ms=lambda: self.clocks.wall_ms() + self.link.collector_ahead_ms,
            uniform=random.SystemRandom().uniform,
        )
        self.notifier = Notifier(environ)
        watchdog_ms = BEAT_MS_MAX if self.notifier.watchdog_s is None else int(self.notifier.watchdog_s * 1000)
        self.sampler = Sampler(
            self.spool,
            self.clocks,
            beat=self.notifier.ping,
            beat_ms_max=min(BEAT_MS_MAX, watchdog_ms),
            flushed=self._flushed,
        )
        self.devices = Devices(self.sampler, folder / "assignment.json")
        self._path = path
        self._folder = folder
        self._environ = environ
        self._started_ms = self.clocks.wall_ms()
        self._unsynced = asyncio.Event()
        self._asked: set[asyncio.Task[None]] = set()
        self._revoked: str | None = None

    async def run(self, stop: asyncio.Event) -> int:
        """Until `stop` or until the collector revokes this agent; the exit code."""
        self._watch(self.settings)
        self.devices.restore()
        self.link.assignment_etag = self.devices.report.etag
        work = asyncio.create_task(self._work(stop), name="agent")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.notifier.stopping()
            stopping.cancel()
            work.cancel()
            await asyncio.wait({work}, timeout=STOP_S)
            self.sampler.flush()
            self.spool.close()
        if work.done() and not work.cancelled() and (failure := work.exception()) is not None:
            raise failure
        if self._revoked is not None:
            return exits.REFUSED
        log.info("agent stopped")
        return exits.OK

    async def _work(self, stop: asyncio.Event) -> None:
        async with status.serve(self._folder, self.status), asyncio.TaskGroup() as tasks:
            tasks.create_task(self.sampler.run(), name="sampler")
            tasks.create_task(self._uplink(stop), name="uplink")
            tasks.create_task(self._sync(), name="spool sync")
            tasks.create_task(self.renewer.run(), name="certificate")
            self.notifier.ready(f"watching {len(self.sampler.targets)} targets")
            log.info("agent started", collector=self.uplink.address, targets=len(self.sampler.targets))

    async def _uplink(self, stop: asyncio.Event) -> None:
        self._revoked = await self.uplink.run()
        stop.set()

    async def _sync(self) -> None:
        """Group sync: at most once a period, and only when something was appended."""
        while True:
            await self._unsynced.wait()
            self._unsynced.clear()
            self.spool.settle()
            # A card that takes seconds for this must not stop the sampling loop, nor the end of the agent.
            await DaemonCall("spool sync", self.spool.fsync).result
            await asyncio.sleep(self.settings.spool.sync_every / 1000)

    def _flushed(self) -> None:
        self._unsynced.set()
        self.uplink.wake()

    # ------------------------------------------------------------------------------------- what comes down the stream

    def _assign(self, assignment: Assignment) -> None:
        report = self.devices.apply(assignment)
        self.link.assignment_etag = report.etag
        self.uplink.say(report)
        log.info("assignment applied", etag=report.etag, devices=len(assignment.devices), refused=len(report.refused))

    def _ask(self, request: ProbeRequest) -> None:
        if len(self._asked) >= ASKED_MAX:
            self.uplink.say(ProbeAnswer(request.request, False, "busy: too many checks asked for at once"))
            return
        task = asyncio.create_task(self._answer(request), name=f"check {request.resource}")
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _answer(self, request: ProbeRequest) -> None:
        self.uplink.say(await self.devices.answer(request))

    # ----------------------------------------------------------------------------------------------------- settings

    def reload(self) -> None:
        """Reads the settings again. Wrong ones change nothing: the old ones hold, and the log says what is wrong."""
        self.notifier.reloading()
        try:
            new = config.read(self._path, self._environ).value
            self._watch(new)
        except SettingsError as error:
            log.error("new settings are wrong, the old ones hold", problems=str(error).splitlines())
        except ValueError as error:
            log.error("new settings are wrong, the old ones hold", problems=[str(error)])
        else:
            logs.configure(new.log.format, new.log.level)
            later = [key for key in RESTART_KEYS if getattr(new, key) != getattr(self.settings, key)]
            if later:
                log.warning("these settings take effect at the next start", settings=later)
            self.settings = new
            log.info("settings reloaded", targets=len(self.sampler.targets))
        self.notifier.ready()

    def _watch(self, settings: AgentSettings) -> None:
        """Devices first: they are what may be refused, and then nothing has changed yet."""
        self.devices.configure(settings, Credentials(credential_folders(settings, self._path, self._environ)))
        present = [key for key in self.sampler.targets if key.startswith("host/")]
        if present and settings.host == self.settings.host:
            return
        for key in present:
            self.sampler.remove(key)
        for one in host_targets(settings.host):
            self.sampler.add(one)

    def status(self) -> status.Status:
        spool, counters = self.spool, self.link.counters
        return status.Status(
            version=version(),
            pid=os.getpid(),
            started_ms=self._started_ms,
            now_ms=self.clocks.wall_ms(),
            agent=self.link.agent,
            collector=self.uplink.address,
            connected=self.link.is_open,
            uplink=self.uplink.state,
            last_ack_ms=counters.last_ack_ms,
            certificate_expires_ms=self.uplink.identity.not_after_ms,
            certificate_problem=self.renewer.problem,
            backlog_bytes=spool.backlog_bytes,
            backlog_frames=max(0, spool.last_seq + 1 - spool.first_unacked),
            dropped_frames=spool.dropped_frames,
            rejected_frames=counters.rejected,
            targets=len(self.sampler.targets),
            series=self.sampler.framer.series_count,
            overruns=self.sampler.scheduler.overruns,
            probe_errors=self.sampler.probe_errors,
            problems=dict(self.sampler.problems),
            assignment_etag=self.devices.report.etag,
            refused=self.devices.report.refused,
        )


def host_targets(host: HostSettings) -> list[Target]:
    """The host's own probes: one group, so that they share their slots and their frame; the first round at once."""
    return [
        target(f"host/{name}", probe_class(name)(host), host.interval, group="host", name=name, first_ms=0)
        for name in HOST_PROBES
        if name not in host.off and not (name == "services" and not host.services)
    ]


def credential_folders(settings: AgentSettings, path: Path, environ: Mapping[str, str]) -> list[Path]:
    """Where secrets are looked up, in order: what is written, what systemd loaded, the folder beside the settings."""
    folders = [settings.credentials.folder, environ.get("CREDENTIALS_DIRECTORY", "")]
    return [*(Path(folder) for folder in folders if folder), path.parent / "credentials"]


def run(loaded: Loaded[AgentSettings], path: Path, folder: Path, identity: Identity, environ: Mapping[str, str]) -> int:
    """The whole agent, until a signal ends it; the exit code. SpoolBusyError when another one runs on this folder."""
    logs.configure(loaded.value.log.format, loaded.value.log.level)
    with asyncio.Runner() as runner:
        return runner.run(_main(loaded.value, path, folder, identity, environ))


async def _main(
    settings: AgentSettings, path: Path, folder: Path, identity: Identity, environ: Mapping[str, str]
) -> int:
    stop = asyncio.Event()
    agent = Agent(settings, path, folder, identity, environ)
    _on_signal("SIGTERM", stop.set)
    _on_signal("SIGINT", stop.set)
    _on_signal("SIGHUP", agent.reload)
    code = await agent.run(stop)
    # All is written and closed. What still hangs in a thread of a library's must not hold the process.
    last_resort = threading.Timer(STOP_S / 3, os._exit, (code,))
    last_resort.daemon = True
    last_resort.start()
    return code


def _on_signal(name: str, act: Callable[[], None]) -> None:
    if sys.platform == "win32" or not hasattr(signal, name):
        return
    asyncio.get_running_loop().add_signal_handler(getattr(signal, name), act)
