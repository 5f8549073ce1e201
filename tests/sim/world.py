"""A whole plant in one process: agents, wire, ingest, engine, store and desk under one virtual clock, from one seed.

Faults first, then calm until everything has drained, then the collector stops in order; `invariants` judges what is left.
Nothing outside the seed decides anything: the same seed plays the same run to the last byte.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.sim import plant
from tests.sim.agenda import Agenda
from tests.sim.agent_node import AgentNode, WallClock
from tests.sim.collector_node import CollectorNode
from tests.sim.desk_node import Receiver
from tests.sim.network import Network
from tests.sim.plant import START_MS

from tocsin_agent.spool import Spool
from tocsin_collector.batch import Batcher
from tocsin_collector.core.model import LIVE_STATES, Command

CHAOS_MS = 180_000
CALM_MS_MAX = 600_000
SETTLE_MS = 30_000  # of good weather after the last fault and before anything is judged


@dataclass(frozen=True)
class Weather:
    """How bad a run is. Shares are probabilities; pause_ms: mean time between two faults."""

    pause_ms: int
    wild: float  # connections that lose, repeat and reorder
    slow: float  # messages that take up to 0.8 s
    slow_disk: float
    skewed: bool  # agents' clocks are off, and jump
    forgetful: bool  # snapshots get lost, so that a start is from committed truth
    credit_bytes: int
    desk: float  # how often the receiver fails


def weather(rng: random.Random) -> Weather:
    return Weather(
        pause_ms=rng.choice((6_000, 12_000, 25_000)),
        wild=rng.choice((0.0, 0.0, 0.3, 1.0)),
        slow=rng.choice((0.0, 0.02, 0.1)),
        slow_disk=rng.choice((0.0, 0.01, 0.1)),
        skewed=rng.random() < 0.4,
        forgetful=rng.random() < 0.15,
        credit_bytes=rng.choice((1_500, 8_192, 524_288)),
        desk=rng.choice((0.0, 0.2, 0.5)),
    )


@dataclass(frozen=True)
class Flaws:
    """What a planted bug puts in the place of the real parts."""

    batcher: type[Batcher] = Batcher
    open_spool: Callable[..., Spool] = Spool.open


class AckBroken(AssertionError):
    """An agent was told that something is durable which is not."""


class World:
    def __init__(
        self, seed: int, folder: Path, *, flaws: Flaws | None = None, speak: Callable[[str], None] | None = None
    ) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.weather = weather(rng)
        self.agenda = Agenda(START_MS, speak=speak)
        self.network = Network(self.agenda, rng, wild=self.weather.wild, slow=self.weather.slow)
        self.receiver = Receiver(refuses=self.weather.desk, stays_silent=self.weather.desk)
        flaws = flaws or Flaws()
        faults_end_ms = START_MS + CHAOS_MS
        self.plants = [plant.plant(rng, number, faults_end_ms) for number in range(rng.randint(1, 3))]
        self.collector = CollectorNode(
            folder,
            self.agenda,
            self.network,
            rng,
            plant.config(self.plants),
            self.receiver,
            slow_disk=self.weather.slow_disk,
            credit_bytes=self.weather.credit_bytes,
            batcher=flaws.batcher,
        )
        self.agents: dict[str, AgentNode] = {}
        self.jumpers: set[str] = set()  # agents whose wall clock is set now and then; these never lose power
        for one in self.plants:
            clock = WallClock(booted_ms=START_MS - rng.randint(0, 10**9))
            if self.weather.skewed and rng.random() < 0.7:
                clock.offset_ms = rng.choice((-3_600_000, -40_000, 1_500, 90_000, 7_200_000))
                if rng.random() < 0.5:
                    self.jumpers.add(one.agent)
            self.agents[one.agent] = AgentNode(
                one, folder / one.agent, self.agenda, self.network, rng, clock, self._ack_seen, flaws.open_spool
            )
        self.is_calm = False

    # ------------------------------------------------------------------------------------------------------- the run

    def play(self) -> None:
        """The whole run; afterwards the collector is stopped and its database is at rest."""
        self.collector.start()
        for agent in self.agents.values():
            self.agenda.after(self.rng.randint(0, 3_000), agent.start)
        self.agenda.after(5_000, self._next_fault)
        self.agenda.run(START_MS + CHAOS_MS)
        self._calm()
        self.agenda.run(self.agenda.now_ms + max(self._script_end_ms() - self.agenda.now_ms, 0) + SETTLE_MS)
        limit_ms = self.agenda.now_ms + CALM_MS_MAX
        while not self.is_quiet():
            assert self.agenda.now_ms < limit_ms, "did not come to rest: " + "; ".join(self.unrest())
            self.agenda.run(self.agenda.now_ms + 1_000)
        self.collector.stop()
        self.agenda.tell("end")

    def is_quiet(self) -> bool:
        return not any(True for _ in self.unrest())

    def unrest(self) -> list[str]:
        """What is not done yet, for the reader of a failure."""
        if not self.collector.is_up:
            return ["the collector is down"]
        found = [
            f"{agent.name} holds {agent.spool.oldest.acked}..{agent.spool.oldest.last_kept}"
            for agent in self.agents.values()
            if not agent.is_drained
        ]
        engine = self.collector.batcher.engine
        found += [
            f"{one.id} {one.key} is {one.state.value}"
            for one in engine.book.incidents.values()  # type: ignore[attr-defined]
            if one.state in LIVE_STATES
        ]
        found += [f"{agent.name} is catching up" for agent in engine.agents() if agent.catching_up]  # type: ignore[attr-defined]
        if len(self.collector.desk._lanes):
            found.append("notices wait")
        return found

    def _script_end_ms(self) -> int:
        ends = [end for one in self.plants for signal in one.signals for _, end in signal.faults]
        return max(ends, default=0)

    def _ack_seen(self, agent: str, spool_id: bytes, seq: int) -> None:
        """Law 1, at the moment it counts."""
        durable = self.collector.past.durable.get((agent, spool_id), 0)
        if seq > durable:
            raise AckBroken(f"L1: {agent} saw an ack of {spool_id.hex()[:6]}:{seq}, durable is {durable}")

    # -------------------------------------------------------------------------------------------------------- faults

    def _next_fault(self) -> None:
        if self.is_calm:
            return
        agent = self.rng.choice(list(self.agents.values()))
        self.rng.choices(FAULTS, FAULT_WEIGHTS)[0](self, agent)
        self.agenda.after(int(self.rng.expovariate(1 / self.weather.pause_ms)) + 1, self._next_fault)

    def _collector_dies(self, agent: AgentNode) -> None:
        if not self.collector.is_up:
            return
        if self.rng.random() < 0.2:
            self.collector.stop()
        else:
            self.collector.crash()
        if self.weather.forgetful and self.rng.random() < 0.5:
            for path in self.collector.snapshots.folder.glob("*.snap"):
                path.unlink()
        self.agenda.after(self.rng.choice((1, 300, 3_000, 15_000, 50_000)), self.collector_returns)

    def collector_returns(self) -> None:
        if not self.collector.is_up:
            self.collector.start()

    def _agent_dies(self, agent: AgentNode) -> None:
        if not agent.is_up:
            return
        agent.stop(self.rng.choice(("clean", "kill", "kill" if agent.name in self.jumpers else "power")))
        self.agenda.after(self.rng.choice((1, 500, 8_000, 40_000)), self._agent_returns, agent)

    def _agent_returns(self, agent: AgentNode) -> None:
        if not agent.is_up:
            agent.start()

    def _stream_breaks(self, agent: AgentNode) -> None:
        self.agenda.tell(f"{agent.name} is cut")
        self.network.cut(agent.name)

    def _partition(self, agent: AgentNode) -> None:
        self.agenda.tell(f"{agent.name} is cut off")
        self.network.part(agent.name)
        self.agenda.after(self.rng.choice((700, 5_000, 15_000, 45_000, 90_000)), self._heal, agent)

    def _heal(self, agent: AgentNode) -> None:
        self.agenda.tell(f"{agent.name} is back on the network")
        self.network.heal(agent.name)

    def _idle(self, agent: AgentNode) -> None:
        self.agenda.tell(f"{agent.name} measures nothing for a while")
        agent.is_idle = True
        self.agenda.after(self.rng.choice((12_000, 30_000, 60_000)), self._busy, agent)

    def _busy(self, agent: AgentNode) -> None:
        agent.is_idle = False

    def _clock_jumps(self, agent: AgentNode) -> None:
        if agent.name in self.jumpers:
            agent.clock.offset_ms += self.rng.choice((-30_000, -4_000, 4_000, 60_000))
            self.agenda.tell(f"{agent.name}'s clock is set, off by {agent.clock.offset_ms} ms now")

    def _person_acts(self, agent: AgentNode) -> None:
        if not self.collector.is_up:
            return
        incidents = list(self.collector.batcher.engine.book.incidents)  # type: ignore[attr-defined]
        if incidents:
            kind = self.rng.choice(("acknowledge", "resolve", "close", "comment"))
            self.collector.command(Command(kind, "zm", self.rng.choice(incidents), "seen"))

    def _calm(self) -> None:
        self.agenda.tell("the weather gets good")
        self.is_calm = True
        self.network.tame()
        self.collector.slow_disk = 0.0
        self.receiver.refuses = self.receiver.stays_silent = 0.0
        self.collector_returns()
        for agent in self.agents.values():
            self._heal(agent)
            self._busy(agent)
            self._agent_returns(agent)


FAULTS: list[Callable[[World, AgentNode], None]] = [
    World._collector_dies,
    World._agent_dies,
    World._stream_breaks,
    World._partition,
    World._idle,
    World._clock_jumps,
    World._person_acts,
]
FAULT_WEIGHTS = (4, 4, 3, 3, 2, 1, 2)
