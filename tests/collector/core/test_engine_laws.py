"""The laws as properties of the whole engine, over random plants and random deliveries."""

import random
from collections import defaultdict

import msgspec
import pytest
from tests.collector.core.plant import START_MS, Record, config, deliver, script

from tocsin_collector.core.engine import Engine
from tocsin_collector.core.model import (
    LIVE_STATES,
    Command,
    Effect,
    Entry,
    Incident,
    IncidentChanged,
    IncidentState,
    Notice,
)

HOUR_MS = 3_600_000


def run(entries: list[Entry]) -> tuple[Engine, list[list[Effect]], Record]:
    engine, record, said = Engine(), Record(), []
    for entry in entries:
        effects = engine.step(entry)
        record.take(effects)
        said.append(effects)
    return engine, said, record


def world(seed: int, late: float = 0.05) -> list[Entry]:
    rng = random.Random(seed)
    agents, devices = rng.randint(1, 3), rng.randint(1, 3)
    scripts = [script(rng, a, devices, 150) for a in range(agents)]
    return deliver(rng, scripts, config(agents, devices), START_MS + 2 * HOUR_MS, late)


def with_commands(entries: list[Entry], seed: int) -> list[Entry]:
    """The same journal with people in it, who act on incidents that may or may not exist by then."""
    rng = random.Random(seed)
    out: list[Entry] = []
    for entry in entries:
        out.append(Entry(len(out), entry.received_ms, entry.input))
        if rng.random() < 0.02 and len(out) > 50:
            kind = rng.choice(("acknowledge", "resolve", "close", "comment", "dance"))
            command = Command(kind, "zm", f"I-{rng.randrange(len(out))}", "why not")
            out.append(Entry(len(out), entry.received_ms, command))
    return out


@pytest.mark.parametrize("seed", range(12))
def test_replay_from_any_snapshot_gives_the_same_effects(seed: int) -> None:
    entries = with_commands(world(seed), seed)
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(len(entries)), 6))
    engine = Engine()
    said: list[bytes] = []
    snapshots: list[tuple[int, bytes]] = []
    for position, entry in enumerate(entries):
        said.append(msgspec.msgpack.encode(engine.step(entry)))
        if position in cuts:
            snapshots.append((position, engine.snapshot()))
    for position, data in snapshots:
        other = Engine.restore(data)
        for entry, before in zip(entries[position + 1 :], said[position + 1 :], strict=True):
            assert msgspec.msgpack.encode(other.step(entry)) == before, f"seed {seed}, offset {entry.offset}"


@pytest.mark.parametrize("seed", range(20))
def test_the_ledger_converges_whatever_the_order_of_arrival(seed: int) -> None:
    rng = random.Random(seed)
    agents, devices = rng.randint(1, 3), rng.randint(1, 3)
    scripts = [script(rng, a, devices, 120) for a in range(agents)]
    setup, end_ms = config(agents, devices), START_MS + 2 * HOUR_MS
    timelines = []
    for late in (0.0, 0.03, 0.15):
        _, _, record = run(deliver(rng, scripts, setup, end_ms, late))
        timelines.append({component: record.timeline(component, end_ms) for component in record.rows})
    for component, expected in timelines[0].items():
        for other in timelines[1:]:
            assert other[component] == expected, f"seed {seed}: {component}"


@pytest.mark.parametrize("seed", range(20))
def test_one_key_has_one_live_incident_and_notices_alternate(seed: int) -> None:
    _, said, _ = run(with_commands(world(seed), seed))
    live: dict[str, set[str]] = defaultdict(set)
    told: dict[str, list[str]] = defaultdict(list)
    state: dict[str, Incident] = {}
    for effects in said:
        for effect in effects:
            if isinstance(effect, IncidentChanged):
                incident = effect.incident
                before = state.get(incident.id)
                assert before is None or before.state is not IncidentState.CLOSED, incident.id
                state[incident.id] = incident
                (live[incident.key].add if incident.state in LIVE_STATES else live[incident.key].discard)(incident.id)
            if isinstance(effect, Notice) and effect.kind != "updated":
                told[effect.snapshot.key].append(effect.kind)
        assert all(len(ids) <= 1 for ids in live.values())
    for key, kinds in told.items():
        expected = ["opened", "resolved"] * len(kinds)
        assert kinds == expected[: len(kinds)], (seed, key, kinds)


def test_random_plants_reach_every_state_of_an_incident() -> None:
    """A test of the tests: held, suppressed, reopened, acknowledged and the rest do happen in them."""
    states, steps = set(), set()
    for seed in range(12):
        _, said, _ = run(with_commands(world(seed), seed))
        for effects in said:
            for effect in effects:
                if isinstance(effect, IncidentChanged):
                    states.add(effect.incident.state)
                    steps |= {step.kind for step in effect.timeline}
    assert states == set(IncidentState)
    assert {"reopened", "explained_by_parent", "parent_back", "no_parent_explains", "severity_changed"} <= steps
