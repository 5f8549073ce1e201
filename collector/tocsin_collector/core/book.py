"""The incident book: which findings are raised, and which incident each of them has.

A finding is a key that is raised or not. The book turns raises and clears into incidents: a new one, one more occurrence, a
change of severity, a reopening; it withholds what a parent explains, and says what is to be told. The invariants: one key
has at most one incident that is not resolved (law 4); a clear always resolves (law 5).
"""

import math
from collections.abc import Callable, Iterable

import msgspec

from tocsin_collector.core.incident import (
    CLOSED,
    HELD,
    OPEN,
    RESOLVED,
    SUPPRESSED,
    Happening,
    NotPossible,
    explain,
    occur,
    step,
    worsen,
)
from tocsin_collector.core.model import (
    LIVE_STATES,
    TOLD_STATES,
    Command,
    CommandAnswer,
    Effect,
    Incident,
    IncidentChanged,
    Notice,
    Record,
    Rule,
    Settings,
    Severity,
    Step,
    incident_id,
)
from tocsin_collector.core.topology import Topology

OCCURRENCES_EVERY_MS = 10_000  # occurrences are written together, so that a hovering value costs one row in ten seconds
TEXT_MAX = 4096


class Finding(Record, frozen=True):
    """What a rule found: enough to open an incident and to explain it. facts fill the rule's sentence."""

    key: str
    rule: Rule
    device: str
    site: str
    agent: str
    severity: Severity
    at_ms: int
    since_ms: int
    value: float
    steps: tuple[Step, ...]
    facts: dict[str, str | int | float] = {}
    metric: str = ""
    series: int = -1


class BookState(Record, frozen=True):
    """A Book as a snapshot holds it."""

    incidents: tuple[Incident, ...]
    raised: tuple[tuple[str, str, bool, str], ...]
    held: dict[str, int]
    dirty: tuple[str, ...]


class Raised(msgspec.Struct, frozen=True):
    device: str
    is_reachability: bool
    agent: str


class Book:
    """Incidents that are not closed, by id and by key. `out` collects the effects of the entry that is being stepped."""

    def __init__(
        self,
        topology: Topology,
        last_answer: Callable[[str], int],
        patience: Callable[[str], int],
        last_sample: Callable[[int], int],
    ) -> None:
        self.topology = topology
        self.settings = Settings()
        self.incidents: dict[str, Incident] = {}
        self.by_key: dict[str, str] = {}
        self.raised: dict[str, Raised] = {}
        self.held: dict[str, int] = {}  # incident id -> journal time at which it is released
        self.dirty: dict[str, None] = {}  # occurrences not written yet
        self.out: list[Effect] = []
        self.now_ms = 0
        self.catching_up: Callable[[str], bool] = lambda agent: False
        self.defer: Callable[[str, str], None] = lambda agent, incident: None
        self._last_answer = last_answer  # device -> event time at which it was last known to answer
        self._last_sample = last_sample  # series id -> event time of its newest sample
        self._patience = patience
        self._offset = 0
        self._ordinal = 0
        self.flushed_ms = 0

    def begin(self, offset: int, now_ms: int, out: list[Effect]) -> None:
        """An entry is about to be stepped."""
        self._offset, self._ordinal, self.now_ms, self.out = offset, 0, now_ms, out

    # ----------------------------------------------------------------------------------------------------- findings

    def raise_(self, finding: Finding) -> None:
        """The finding is raised, raised with another severity, or breached once more."""
        key, rule = finding.key, finding.rule
        is_new = key not in self.raised
        self.raised[key] = Raised(finding.device, rule.is_reachability, finding.agent)
        if rule.is_reachability and is_new:
            self.topology.raise_(finding.device, key)
        incident = self.incidents.get(self.by_key.get(key, ""))
        if incident is not None and incident.state in LIVE_STATES:
            self._again(incident, finding)
        elif incident is not None and self._may_reopen(incident, finding):
            self._reopen(incident, finding)
        else:
            if incident is not None:
                self._close(incident, Happening.EXPIRED, "closed_for_new")
            self._open(finding)
        if rule.is_reachability and is_new:
            self._explain_children(finding.device)

    def clear(self, key: str, at_ms: int, *steps: Step) -> None:
        """The finding has ended at event time `at_ms`."""
        raised = self.raised.pop(key, None)
        if raised is None:
            return
        if raised.is_reachability:
            self.topology.clear(raised.device, key)
        incident = self.incidents.get(self.by_key.get(key, ""))
        if incident is not None and incident.state in LIVE_STATES:
            was_told = incident.was_told
            told_at_all = incident.state in TOLD_STATES
            changed = explain(incident, *steps)
            changed = step(changed, Happening.CLEARED, at_ms, self._step("cleared"), self.now_ms)
            if told_at_all and not was_told:
                changed = explain(changed, self._step("over_before_told"))
            if was_told:
                changed = self._notice(changed, "resolved", at_ms)
            self._write(changed, (*steps, self._step("resolved" if changed.state is RESOLVED else "ended_unopened")))
        if raised.is_reachability and raised.device not in self.topology.unreachable:
            self._release_children(raised.device)

    def _open(self, finding: Finding) -> None:
        ident = incident_id(self._offset, self._ordinal)
        self._ordinal += 1
        incident = Incident(
            id=ident,
            key=finding.key,
            rule=finding.rule.id,
            device=finding.device,
            site=finding.site,
            severity=finding.severity,
            state=OPEN,
            opened_ms=finding.at_ms,
            detected_ms=self.now_ms,
            last_ms=finding.at_ms,
            says=finding.rule.says,
            facts=finding.facts,
            metric=finding.metric,
            series=finding.series,
            impact=finding.rule.impact,
            evidence=((finding.at_ms, finding.value),) if math.isfinite(finding.value) else (),
            decision=finding.steps,
        )
        self.by_key[finding.key] = ident
        if finding.rule.is_reachability and self.topology.has_parents(finding.device):
            self._withhold(incident)
            return
        self._tell(explain(incident, self._step("opened")), finding.agent, (*finding.steps, self._step("opened")))

    def _withhold(self, incident: Incident) -> None:
        parent = self.topology.explained_by(incident.device)
        if parent:
            self._suppress(msgspec.structs.replace(incident, state=HELD), parent, incident.decision)
            return
        self.held[incident.id] = self.now_ms + self._wait_ms(incident.device)
        entry = self._step("waits_for_parents", parents=", ".join(self.topology.parents(incident.device)))
        held = explain(msgspec.structs.replace(incident, state=HELD), entry)
        self._write(held, (*incident.decision, entry))

    def _wait_ms(self, device: str) -> int:
        return max([self.settings.hold_ms, *map(self._patience, self.topology.parents(device))])

    def _suppress(self, incident: Incident, parent_key: str, before: tuple[Step, ...] = ()) -> None:
        parent_id = self.by_key.get(parent_key, "")
        parent = self.incidents.get(parent_id)
        entry = self._step("explained_by_parent", parent=parent.device if parent else parent_key, incident=parent_id)
        changed = step(incident, Happening.EXPLAINED, self.now_ms, entry, self.now_ms)
        self.held.pop(incident.id, None)
        self._write(msgspec.structs.replace(changed, suppressed_by=parent_id or parent_key), (*before, entry))

    def _again(self, incident: Incident, finding: Finding) -> None:
        if finding.severity is incident.severity:
            changed = occur(incident, finding.at_ms, finding.value)
            self.incidents[incident.id] = changed
            self.dirty[incident.id] = None
            return
        changed = worsen(incident, finding.severity, finding.at_ms, finding.value)
        entry = self._step("severity_changed", before=incident.severity.value, severity=finding.severity.value)
        changed = explain(msgspec.structs.replace(changed, facts=finding.facts), *finding.steps, entry)
        if changed.was_told:
            changed = self._notice(changed, "updated", finding.at_ms)
        self._write(changed, (*finding.steps, entry))

    def _may_reopen(self, incident: Incident, finding: Finding) -> bool:
        if finding.rule.is_reachability and self.topology.has_parents(finding.device):
            return False  # whether a parent explains it has to be asked anew
        return finding.at_ms - incident.resolved_ms <= self.settings.reopen_within_ms

    def _reopen(self, incident: Incident, finding: Finding) -> None:
        entry = self._step("reopened")
        changed = step(incident, Happening.RAISED, finding.at_ms, entry, self.now_ms)
        changed = explain(occur(changed, finding.at_ms, finding.value), *finding.steps)
        changed = msgspec.structs.replace(changed, severity=finding.severity, facts=finding.facts, acknowledged_by="")
        self._tell(changed, finding.agent, (*finding.steps, entry))

    # ------------------------------------------------------------------------------------------------------ topology

    def _explain_children(self, device: str) -> None:
        for child in self.topology.children(device):
            parent = self.topology.explained_by(child)
            if not parent:
                continue
            for incident in self._of(child, HELD):
                self._suppress(incident, parent)

    def _release_children(self, device: str) -> None:
        for child in self.topology.children(device):
            for incident in self._of(child, SUPPRESSED):
                self._release_child(incident, device)

    def _release_child(self, incident: Incident, parent: str) -> None:
        """What explained it is gone: it waits once more, so that its own next news decides. parent "": it has none now."""
        entry = self._step("parent_back", parent=parent) if parent else self._step("no_parent_explains")
        changed = step(incident, Happening.UNEXPLAINED, self.now_ms, entry, self.now_ms)
        self.held[changed.id] = self.now_ms + max(self.settings.hold_ms, self._patience(incident.device))
        self._write(changed, (entry,))

    def _of(self, device: str, state: object) -> list[Incident]:
        keys = self.topology.unreachable.get(device, {})
        found = (self.incidents.get(self.by_key.get(key, "")) for key in keys)
        return [incident for incident in found if incident is not None and incident.state is state]

    # --------------------------------------------------------------------------------------------------------- ticks

    def tick(self) -> None:
        """One second: releases what nothing explains, writes occurrences, closes what has been resolved for long."""
        for ident, deadline in list(self.held.items()):
            incident = self.incidents[ident]
            if self.now_ms >= deadline:
                self._release(incident, "no_parent_explains")
            elif self._parent_answers(incident):
                self._release(incident, "parent_answers")
        if self.now_ms - self.flushed_ms >= OCCURRENCES_EVERY_MS:
            self.flushed_ms = self.now_ms
            self._flush()
            self._expire()

    def _parent_answers(self, incident: Incident) -> bool:
        """News of a parent from after the raise. Once a parent has returned, only news of the device itself counts."""
        if any(entry.kind == "parent_back" for entry in incident.decision):
            return False
        return any(
            parent not in self.topology.unreachable and self._last_answer(parent) > incident.detected_ms
            for parent in self.topology.parents(incident.device)
        )

    def _release(self, incident: Incident, why: str) -> None:
        del self.held[incident.id]
        entry = self._step(why)
        changed = step(incident, Happening.RELEASED, incident.opened_ms, entry, self.now_ms)
        raised = self.raised.get(incident.key)
        self._tell(changed, raised.agent if raised else "", (entry, self._step("opened")))

    def _flush(self) -> None:
        for ident in self.dirty:
            incident = self.incidents.get(ident)
            if incident is not None:
                self.out.append(IncidentChanged(incident))
        self.dirty.clear()

    def _expire(self) -> None:
        for incident in [i for i in self.incidents.values() if i.state is RESOLVED]:
            since = self.now_ms - incident.resolved_ms
            if incident.key in self.raised and self.by_key.get(incident.key) == incident.id:
                is_fresh = incident.series < 0 or self._last_sample(incident.series) > incident.resolved_ms
                if since >= self.settings.reopen_within_ms and is_fresh:  # resolved by hand, and still there
                    entry = self._step("still_there")
                    changed = step(incident, Happening.RAISED, self.now_ms, entry, self.now_ms)
                    self._tell(changed, self.raised[incident.key].agent, (entry,))
            elif since >= self.settings.close_after_ms:
                self._close(incident, Happening.EXPIRED, "closed")

    def hold_on(self) -> None:
        """The collector was away: whoever waits for news of a parent waits anew."""
        for ident in self.held:
            self.held[ident] = self.now_ms + self._wait_ms(self.incidents[ident].device)

    def reconsider(self) -> None:
        """Parents have changed: what nothing explains any more waits, and what something explains now is withheld."""
        for incident in list(self.incidents.values()):
            parent = self.topology.explained_by(incident.device)
            if incident.state is SUPPRESSED and not parent:
                self._release_child(incident, "")
            elif incident.state is HELD and parent:
                self._suppress(incident, parent)

    # ------------------------------------------------------------------------------------------------------ commands

    def command(self, wish: Command) -> None:
        """What a person wants; answered in any case."""
        try:
            self._command(wish)
        except NotPossible as refusal:
            self.out.append(CommandAnswer(wish.incident, str(refusal)))
        else:
            self.out.append(CommandAnswer(wish.incident))

    def _command(self, wish: Command) -> None:
        incident = self.incidents.get(wish.incident)
        if incident is None:
            raise NotPossible(f"there is no incident {wish.incident} that is not closed")
        text = wish.text[:TEXT_MAX]
        if wish.kind == "comment":
            self._write(incident, (self._step("commented", actor=wish.actor, text=text),))
            return
        happening = COMMANDS.get(wish.kind)
        if happening is None:
            raise NotPossible(f'unknown command "{wish.kind}", known are: comment, {", ".join(COMMANDS)}')
        entry = self._step(f"{wish.kind}d_by", actor=wish.actor, text=text)
        changed = step(incident, happening, self.now_ms, entry, self.now_ms)
        if happening is Happening.ACKNOWLEDGED:
            changed = msgspec.structs.replace(changed, acknowledged_by=wish.actor)
        if incident.was_told and changed.state is not CLOSED:
            changed = self._notice(changed, "resolved" if changed.state is RESOLVED else "updated", self.now_ms)
        self._write(changed, (entry,))

    # --------------------------------------------------------------------------------------------------------- leaves

    def tell_deferred(self, idents: Iterable[str], agent: str) -> None:
        """The agent has caught up: what is still open is told now."""
        for ident in idents:
            incident = self.incidents.get(ident)
            if incident is not None and incident.state in TOLD_STATES and not incident.was_told:
                self._tell(incident, agent, ())

    def _tell(self, incident: Incident, agent: str, timeline: tuple[Step, ...]) -> None:
        if self.catching_up(agent):
            self.defer(agent, incident.id)
        else:
            incident = self._notice(incident, "opened", incident.opened_ms)
        self._write(incident, timeline)

    def _notice(self, incident: Incident, kind: str, at_ms: int) -> Incident:
        assert (kind == "opened") is not incident.was_told, (incident.id, kind)
        ordinal = incident.notices
        incident = msgspec.structs.replace(incident, was_told=kind != "resolved", notices=ordinal + 1)
        self.out.append(Notice(incident.id, ordinal, kind, at_ms, incident))
        return incident

    def _close(self, incident: Incident, happening: Happening, why: str) -> None:
        entry = self._step(why)
        self._write(step(incident, happening, self.now_ms, entry, self.now_ms), (entry,))

    def _write(self, incident: Incident, timeline: tuple[Step, ...]) -> None:
        self.dirty.pop(incident.id, None)
        self.out.append(IncidentChanged(incident, timeline))
        if incident.state is not CLOSED:
            self.incidents[incident.id] = incident
            return
        self.incidents.pop(incident.id, None)
        self.held.pop(incident.id, None)
        if self.by_key.get(incident.key) == incident.id:
            del self.by_key[incident.key]

    def _step(self, kind: str, **facts: str | int | float) -> Step:
        return Step(self.now_ms, kind, facts)

    # ------------------------------------------------------------------------------------------------------- snapshot

    def freeze(self) -> BookState:
        return BookState(
            tuple(self.incidents.values()),
            tuple((key, r.device, r.is_reachability, r.agent) for key, r in self.raised.items()),
            dict(self.held),
            tuple(self.dirty),
        )

    def thaw(self, state: BookState) -> None:
        for incident in state.incidents:
            self.incidents[incident.id] = incident
            self.by_key[incident.key] = incident.id
        for key, device, is_reachability, agent in state.raised:
            self.raised[key] = Raised(device, is_reachability, agent)
            if is_reachability:
                self.topology.raise_(device, key)
        self.held = dict(state.held)
        self.dirty = dict.fromkeys(state.dirty)


COMMANDS = {
    "acknowledge": Happening.ACKNOWLEDGED,
    "resolve": Happening.RESOLVED_BY_HAND,
    "close": Happening.CLOSED_BY_HAND,
}
