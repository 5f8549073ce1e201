"""How the engine process is: one snapshot of everybody's figures, for the verb `status` and for Prometheus.

Not a store of figures: whoever counts keeps them, this only asks. Invariant: asking changes nothing and waits for nothing.
"""

import os
import platform
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version as installed_version
from typing import Any, cast

import msgspec

from tocsin_collector import metrics
from tocsin_collector.core.engine import Engine
from tocsin_collector.desk.outbox import Outbox
from tocsin_collector.ingest.server import IngestServer
from tocsin_collector.pipeline import Pipeline
from tocsin_collector.web_process import WebProcess


class Vitals:
    def __init__(
        self,
        pipeline: Pipeline,
        ingest: IngestServer,
        outbox: Outbox,
        web: WebProcess | None,
        ports: Mapping[str, int],
        clock: Callable[[], int],
    ) -> None:
        self._pipeline = pipeline
        self._ingest = ingest
        self._outbox = outbox
        self._web = web
        self._ports = ports
        self._clock = clock
        self._started_ms = clock()

    @property
    def _engine(self) -> Engine:
        return cast(Engine, self._pipeline.engine)

    def status(self) -> dict[str, Any]:
        """Live facts of the engine process, for the verb `status`."""
        pipeline, engine, now_ms = self._pipeline.status(), self._engine, self._clock()
        sessions = {session.agent: session for session in self._ingest.sessions()}
        views = {view.name: view for view in engine.agents()}
        return {
            "version": installed_version("tocsin"),
            "python": platform.python_version(),
            "sqlite_version": sqlite3.sqlite_version,
            "pid": os.getpid(),
            "started_ms": self._started_ms,
            "now_ms": now_ms,
            "last_tick_ms": engine.last_tick_ms,
            "trouble": pipeline.trouble,
            "ports": dict(self._ports),
            "config_version": engine.config.registry.version,
            "web_restarts": self._web.restarts if self._web else 0,
            "pipeline": _plain(pipeline),
            "channels": [_plain(channel) for channel in self._outbox.status()],
            "agents": [
                {
                    "name": agent.name,
                    "site": agent.site,
                    "hostname": agent.hostname,
                    "version": agent.version,
                    "is_revoked": bool(agent.revoked_ms),
                    "certificate_expires_ms": agent.expires_ms,
                    "is_connected": agent.name in sessions,
                    "last_received_ms": views[agent.name].last_received_ms if agent.name in views else 0,
                    "is_silent": views[agent.name].is_silent if agent.name in views else True,
                    "catching_up": views[agent.name].catching_up if agent.name in views else False,
                    "shift_ms": views[agent.name].shift_ms if agent.name in views else 0,
                    "lag_ms": max(0, now_ms - views[agent.name].watermark_ms) if agent.name in views else 0,
                    "session": _plain(sessions[agent.name]) if agent.name in sessions else None,
                }
                for agent in self._ingest.agents()
            ],
        }

    def figures(self) -> metrics.Figures:
        """Everything that Prometheus is shown."""
        pipeline, engine = self._pipeline.status(), self._engine
        views, sessions = engine.agents(), self._ingest.sessions()
        counts = Counter(self._ingest.totals())
        incidents = Counter(incident.state.value for incident in engine.book.incidents.values())
        return metrics.Figures(
            version=installed_version("tocsin"),
            sqlite_version=sqlite3.sqlite_version,
            started_s=self._started_ms / 1000,
            now_s=self._clock() / 1000,
            samples=engine.samples,
            entries=pipeline.entries,
            frames=counts["frames"],
            frame_bytes=counts["frame_bytes"],
            duplicates=counts["duplicates"],
            gaps=counts["gaps"],
            rejects=counts["rejects"],
            pulses=counts["pulses"],
            commits=pipeline.commits,
            commit_s_last=pipeline.commit_ms_last / 1000,
            commit_s_max=pipeline.commit_ms_max / 1000,
            queue_items=pipeline.queue_items,
            queue_bytes=pipeline.queue_bytes,
            offset=pipeline.offset,
            is_troubled=bool(pipeline.trouble),
            replayed=pipeline.replayed,
            replay_differences=pipeline.replay_differences,
            engine_faults=pipeline.engine_faults,
            streams=len(sessions),
            refused=self._ingest.refused,
            agents=len(views),
            agents_silent=sum(view.is_silent for view in views),
            agents_catching_up=sum(view.catching_up for view in views),
            config_version=engine.config.registry.version,
            web_restarts=self._web.restarts if self._web else 0,
            incidents=dict(incidents),
            channels=tuple(
                metrics.ChannelFigures(channel.channel, channel.waiting, channel.sent, channel.retried, channel.dead)
                for channel in self._outbox.status()
            ),
        )


def _plain(record: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}
