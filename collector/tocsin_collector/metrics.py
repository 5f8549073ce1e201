"""The engine process's own figures for Prometheus: read when somebody asks, so that counting costs the hot path nothing.

Not the web process's figures, and no state: everything shown is held by whoever counts it. Invariant: names end in their unit,
counters in _total, and no label holds what an agent says of itself.
"""

from collections.abc import Callable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric


class ChannelFigures(msgspec.Struct, frozen=True):
    """One receiver of notices. channel: its id in collector.toml, so that the label is bounded."""

    channel: str
    waiting: int
    sent: int
    retried: int
    dead: int


class Figures(msgspec.Struct, frozen=True):
    """All figures of one moment. Counters count since the start of the process."""

    version: str
    sqlite_version: str
    started_s: float
    now_s: float
    samples: int = 0
    entries: int = 0
    frames: int = 0
    frame_bytes: int = 0
    duplicates: int = 0
    gaps: int = 0
    rejects: int = 0
    pulses: int = 0
    commits: int = 0
    commit_s_last: float = 0.0
    commit_s_max: float = 0.0
    queue_items: int = 0
    queue_bytes: int = 0
    offset: int = 0
    is_troubled: bool = False
    replayed: int = 0
    replay_differences: int = 0
    engine_faults: int = 0
    streams: int = 0
    refused: int = 0
    agents: int = 0
    agents_silent: int = 0
    agents_catching_up: int = 0
    config_version: int = 0
    web_restarts: int = 0
    incidents: dict[str, int] = {}  # by state: held, suppressed, open, acknowledged, resolved
    channels: tuple[ChannelFigures, ...] = ()


# name, help, field of Figures
_COUNTERS = (
    ("tocsin_samples", "Samples that went through the engine", "samples"),
    ("tocsin_journal_entries", "Inputs written to the journal", "entries"),
    ("tocsin_frames", "Frames admitted", "frames"),
    ("tocsin_frame_bytes", "Bytes of the frames admitted", "frame_bytes"),
    ("tocsin_frames_duplicate", "Frames that came again and were only acknowledged", "duplicates"),
    ("tocsin_frames_out_of_order", "Frames refused because one before them is missing", "gaps"),
    ("tocsin_frames_rejected", "Frames kept as dead letters", "rejects"),
    ("tocsin_peers_refused", "Connections turned away: no, wrong or revoked certificate", "refused"),
    ("tocsin_pulses", "Signs of life out of sequence", "pulses"),
    ("tocsin_commits", "Transactions committed", "commits"),
    ("tocsin_replayed_entries", "Journal entries replayed at the start", "replayed"),
    ("tocsin_replay_differences", "Replayed entries with other effects than committed", "replay_differences"),
    ("tocsin_engine_faults", "Inputs that the engine failed on", "engine_faults"),
    ("tocsin_web_restarts", "Starts of the web process after the first", "web_restarts"),
)
_CHANNEL_COUNTERS = (
    ("tocsin_notices_sent", "Notices delivered", "sent"),
    ("tocsin_notices_retried", "Deliveries that will be tried again", "retried"),
    ("tocsin_notices_dead", "Notices that were given up", "dead"),
)
_GAUGES = (
    ("tocsin_commit_last_seconds", "Duration of the newest commit", "commit_s_last"),
    ("tocsin_commit_max_seconds", "Longest commit since the start", "commit_s_max"),
    ("tocsin_queue_items", "Inputs that wait for the engine", "queue_items"),
    ("tocsin_queue_bytes", "Bytes of the inputs that wait", "queue_bytes"),
    ("tocsin_journal_offset", "Newest journal entry", "offset"),
    ("tocsin_store_troubled", "1 while commits do not get through", "is_troubled"),
    ("tocsin_streams", "Agents connected", "streams"),
    ("tocsin_agents", "Agents ever heard of", "agents"),
    ("tocsin_agents_silent", "Agents not heard of for too long", "agents_silent"),
    ("tocsin_agents_catching_up", "Agents that deliver a backlog", "agents_catching_up"),
    ("tocsin_config_version", "Version of registry and rules in force", "config_version"),
    ("tocsin_start_time_seconds", "Start of the engine process, Unix time", "started_s"),
)


class EngineCollector:
    """Turns Figures into metric families. `read` is called once per scrape."""

    def __init__(self, read: Callable[[], Figures]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        figures = self._read()
        yield InfoMetricFamily(
            "tocsin_engine", "What runs here", {"version": figures.version, "sqlite": figures.sqlite_version}
        )
        for name, text, field in _COUNTERS:
            yield CounterMetricFamily(name, text, float(getattr(figures, field)))
        for name, text, field in _GAUGES:
            yield GaugeMetricFamily(name, text, float(getattr(figures, field)))
        incidents = GaugeMetricFamily("tocsin_incidents", "Incidents that are not closed", labels=["state"])
        for state, count in sorted(figures.incidents.items()):
            incidents.add_metric([state], count)
        yield incidents
        for name, text, field in _CHANNEL_COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["channel"])
            for channel in figures.channels:
                counter.add_metric([channel.channel], getattr(channel, field))
            yield counter
        waiting = GaugeMetricFamily(
            "tocsin_incidents_waiting_for_delivery", "Incidents with notices not delivered", labels=["channel"]
        )
        for channel in figures.channels:
            waiting.add_metric([channel.channel], channel.waiting)
        yield waiting


def text(read: Callable[[], Figures]) -> str:
    """The Prometheus text format of this moment."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(read))
    return generate_latest(registry).decode()
