"""From the sections of a frame to columns of samples: which series a layout means, and where each value goes.

Law 9 is kept here: a series of a device that the registry does not give to the agent gets no id, and its values are dropped
and counted. A section that does not fit its layout is refused whole.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tocsin_collector.core.agents import Agent
from tocsin_collector.core.detector import Detector
from tocsin_collector.core.model import Device, Effect, LayoutAdded, Refused, SeriesAdded, SeriesMoved
from tocsin_collector.core.series import WATCHED, Catalogue, Counts, Floats, Ints, LayoutMap
from tocsin_proto.records import Layout, Section, Series, SeriesKind

REACHABLE = "device.reachable"
COUNTERS = (SeriesKind.COUNTER32, SeriesKind.COUNTER64)
AGENT_SERIES_MAX, SERIES_MAX = 50_000, 2_000_000
AHEAD_MS_MAX = 1000  # of a sample before the moment its frame was made
REFUSED_VALUE, REFUSED_COUNTER = -1, -2  # a place in a layout whose series is not the agent's to report


class Layouts:
    """Builds LayoutMaps and applies sections. `watch` says which series' silence matters: sid -> milliseconds, 0: none."""

    def __init__(self, catalogue: Catalogue, detector: Detector, watch: Callable[[int], int]) -> None:
        self.catalogue = catalogue
        self.detector = detector
        self.devices: dict[str, Device] = {}
        self.on_new: Callable[[SeriesAdded], None] = lambda info: None
        self.on_gap: Callable[[int], None] = lambda sid: None
        self.on_retired: Callable[[int], None] = lambda sid: None
        self._owned: dict[str, int] = {}  # agent -> how many series it reports
        self._watch = watch

    # ------------------------------------------------------------------------------------------------------- layouts

    def declare(self, agent: Agent, layout: Layout, out: list[Effect]) -> None:
        known = agent.layouts.get(layout.id)
        if known is not None and known.is_whole:
            known.last_used = agent.last_received_ms
            return
        ids = self._ids(agent, layout.series, out)
        self.adopt(agent, layout.id, ids, out)
        out.append(LayoutAdded(agent.name, layout.id, tuple(ids)))

    def adopt(self, agent: Agent, layout: int, declared: Sequence[int], out: list[Effect]) -> None:
        """Put a layout with known series ids in place; what the agent may not report (any more) is masked.

        What it may report is its own from here on, whoever did so before: the registry gives each device to one agent.
        """
        info = self.catalogue.info
        ids = [sid if sid >= 0 and info[sid].device in agent.allowed else _refused(sid, info) for sid in declared]
        is_counter = [sid == REFUSED_COUNTER or (sid >= 0 and info[sid].kind in COUNTERS) for sid in ids]
        where = LayoutMap(declared, ids, is_counter)
        where.last_used = agent.last_received_ms
        for sid in ids:
            if sid >= 0 and self.catalogue.agent[sid] != agent.name:
                self.detector.move(sid, agent.name)
                out.append(SeriesMoved(sid, agent.name))
        watched = [(sid, gap) for sid in ids if sid >= 0 and (gap := self._watch(sid))]
        where.watched = np.array([sid for sid, _ in watched], np.int64)
        where.watch_gap_ms = np.array([gap for _, gap in watched], np.int64)
        agent.keep(layout, where)

    def _ids(self, agent: Agent, series: Iterable[Series], out: list[Effect]) -> list[int]:
        """The series ids of a layout; new series get consecutive ids, gauges first."""
        series = tuple(series)
        ids = [REFUSED_COUNTER if one.kind.is_counter else REFUSED_VALUE for one in series]
        refused: dict[str, int] = {}
        taken: set[int] = set()
        doubles = surplus = 0
        order = sorted(range(len(series)), key=lambda position: series[position].kind.is_counter)
        for position in order:
            one = series[position]
            device = one.resource or agent.name
            if device not in agent.allowed:
                refused[device] = refused.get(device, 0) + 1
                continue
            sid = self.catalogue.ids.get((device, one.metric, one.labels))
            if sid in taken:
                doubles += 1
                continue
            if sid is not None and not _is_same(self.catalogue.info[sid], one):
                self.on_retired(sid)
                self.catalogue.retire(sid)
                sid = None
            if sid is None and self._is_full(agent):
                surplus += 1
                continue
            if sid is None:
                sid = self._new(agent, device, one, out)
            taken.add(sid)
            ids[position] = sid
        for what, count in refused.items():
            out.append(Refused(agent.name, "not assigned", f"{what} is not this agent's to report", count))
        if doubles:
            out.append(Refused(agent.name, "series declared twice", "a layout names a series once", doubles))
        if surplus:
            out.append(Refused(agent.name, "too many series", f"an agent may report {AGENT_SERIES_MAX}", surplus))
        return ids

    def _is_full(self, agent: Agent) -> bool:
        if agent.name not in self._owned:
            self._owned[agent.name] = self.catalogue.agent.count(agent.name)
        return self._owned[agent.name] >= AGENT_SERIES_MAX or self.catalogue.count >= SERIES_MAX

    def _new(self, agent: Agent, device: str, one: Series, out: list[Effect]) -> int:
        info = SeriesAdded(
            id=self.catalogue.count,
            agent=agent.name,
            device=device,
            metric=one.metric,
            unit=one.unit,
            kind=int(one.kind),
            labels=one.labels,
            states=one.states,
            interval_ms=one.interval_ms,
        )
        self.catalogue.add(info, self.detector.set.compile(info, self.devices.get(device)))
        self._owned[agent.name] = self._owned.get(agent.name, 0) + 1
        self.on_new(info)
        out.append(info)
        return info.id

    # ------------------------------------------------------------------------------------------------------ sections

    def apply(self, agent: Agent, section: Section, shift_ms: int, made_ms: int, out: list[Effect]) -> int:
        """Give the samples of one section to the detector; returns how many were taken. made_ms: of the frame, corrected."""
        where = agent.layouts.get(section.layout)
        if where is None:
            out.append(Refused(agent.name, "unknown layout", f"layout {section.layout:016x} was never declared"))
            return 0
        where.last_used = agent.last_received_ms
        at_ms = section.time_ms + shift_ms
        if at_ms > made_ms + AHEAD_MS_MAX:
            out.append(Refused(agent.name, "stamp ahead of its frame", f"by {at_ms - made_ms} ms"))
            return 0
        values = np.frombuffer(section.values, np.float64)
        counters = np.frombuffer(section.counters, np.uint64)
        if len(where.watched):
            self._watch_gaps(agent, where, at_ms)
        is_plain = where.is_whole and not section.indices and not section.offsets_ms
        if is_plain and len(counters) == where.counters_n and len(values) == len(where.ids) - where.counters_n:
            if where.span is not None:
                self.detector.section(where.span, values, counters, at_ms)
            else:
                self.detector.gauges(where.gauges, values, at_ms)
                self.detector.counters(where.counters, counters, at_ms)
            return len(where.ids)
        return self._apply_part(agent, where, section, at_ms, made_ms, values, counters, out)

    def _apply_part(
        self,
        agent: Agent,
        where: LayoutMap,
        section: Section,
        at_ms: int,
        made_ms: int,
        values: Floats,
        counters: Counts,
        out: list[Effect],
    ) -> int:
        """The general case: some of the layout, times of their own, or series that are not the agent's."""
        positions = np.arange(len(where.ids))
        if section.indices:
            positions = np.frombuffer(section.indices, np.uint32).astype(np.int64)
        fits = len(positions) == len(values) + len(counters) and (not len(positions) or positions[-1] < len(where.ids))
        if not fits:
            detail = f"{len(positions)} of {len(where.ids)} series, {len(values)} values, {len(counters)} counters"
            out.append(Refused(agent.name, "malformed section", detail))
            return 0
        times: Ints = np.full(len(positions), at_ms, np.int64)
        if section.offsets_ms:
            offsets = np.frombuffer(section.offsets_ms, np.int32)
            if len(offsets) != len(positions):
                out.append(
                    Refused(agent.name, "malformed section", f"{len(offsets)} times for {len(positions)} samples")
                )
                return 0
            times = times + offsets
            if len(times) and int(times.max()) > made_ms + AHEAD_MS_MAX:
                out.append(Refused(agent.name, "stamp ahead of its frame", f"by {int(times.max()) - made_ms} ms"))
                return 0
        ids, is_counter = where.ids[positions], where.is_counter[positions]
        if np.count_nonzero(is_counter) != len(counters):
            out.append(Refused(agent.name, "malformed section", f"{len(counters)} counters, the layout has others"))
            return 0
        mine, also = ids[~is_counter] >= 0, ids[is_counter] >= 0
        self.detector.gauges(ids[~is_counter][mine], values[mine], times[~is_counter][mine])
        self.detector.counters(ids[is_counter][also], counters[also], times[is_counter][also])
        refused = len(ids) - int(mine.sum()) - int(also.sum())
        if refused:
            out.append(Refused(agent.name, "not assigned", "samples of devices that are not this agent's", refused))
        return len(ids) - refused

    def _watch_gaps(self, agent: Agent, where: LayoutMap, at_ms: int) -> None:
        """A watched series comes back after a hole in event time: look at its sample, and judge the hole first."""
        last = self.catalogue.last_ms[where.watched]
        holes = np.flatnonzero((at_ms - last > where.watch_gap_ms) & (last > 0))
        for sid in where.watched[holes].tolist():
            self.catalogue.m_flags[sid] |= WATCHED
            self.on_gap(sid)
            self.detector.no_data(sid, min(at_ms - 1, agent.watermark_ms))  # while the agent went on, and no longer


def _is_same(info: SeriesAdded, one: Series) -> bool:
    """May the series go on? Another kind, unit or other states make it another series under the same name."""
    return info.kind == one.kind and info.unit == one.unit and info.states == one.states


def _refused(sid: int, info: Sequence[SeriesAdded]) -> int:
    if sid < 0:
        return sid
    return REFUSED_COUNTER if info[sid].kind in COUNTERS else REFUSED_VALUE
