"""One simulated agent: the real framer, spool and link under a virtual clock, with a crash for every way to die.

Not the real sampler nor the real gRPC shell: their part is small and played here. What it remembers for the invariants:
every frame it made, every acknowledgement it saw.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.sim.agenda import Agenda
from tests.sim.network import AGENT, COLLECTOR, Connection, End, Network
from tests.sim.plant import SAMPLE_MS, Plant, Signal

from tocsin_agent.framer import Framer
from tocsin_agent.link import Link
from tocsin_agent.spool import Spool
from tocsin_agent.uplink import SUSPICIOUS
from tocsin_agent.wishes import Facts, Reconnect, Send, Wish
from tocsin_proto.codec import decode_collector
from tocsin_proto.records import Ack, Clock, Frame, Heartbeat

SYNC_MS = 1_000
RETRY_MS_MAX = 8_000
SUSPICIOUS_NAMES = frozenset(code.name for code in SUSPICIOUS)
SPOOL_BYTES_MAX = 1 << 20
SEGMENT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Made:
    """A frame as the spool took it. wall_ms: the agent's own clock; at_ms: true time; samples: of each signal in it."""

    spool_id: bytes
    seq: int
    at_ms: int
    wall_ms: int
    samples: tuple[tuple[int, float], ...]


@dataclass
class WallClock:
    """offset_ms: wall clock minus true time. boot, booted_ms: of the machine."""

    offset_ms: int = 0
    boot: int = 1
    booted_ms: int = 0

    def now(self, now_ms: int) -> Clock:
        return Clock(now_ms + self.offset_ms, now_ms - self.booted_ms, self.boot)


@dataclass
class Memory:
    """What outlives every crash of the agent: it belongs to the test."""

    made: dict[tuple[bytes, int], Made] = field(default_factory=dict)
    twice: list[tuple[bytes, int]] = field(default_factory=list)  # numbers given out again
    acked: dict[bytes, int] = field(default_factory=dict)


class AgentNode:
    """ack_seen(agent, spool_id, seq): checked at the moment it arrives."""

    def __init__(
        self,
        plant: Plant,
        folder: Path,
        agenda: Agenda,
        network: Network,
        rng: random.Random,
        clock: WallClock,
        ack_seen: Callable[[str, bytes, int], None],
        open_spool: Callable[..., Spool] = Spool.open,
    ) -> None:
        self.plant = plant
        self.name = plant.agent
        self.clock = clock
        self.memory = Memory()
        self.is_idle = False
        self.is_up = False
        self._folder = folder
        self._agenda = agenda
        self._network = network
        self._rng = rng
        self._ack_seen = ack_seen
        self._open_spool = open_spool
        self._life = 0  # callbacks of an earlier life do nothing
        self._connection: Connection | None = None
        self._greeted = b""
        self._stream = 0
        self._timer = 0
        self._failures = 0
        self._synced: dict[Path, int] = {}
        self._phase_ms = rng.randrange(SAMPLE_MS)

    # ------------------------------------------------------------------------------------------------ life and death

    def start(self) -> None:
        now = self._now()
        self._life += 1
        self.is_up = True
        self.spool = self._open_spool(
            self._folder,
            bytes_max=SPOOL_BYTES_MAX,
            segment_bytes=SEGMENT_BYTES,
            now_ms=now.wall_ms,
            random_bytes=self._rng.randbytes,
        )
        self.link = Link(self.spool, Facts("sim", self.name))
        self.framer = Framer()
        self._synced = self._sizes()
        self._agenda.tell(f"{self.name} starts, spool {self.spool.spool_id.hex()[:6]}")
        self._agenda.after(SAMPLE_MS - (self._agenda.now_ms - self._phase_ms) % SAMPLE_MS, self._sample, self._life)
        self._agenda.after(self._rng.randint(0, 500), self._dial, self._life)

    def stop(self, how: str) -> None:
        """how: "clean", "kill" (the process), "power" (what was not synced may be lost, and the machine boots anew)."""
        self._agenda.tell(f"{self.name} stops: {how}")
        self._life += 1
        self._stream += 1
        self.is_up = False
        self.link.disconnected()
        if self._connection is not None:
            self._network.close(self._connection, AGENT, "CANCELLED")
            self._connection = None
        if how == "clean":
            self.spool.close()
            return
        self.spool.abandon()
        if how == "power":
            self._tear()
            self.clock.boot += 1
            self.clock.booted_ms = self._agenda.now_ms

    def _tear(self) -> None:
        for path, size in self._sizes().items():
            synced = self._synced.get(path, 0)
            if size > synced:
                with path.open("r+b") as file:
                    file.truncate(self._rng.randint(synced, size))

    def _sizes(self) -> dict[Path, int]:
        return {path: path.stat().st_size for path in self._folder.glob("*/*.seg")}

    # ------------------------------------------------------------------------------------------------------ sampling

    def _sample(self, life: int) -> None:
        if life != self._life:
            return
        self._agenda.after(SAMPLE_MS, self._sample, life)
        if self.is_idle:
            return
        now, samples = self._now(), []
        skips_poll = self._rng.random() < 0.05
        for number, signal in enumerate(self.plant.signals):
            if signal.lane == "poll" and (skips_poll or self._rng.random() < 0.02):
                continue  # the probe failed
            value = self._measure(signal)
            problem = self.framer.put(signal.lane, signal.series, value, now.wall_ms)
            assert problem is None, problem
            samples.append((number, float(value)))
        self._samples = tuple(samples)
        frames = self.framer.flush(self, now, Heartbeat())
        assert frames == 1, "the script of a frame is kept whole"
        self._agenda.after(SYNC_MS, self._sync, life)
        self._pump()

    def _measure(self, signal: Signal) -> float | int:
        at_ms = self._agenda.now_ms
        return signal.counted(at_ms) if signal.series.kind.is_counter else signal.at(at_ms)

    def _sync(self, life: int) -> None:
        if life == self._life:
            self.spool.sync()
            self._synced = self._sizes()

    # The spool as the framer sees it, with every frame written down.

    def begin(self) -> None:
        self.spool.begin()

    def next_seq(self) -> tuple[int, int]:
        return self.spool.next_seq()

    def declares(self, layout_id: int) -> bool:
        return self.spool.declares(layout_id)

    def append(self, frame: Frame) -> None:
        made = Made(self.spool.spool_id, frame.seq, self._agenda.now_ms, frame.clock.wall_ms, self._samples)
        if (made.spool_id, made.seq) in self.memory.made:
            self.memory.twice.append((made.spool_id, made.seq))
        self.memory.made[made.spool_id, made.seq] = made
        self.spool.append(frame)

    # ---------------------------------------------------------------------------------------------------- connection

    def _dial(self, life: int) -> None:
        if life != self._life or self._connection is not None:
            return
        self._stream += 1
        stream = self._stream
        end = End(lambda raw: self._received(stream, raw), lambda code: self._closed(stream, code))
        self._network.connect(self.name, end, lambda connection: self._connected(life, stream, connection))

    def _connected(self, life: int, stream: int, connection: Connection) -> None:
        if life != self._life or stream != self._stream:
            self._network.close(connection, AGENT, "CANCELLED")
            return
        self._connection = connection
        self._greeted = self.spool.oldest.spool_id
        self._carry(self.link.connected(self._now()))
        self._pump()

    def _received(self, stream: int, raw: bytes) -> None:
        if stream != self._stream or self._connection is None:
            return
        message = decode_collector(raw)
        if isinstance(message, Ack):
            self._failures = 0
            self.memory.acked[self._greeted] = max(message.seq, self.memory.acked.get(self._greeted, 0))
            self._ack_seen(self.name, self._greeted, message.seq)
        self._carry(self.link.received(message, self._now()))
        self._pump()

    def _closed(self, stream: int, code: str) -> None:
        if stream != self._stream:
            return
        self._connection = None
        self.link.disconnected(suspicious=code in SUSPICIOUS_NAMES)
        self._redial(failed=True)

    def _redial(self, *, failed: bool) -> None:
        self._stream += 1  # nothing of the old stream reaches us any more
        self._failures += failed
        delay_ms = self._rng.randint(0, min(RETRY_MS_MAX, 500 << min(self._failures, 8))) if failed else 0
        self._agenda.after(delay_ms, self._dial, self._life)

    def _pump(self) -> None:
        while self._connection is not None and (wishes := self.link.wake(self._now())):
            self._carry(wishes)
        if self._connection is not None:
            self._timer += 1
            self._agenda.after(self.link.wake_in_ms(self._now()), self._wake, self._life, self._timer)

    def _wake(self, life: int, timer: int) -> None:
        if life == self._life and timer == self._timer:
            self._pump()

    def _carry(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            connection = self._connection
            if connection is None:
                return
            if isinstance(wish, Send):
                self._network.send(connection, COLLECTOR, wish.raw)
            elif isinstance(wish, Reconnect):
                self._agenda.tell(f"{self.name} wants another stream: {wish.reason}")
                self._network.close(connection, AGENT, "CANCELLED")
                self._connection = None
                self.link.disconnected()
                self._redial(failed=wish.failed or bool(wish.after_ms))
            else:
                raise AssertionError(f"{self.name}: nothing in this world asks for {wish}")

    # --------------------------------------------------------------------------------------------------------- leaves

    @property
    def is_drained(self) -> bool:
        """The spool holds nothing that is not acknowledged, but perhaps the newest frame, which may be on its way."""
        spool = self.spool
        return self.is_up and spool.oldest is spool.active and spool.active.acked >= spool.active.last_kept - 1

    def _now(self) -> Clock:
        return self.clock.now(self._agenda.now_ms)
