"""One simulated collector: real sessions, seats, batch core, engine and SQLite store; only the event loop is played.

Every commit takes its time, in two steps: until it is durable, and until the process knows. A crash may fall before, between
and after. What it remembers for the invariants is what was really committed, and when it was up.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from tests.sim.agenda import Agenda
from tests.sim.desk_node import CHANNEL, DeskNode, Receiver
from tests.sim.network import AGENT, COLLECTOR, Connection, End, Network

from tocsin_collector.batch import TICK_MS, Batch, Batcher, FrameItem, InputItem, Item, LetterItem
from tocsin_collector.core.model import Command, Config, PulseIn
from tocsin_collector.ingest.seats import Pacer, Seat
from tocsin_collector.ingest.session import (
    Action,
    Close,
    DeadLetter,
    Greeted,
    Limits,
    OfferFrame,
    OfferPulse,
    Send,
    Session,
)
from tocsin_collector.ingest.stream import Stream
from tocsin_collector.recovery import recover
from tocsin_collector.store import inline
from tocsin_collector.store.inline import InlineConnection, run_inline
from tocsin_collector.store.snapshots import Snapshots
from tocsin_collector.store.sqlite import SqliteStore
from tocsin_proto import records
from tocsin_proto.codec import encode_collector

PACE_MS = 50
DISK_MS = (1, 25)
DISK_SLOW_MS = (100, 1_500)


@dataclass
class Past:
    """What outlives every crash of the collector: it belongs to the test."""

    up: list[tuple[int, int]] = field(default_factory=list)  # true times
    durable: dict[tuple[str, bytes], int] = field(default_factory=dict)
    differences: int = 0
    from_truth: int = 0
    restarts: int = 0
    commits: int = 0
    crashes_between: int = 0  # durable, and nobody was told


class SimStream:
    """The shell of a Session: what `ingest.stream` does with gRPC, here with a Connection."""

    def __init__(self, node: "CollectorNode", connection: Connection, session: Session, seat: Seat) -> None:
        self.session = session
        self.address = connection.agent
        self.connection = connection
        self._node = node
        self._seat = seat
        self._inbox: deque[bytes] = deque()
        self._has_ended = False

    def received(self, raw: bytes) -> None:
        self._inbox.append(raw)
        self.read()

    def read(self) -> None:
        while self._inbox and not self.session.is_over and self.session.has_credit:
            for action in self.session.received(self._inbox.popleft(), self._node.agenda.now_ms):
                if not self._do(action):
                    break
            if self.session.is_due:
                self._node.pacer.due(cast(Stream, self))

    def wake(self) -> None:
        for message in self.session.flush():
            self._send(message)
        self.read()

    def end(self, code: str, reason: str) -> None:
        self.session.is_over = True
        if self._has_ended:
            return
        self._has_ended = True
        self._node.agenda.tell(f"stream of {self.address} ends: {code} {reason}")
        self.wake()
        self._node.network.close(self.connection, COLLECTOR, code)
        self._seat.leave(cast(Stream, self))

    def closed(self, code: str) -> None:
        """The connection is gone: nothing can be said any more, what was admitted stays admitted."""
        self.session.is_over = self._has_ended = True
        self._seat.leave(cast(Stream, self))

    def carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            self._do(action)

    def _do(self, action: Action) -> bool:
        node, agent = self._node, self.session.agent
        if isinstance(action, OfferFrame):
            done = partial(self._seat.committed, action.spool_id)
            node.offer(FrameItem(agent, action.spool_id, action.frame, action.raw, done))
        elif isinstance(action, OfferPulse):
            node.offer(InputItem(PulseIn(agent, action.pulse)))
        elif isinstance(action, DeadLetter):
            done = partial(self._seat.committed, action.spool_id)
            node.offer(LetterItem(agent, action.spool_id, action.seq, action.code, action.detail, action.raw, done))
        elif isinstance(action, Greeted):
            refusal = self._seat.take(cast(Stream, self), action.hello)
            if refusal is not None:
                self.end(refusal.code, refusal.reason)
                return False
        elif isinstance(action, Send):
            self._send(action.message)
        elif isinstance(action, Close):
            self.end(action.code, action.reason)
        return True

    def _send(self, message: records.CollectorMessage) -> None:
        self._node.network.send(self.connection, AGENT, encode_collector(message))


class SimPacer:
    """Streams with something to acknowledge, together, every PACE_MS at most."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._due: dict[SimStream, None] = {}

    def due(self, stream: Stream) -> None:
        if not self._due:
            self._agenda.after(PACE_MS, self._wake)
        self._due[cast(SimStream, stream)] = None

    def _wake(self) -> None:
        due, self._due = self._due, {}
        for stream in due:
            stream.wake()


class CollectorNode:
    """`batcher` and `session` may be subclasses with a fault planted in them."""

    def __init__(
        self,
        folder: Path,
        agenda: Agenda,
        network: Network,
        rng: random.Random,
        config: Config,
        receiver: Receiver,
        *,
        slow_disk: float,
        credit_bytes: int,
        batcher: type[Batcher] = Batcher,
    ) -> None:
        self.agenda = agenda
        self.network = network
        self.past = Past()
        self.is_up = False
        self.keeps_snapshots = True
        self.slow_disk = slow_disk
        self.config = config
        self.path = folder / "tocsin.db"
        self.snapshots = Snapshots(folder / "snapshots")
        self._batcher = batcher
        self._rng = rng
        self._receiver = receiver
        self._limits = Limits(credit_bytes=credit_bytes)
        self._life = 0
        self._streams: list[SimStream] = []
        network.accept = self._accept
        agenda.after(TICK_MS, self._tick)

    # ------------------------------------------------------------------------------------------------ life and death

    def start(self) -> None:
        self._life += 1
        self.is_up = True
        self.past.up.append((self.agenda.now_ms, 0))
        self.store = open_store(self.path)
        has_snapshot = next(self.snapshots.newest(), None) is not None
        found = run_inline(recover(self.store, self.snapshots, monotonic=lambda: 0.0))
        self.agenda.tell("collector starts", f"at entry {found.offset}, {found.replayed} replayed")
        self.past.differences += found.differences
        self.past.restarts += 1
        self.past.from_truth += found.offset > 0 and not has_snapshot
        self.batcher = self._batcher(found.engine, found.marks, offset=found.offset, received_ms=found.received_ms)
        self.pacer = SimPacer(self.agenda)
        self.desk = DeskNode(self, self._receiver, self._rng)
        self.queue: deque[Item] = deque()
        self._seats: dict[str, Seat] = {}
        self._streams = []
        self._batch: Batch | None = None
        self._flight: Batch | None = None
        if found.engine.config != self.config or self._rng.random() < 0.2:
            self.offer(InputItem(self.config))
        self.desk.wake()

    def crash(self) -> None:
        """The process is killed: what is committed stays, nothing else does."""
        self._down("collector is killed", run_inline, self.store.abandon())

    def stop(self) -> None:
        """In order: what is queued is committed first."""
        while self._flight is not None or self._batch is not None or self.queue:
            self.agenda.run(self.agenda.now_ms + 1)
        self._down("collector stops", run_inline, self.store.close())

    def _down(self, what: str, act: Callable[..., Any], *arguments: Any) -> None:
        self.agenda.tell(what)
        self._life += 1
        self.is_up = False
        self.past.up[-1] = (self.past.up[-1][0], self.agenda.now_ms)
        for stream in self._streams:
            if not stream.session.is_over:
                stream.session.is_over = True
                self.network.vanish(stream.connection)
        act(*arguments)

    def _accept(self, agent: str, connection: Connection) -> End | None:
        if not self.is_up:
            return None
        seat = self._seats.get(agent)
        if seat is None:
            pacer = cast(Pacer, self.pacer)
            seat = self._seats[agent] = Seat(agent, pacer, lambda: self.agenda.now_ms, lambda stream, hello: None)
        stream = SimStream(self, connection, Session(agent, self.batcher, limits=self._limits), seat)
        self._streams = [*(one for one in self._streams if not one.session.is_over), stream]
        return End(stream.received, stream.closed)

    # ---------------------------------------------------------------------------------------------------- the one path

    def offer(self, item: Item) -> None:
        self.queue.append(item)
        self._turn()

    def command(self, command: Command) -> None:
        if self.is_up:
            self.agenda.tell("command", command.kind, command.incident)
            self.offer(InputItem(command))

    def _tick(self) -> None:
        self.agenda.after(TICK_MS, self._tick)
        if self.is_up:
            self._turn()

    def _turn(self) -> None:
        """Step what is queued; while one batch is on its way to the disk the next is filled."""
        if self._batch is None:
            if not self.queue and not self.batcher.is_tick_due(self.agenda.now_ms):
                return
            self._batch = self.batcher.begin(self.agenda.now_ms)
        self.batcher.restamp(self._batch, self.agenda.now_ms)
        while self.queue and not self._batch.is_full:
            self.batcher.take(self._batch, self.queue.popleft())
        if self._flight is None:
            self._launch(self._batch)

    def _launch(self, batch: Batch) -> None:
        self.batcher.seal(batch)
        self._batch, self._flight = None, batch
        is_slow = self._rng.random() < self.slow_disk
        self.agenda.after(self._rng.randint(*(DISK_SLOW_MS if is_slow else DISK_MS)), self._commit, self._life, batch)

    def _commit(self, life: int, batch: Batch) -> None:
        if life != self._life:
            return
        answers = run_inline(self.store.commit(batch.transaction()))
        self.past.commits += 1
        for key, seq in batch.marks.items():
            self.past.durable[key] = max(seq, self.past.durable.get(key, 0))
        self.agenda.after(self._rng.randint(0, 5), self._landed, life, batch, answers)

    def _landed(self, life: int, batch: Batch, answers: Sequence[Any]) -> None:
        if life != self._life:
            self.past.crashes_between += 1
            return
        self.batcher.finish(batch, answers)
        run_inline(self.store.upkeep())
        if batch.notices:
            self.desk.wake()
        if batch.snapshot is not None and self.keeps_snapshots:
            self.agenda.after(self._rng.randint(1, 400), self._snapshot, life, *batch.snapshot)
        self._flight = None
        if self._batch is not None:
            self._launch(self._batch)
        self._turn()

    def _snapshot(self, life: int, offset: int, data: bytes) -> None:
        if life == self._life:
            self.snapshots.write(offset, data)


def open_store(path: Path) -> SqliteStore:
    """The real store in this thread. A crash of the process is all that happens here: nothing need reach a disk."""
    opened: list[InlineConnection] = []

    async def connect(path: Path) -> InlineConnection:
        opened.append(await inline.connect(path))
        return opened[0]

    async def no_pause(seconds: float) -> None:
        raise AssertionError("a commit did not get through at once")

    store = run_inline(SqliteStore.open(path, connect=connect, channels=(CHANNEL,), pause=no_pause))
    opened[0].raw.execute("PRAGMA synchronous = OFF")
    return store
