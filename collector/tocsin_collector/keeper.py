"""Keeps the configuration in force up to date: files and enrolled hosts in, one journaled Config and the assignments out.

Not the composing itself (`configuration.py`). Invariant: what is wrong changes nothing; what is right is durable before any
agent is told of it.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from tocsin_collector import configuration
from tocsin_collector.configuration import Enrolled, Sources
from tocsin_collector.core.model import Config, Device, Registry
from tocsin_collector.ingest.roster import Agent
from tocsin_collector.pipeline import InputRefusedError
from tocsin_proto import records
from tocsin_proto.settings import Problem, SettingsError

log = structlog.get_logger(__name__)


class Pipeline(Protocol):
    async def configure(self, config: Config) -> None: ...


class Agents(Protocol):
    """What the keeper needs of the ingest server."""

    def agents(self) -> Iterable[Agent]: ...
    async def refresh(self) -> None: ...
    def assign(self, agent: str, assignment: records.Assignment) -> None: ...


class Keeper:
    """in_force: as the journal has it. read: the files as they are now, blocking; raises SettingsError."""

    def __init__(
        self, in_force: Config | None, read: Callable[[], Sources], pipeline: Pipeline, agents: Agents
    ) -> None:
        self._in_force = in_force
        self._read = read
        self._pipeline = pipeline
        self._agents = agents
        self._sources: Sources | None = None
        self._held: dict[str, Device] = {}
        self._assigned: dict[str, str] = {}  # agent -> etag
        self._turn = asyncio.Lock()

    @property
    def in_force(self) -> Config:
        assert self._in_force is not None, "reload comes first"
        return self._in_force

    async def reload(self) -> Config:
        """Read the files again and put in force what they say. Raises SettingsError, and then nothing has changed."""
        async with self._turn:
            sources = await asyncio.to_thread(self._read)
            await self._put_in_force(sources)
            self._sources = sources
            self._held = held_names(sources.files.registry)
            return self.in_force

    def held(self, name: str) -> Device | None:
        """What the files say of this name; None when it is free. May be asked from any thread."""
        return self._held.get(name)

    async def enrolled(self, name: str, site: str, hostname: str) -> None:
        """A host has enrolled: it is part of the registry before it has its certificate."""
        async with self._turn:
            await self._agents.refresh()
            assert self._sources is not None, "enrolments are served after the first reload"
            try:
                await self._put_in_force(self._sources)
            except SettingsError as error:
                # It was let in while the files changed: it has its certificate, and the files have to give way or it has.
                log.error("enrolled host is not part of the registry", agent=name, problems=str(error).splitlines())

    async def revoked(self) -> None:
        """A host's certificate was revoked."""
        async with self._turn:
            assert self._sources is not None, "verbs are served after the first reload"
            await self._put_in_force(self._sources)

    async def _put_in_force(self, sources: Sources) -> None:
        enrolled = [
            Enrolled(agent.name, agent.site, agent.hostname, bool(agent.revoked_ms)) for agent in self._agents.agents()
        ]
        config = configuration.compose(sources, enrolled, self._in_force)
        if config is not self._in_force:
            try:
                await self._pipeline.configure(config)
            except InputRefusedError as error:
                raise SettingsError([Problem("", "", str(error))]) from error
            self._in_force = config
            log.info(
                "configuration in force",
                version=config.registry.version,
                sites=len(config.registry.sites),
                devices=len(config.registry.devices),
                rules=len(config.rules),
            )
        self._assign(config)

    def _assign(self, config: Config) -> None:
        for agent, assignment in configuration.assignments(config.registry).items():
            if self._assigned.get(agent) != assignment.etag:
                self._agents.assign(agent, assignment)
                self._assigned[agent] = assignment.etag


def held_names(registry: Registry) -> dict[str, Device]:
    """The names that the files hold: every device, and whoever is to watch one."""
    held = {device.watched_by: Device(id=device.watched_by, site=device.site) for device in registry.devices}
    held.pop("", None)
    return held | {device.id: device for device in registry.devices}
