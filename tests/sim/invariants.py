"""The laws, judged over what a run has left: the database, the agents' memory, the receiver's.

Each check reads the database with statements of its own. A broken law is an AssertionError that begins with its number.
"""

import itertools
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from tests.sim.agent_node import AgentNode, Made
from tests.sim.collector_node import open_store
from tests.sim.expected import Expected, expected
from tests.sim.plant import SETTINGS, START_MS
from tests.sim.world import World

from tocsin_collector.batch import digest, entry_of
from tocsin_collector.core.engine import TICK_HOLE_MS, Engine
from tocsin_collector.core.model import FrameIn, Incident, Notice
from tocsin_collector.recovery import recover
from tocsin_collector.store.base import Row
from tocsin_collector.store.inline import run_inline
from tocsin_proto.records import Frame, Gap

CLOCK_MS = 2_500  # how far event time of an agent with a wrong clock may be off


@dataclass
class Remains:
    """Read once: the journal as rows, its frames decoded."""

    connection: sqlite3.Connection
    rows: list[Row]
    frames: dict[tuple[str, bytes, int], Frame]
    start_ms: int
    end_ms: int

    def all(self, sql: str, *parameters: object) -> list[tuple]:  # type: ignore[type-arg]
        return self.connection.execute(sql, parameters).fetchall()


def check(world: World) -> None:
    """All laws; raises at the first that is broken."""
    connection = sqlite3.connect(f"file:{world.collector.path}?mode=ro", uri=True)
    try:
        remains = _read(connection)
        acked_is_durable(world, remains)
        nothing_is_applied_twice_or_lost(world, remains)
        replay_is_exact(world, remains)
        one_key_has_one_open_incident(remains)
        notices_alternate(world, remains)
        intervals_tile(remains)
        for agent in world.agents.values():
            said = expected(agent.plant, arrived(agent, remains), remains.end_ms)
            the_record_is_true(world, agent, said, remains)
            nothing_is_up_unseen(agent, said, remains)
            incidents_have_causes(world, agent, said, remains)
            silence_is_real(world, agent, remains)
            children_are_suppressed(world, agent, said, remains)
    finally:
        connection.close()


def _read(connection: sqlite3.Connection) -> Remains:
    rows = [
        Row(*row)
        for row in connection.execute(
            'SELECT "offset", received_ms, kind, agent, spool_id, body FROM journal ORDER BY "offset"'
        )
    ]
    frames: dict[tuple[str, bytes, int], Frame] = {}
    for row in rows:
        if row.kind == "frame":
            what = entry_of(row).input
            assert isinstance(what, FrameIn)
            key = (row.agent, row.spool_id, what.frame.seq)
            assert key not in frames, (
                f"L2: {row.agent} {row.spool_id.hex()[:6]}:{what.frame.seq} is in the journal twice"
            )
            frames[key] = what.frame
    start_ms = next(row.received_ms for row in rows if row.kind == "config")
    return Remains(connection, rows, frames, start_ms, rows[-1].received_ms)


def arrived(agent: AgentNode, remains: Remains) -> list[Made]:
    """What of the agent's frames is in the journal, by event time."""
    found = [
        made for (spool_id, seq), made in agent.memory.made.items() if (agent.name, spool_id, seq) in remains.frames
    ]
    return sorted(found, key=lambda made: made.at_ms)


# ------------------------------------------------------------------------------------------------------------ 1 and 2


def acked_is_durable(world: World, remains: Remains) -> None:
    for agent in world.agents.values():
        for spool_id, acked in agent.memory.acked.items():
            told = _told(agent.name, spool_id, remains)
            for (one, seq), made in agent.memory.made.items():
                if one == spool_id and seq <= acked and not _is_kept(agent.name, made, told, remains):
                    raise AssertionError(
                        f"L1: {agent.name} {spool_id.hex()[:6]}:{seq} was acked up to {acked} and is lost"
                    )


def nothing_is_applied_twice_or_lost(world: World, remains: Remains) -> None:
    offsets = [row.offset for row in remains.rows]
    assert offsets == list(range(1, len(offsets) + 1)), "L2: the journal has holes"
    for agent in world.agents.values():
        assert not agent.memory.twice, f"L2: {agent.name} gave out {agent.memory.twice[0]} twice"
        told = _told(agent.name, None, remains)
        newest = agent.spool.last_seq
        for (spool_id, seq), made in agent.memory.made.items():
            waits = spool_id == agent.spool.spool_id and seq >= newest  # may be on its way still
            if not waits and not _is_kept(agent.name, made, told, remains):
                raise AssertionError(
                    f"L2: {agent.name} {spool_id.hex()[:6]}:{seq} is neither applied nor told as a gap"
                )
        order: dict[bytes, int] = {}
        for name, spool_id, seq in remains.frames:
            if name == agent.name:
                assert seq > order.get(spool_id, 0), f"L2: {name} {spool_id.hex()[:6]}:{seq} came out of order"
                order[spool_id] = seq
                made = agent.memory.made[spool_id, seq]
                wall_ms = remains.frames[name, spool_id, seq].clock.wall_ms
                assert made.wall_ms == wall_ms, f"L2: {name} {spool_id.hex()[:6]}:{seq} is not the frame that was made"


def _told(agent: str, spool_id: bytes | None, remains: Remains) -> list[tuple[bytes, Gap]]:
    return [
        (one, gap)
        for (name, one, _), frame in remains.frames.items()
        if name == agent and spool_id in (None, one)
        for gap in frame.gaps
    ] or ([] if spool_id is None else _told(agent, None, remains))


def _is_kept(agent: str, made: Made, told: Iterable[tuple[bytes, Gap]], remains: Remains) -> bool:
    return (agent, made.spool_id, made.seq) in remains.frames or any(
        (spool_id == made.spool_id and gap.first_seq <= made.seq <= gap.last_seq)
        or (not gap.first_seq and gap.from_ms <= made.wall_ms <= gap.to_ms)
        for spool_id, gap in told
    )


# ------------------------------------------------------------------------------------------------------------------ 3


def replay_is_exact(world: World, remains: Remains) -> None:
    """A fresh start finds the state that was left; the whole journal from its first entry leads to the same effects."""
    past = world.collector.past
    assert past.differences == 0, f"L3: {past.differences} entries were replayed differently at a restart"
    before = world.collector.batcher.engine.snapshot()
    store = open_store(world.collector.path)
    counts = _counts(remains)
    found = run_inline(recover(store, world.collector.snapshots, monotonic=lambda: 0.0))
    run_inline(store.close())
    assert found.differences == 0, f"L3: {found.differences} entries replay differently"
    assert _counts(remains) == counts, "L3: replay has written something"
    assert {(mark.agent, mark.spool_id): mark.seq for mark in found.marks} == past.durable, "L3: marks differ"
    if past.from_truth:
        return
    if next(world.collector.snapshots.newest(), None) is not None:
        assert found.engine.snapshot() == before, "L3: the state found again is not the state that was left"
    engine, stored = Engine(), dict(remains.all('SELECT "offset", digest FROM effect_digest'))
    for row in remains.rows:
        effects = engine.step(entry_of(row))
        said = digest(effects) if effects else b""
        assert said == stored.get(row.offset, b""), f"L3: entry {row.offset} ({row.kind}) replays to other effects"
    assert engine.snapshot() == before, "L3: the journal from its beginning leads to another state"


def _counts(remains: Remains) -> list[int]:
    tables = ("journal", "incident", "outbox", '"interval"', "timeline", "effect_digest")
    return [remains.all(f"SELECT count(*) FROM {table}")[0][0] for table in tables]


# ------------------------------------------------------------------------------------------------------------ 4 and 5


def one_key_has_one_open_incident(remains: Remains) -> None:
    """As of every entry of the timeline: an incident's life is from detection to resolution."""
    lives: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for key, ident, body in remains.all('SELECT "key", id, body FROM incident ORDER BY detected_ms, id'):
        incident = msgspec.json.decode(body, type=Incident)
        ends = [step.at_ms for step in incident.decision if step.kind in ("resolved", "cleared", "closed_for_new")]
        lives[key].append((incident.detected_ms, incident.closed_ms or max(ends, default=1 << 62), ident))
        assert incident.state.value in ("resolved", "closed"), f"L5: {ident} {key} is {incident.state.value} at the end"
    for key, spans in lives.items():
        for (_, end, first), (start, _, second) in itertools.pairwise(spans):
            assert end <= start, f"L4: {first} and {second} of {key} were there at the same time"


def notices_alternate(world: World, remains: Remains) -> None:
    told: dict[str, list[str]] = defaultdict(list)
    written = remains.all('SELECT "key", kind, idempotency_key, state FROM outbox ORDER BY id')
    for key, kind, ident, state in written:
        assert state == "sent", f"L5: notice {ident} is {state} at the end"
        if kind != "updated":
            told[key].append(kind)
    received: dict[str, list[str]] = defaultdict(list)
    for notice in world.receiver.notices.values():
        if notice.kind != "updated":
            received[notice.snapshot.key].append(notice.kind)
    assert set(world.receiver.notices) == {ident for _, _, ident, _ in written}, "L5: told is not what was written"
    for one in (told, received):
        for key, kinds in one.items():
            assert kinds == ["opened", "resolved"] * (len(kinds) // 2), f"L5: {key} was told {kinds}"


# ------------------------------------------------------------------------------------------------------------ 6 and 7


def intervals_tile(remains: Remains) -> None:
    """The rows of a component leave no hole and no overlap, now and as of any earlier revision; the states sum up."""
    rows = remains.all(
        'SELECT component, start_ms, coalesce(end_ms, 0), state, revision, coalesce(superseded, 0) FROM "interval"'
    )
    newest = remains.rows[-1].offset
    components = {row[0] for row in rows}
    for revision in (newest, newest // 2, newest // 3):
        for component in components:
            shown = sorted(
                (start, end, state)
                for name, start, end, state, since, until in rows
                if name == component and since <= revision and (until == 0 or until > revision)
            )
            assert shown or revision < newest, f"L7: {component} has no rows"
            for (_, end, _), (start, _, _) in itertools.pairwise(shown):
                assert end == start, f"L7: {component} as of {revision} has a hole or an overlap at {start}"
            assert not shown or shown[-1][1] == 0, f"L7: {component} as of {revision} ends"
            if not shown:
                continue
            sums: dict[str, int] = defaultdict(int)
            for start, end, state in shown:
                sums[state] += (end or remains.end_ms + 1) - start
            assert sum(sums.values()) == remains.end_ms + 1 - shown[0][0], f"L7: {component} does not sum up"


def timeline(component: str, remains: Remains) -> list[tuple[int, int, str]]:
    """Merged (from, to, state) of the current rows, up to the end of the journal."""
    out: list[tuple[int, int, str]] = []
    for start, end, state in remains.all(
        'SELECT start_ms, coalesce(end_ms, ?), state FROM "interval" WHERE component = ? AND superseded IS NULL'
        " ORDER BY start_ms",
        remains.end_ms,
        component,
    ):
        if out and out[-1][2] == state:
            out[-1] = (out[-1][0], end, state)
        else:
            out.append((start, end, state))
    return out


def the_record_is_true(world: World, agent: AgentNode, said: Expected, remains: Remains) -> None:
    """Against the script: exact where the clock is right, within the clock's error where it is not."""
    if world.collector.past.from_truth:
        return  # a start without a snapshot warms up: what falls into it is not exact
    for name, component in said.components.items():
        found = timeline(name, remains)
        wanted = component.timeline(found[0][0], remains.end_ms)
        if is_exact(world, agent):
            assert found == wanted, f"L3: the record of {name} is\n  {_show(found)}\nand should be\n  {_show(wanted)}"
            continue
        off_ms, most_ms = _disagreement(found, wanted), CLOCK_MS * (len(wanted) + 1)
        assert off_ms <= most_ms, (
            f"L3: the record of {name} is wrong for {off_ms} ms, at most {most_ms}:\n  {_show(found)}\n"
            f"and should be\n  {_show(wanted)}"
        )


def nothing_is_up_unseen(agent: AgentNode, said: Expected, remains: Remains) -> None:
    slack_ms = CLOCK_MS
    for name, component in said.components.items():
        known = component.known(remains.end_ms)
        for start, end, state in timeline(name, remains):
            if state != "up":
                continue
            seen = sum(max(0, min(end, b + slack_ms) - max(start, a - slack_ms)) for a, b in known)
            assert seen >= end - start, f"L6: {name} is up over [{start - START_MS}, {end - START_MS}) unseen"


def is_exact(world: World, agent: AgentNode) -> bool:
    return agent.clock.offset_ms == 0 and agent.name not in world.jumpers


def _disagreement(found: list[tuple[int, int, str]], wanted: list[tuple[int, int, str]]) -> int:
    same = sum(max(0, min(b, d) - max(a, c)) for a, b, state in found for c, d, other in wanted if state == other)
    return wanted[-1][1] - wanted[0][0] - same if wanted else 0


def _show(stretches: list[tuple[int, int, str]]) -> str:
    return " ".join(f"{(a - START_MS) / 1000:.3f}-{(b - START_MS) / 1000:.3f} {state}" for a, b, state in stretches)


# ---------------------------------------------------------------------------------------------------------- incidents


def incidents_have_causes(world: World, agent: AgentNode, said: Expected, remains: Remains) -> None:
    """Every incident has a raise of the script that opened it; every raise has an incident."""
    if world.collector.past.from_truth:
        return
    slack_ms = 0 if is_exact(world, agent) else CLOCK_MS
    for key, raised in said.raised.items():
        if slack_ms and key.startswith("traffic-high"):
            continue  # a rate over a clock that is off is off
        incidents = [
            msgspec.json.decode(body, type=Incident)
            for (body,) in remains.all('SELECT body FROM incident WHERE "key" = ?', key)
        ]
        for one in incidents:
            near = any(abs(one.opened_ms - start) <= slack_ms for start, _ in raised) or _is_back(
                one, incidents, raised
            )
            assert near, f"causeless: {one.id} {key} opened at {one.opened_ms - START_MS}, raised {_rel(raised)}"
        for start, _ in raised:
            is_found = any(
                abs(one.opened_ms - start) <= slack_ms or one.opened_ms < start <= one.resolved_ms + slack_ms
                for one in incidents
            )
            assert is_found, f"missed: {key} was raised at {start - START_MS} and has no incident"


def _is_back(one: Incident, incidents: list[Incident], raised: list[tuple[int, int]]) -> bool:
    """A person had resolved the one before, and the finding, raised all the while, was breached once more."""
    by_hand = {other.opened_ms for other in incidents if any(step.kind == "resolved_by" for step in other.decision)}
    return any(start <= before < one.opened_ms <= end for start, end in raised for before in by_hand)


def silence_is_real(world: World, agent: AgentNode, remains: Remains) -> None:
    """An agent is silent only when a running collector has had no frame of it for long enough; that it lives is not enough."""
    heard = [row.received_ms for row in remains.rows if row.agent == agent.name and row.kind == "frame"]
    for opened_ms, detected_ms in remains.all(
        'SELECT opened_ms, detected_ms FROM incident WHERE "key" = ?', f"agent-silent/{agent.name}"
    ):
        between = [at for at in heard if opened_ms < at < detected_ms]
        assert not between, f"causeless: {agent.name} was heard at {between[0] - START_MS} while called silent"
        up_ms = _up_since(world, detected_ms)
        watched_ms = detected_ms - max(opened_ms, up_ms)
        assert watched_ms >= SETTINGS.silent_after_ms, (
            f"causeless: {agent.name} was called silent at {detected_ms - START_MS}, {watched_ms} ms after it was heard "
            "or the collector came up"
        )


def children_are_suppressed(world: World, agent: AgentNode, said: Expected, remains: Remains) -> None:
    """Law 5: of a child whose fault lies within its switch's, nobody is told."""
    if world.collector.past.from_truth or not is_exact(world, agent):
        return
    switch = said.raised[agent.plant.reachability(agent.plant.switch).key]
    for child in agent.plant.children:
        key = agent.plant.reachability(child).key
        for start, end in said.raised[key]:
            if not any(a <= start and end <= b for a, b in switch):
                continue
            told = [
                at_ms
                for (body,) in remains.all("SELECT body FROM outbox WHERE \"key\" = ? AND kind = 'opened'", key)
                if start <= (at_ms := msgspec.json.decode(body, type=Notice).snapshot.opened_ms) <= end
            ]
            assert not told, f"L5: {key} was told of although its switch was out of reach from {start - START_MS}"


def _up_since(world: World, at_ms: int) -> int:
    """Since when the collector has run, but for stops so short that its ticks do not show them."""
    since_ms = 0
    before_ms = -TICK_HOLE_MS
    for start_ms, end_ms in world.collector.past.up:
        if start_ms <= at_ms and start_ms - before_ms > TICK_HOLE_MS:
            since_ms = start_ms
        before_ms = end_ms
    return since_ms


def _rel(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(start - START_MS, end - START_MS) for start, end in stretches]
