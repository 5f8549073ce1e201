"""Inputs in order -> engine -> one Transaction: the pipeline's synchronous core, without event loop or disk.

Not the queue and not the commit: `pipeline.py` is the shell around it, the simulator is another. The invariant: what a
Batch promised (`done`, answers) is kept by `finish` alone, and `finish` is called only after its Transaction is durable.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, Protocol

import msgspec
import structlog

from tocsin_collector.core.intake import Admission, admit
from tocsin_collector.core.model import (
    Command,
    CommandAnswer,
    Config,
    Effect,
    Entry,
    FrameIn,
    Input,
    Notice,
    PulseIn,
    Tick,
)
from tocsin_collector.store.base import Answer, Letter, Live, Mark, Operation, Outcome, Row, Transaction
from tocsin_proto import codec, records

log = structlog.get_logger(__name__)

BATCH_ENTRIES_MAX = 512
BATCH_BYTES_MAX = 8 * 1024 * 1024
ITEM_BYTES = 256  # what anything queued costs beside its body
TICK_MS = 1_000
LIVE_MS = 2_000
LIVE_AGENTS_MAX = 200  # written per transaction, in turn
SNAPSHOT_MS = 60_000
SNAPSHOT_ENTRIES = 50_000  # what a restart replays at most, but for one batch
CLOCK_BACK_MS_MAX = 60_000  # journal time stands still over smaller steps back, and follows larger ones

_MSGPACK = msgspec.msgpack.Encoder()
_INPUT = msgspec.msgpack.Decoder(PulseIn | Tick | Command | Config)
_TICK = Tick()


class Core(Protocol):
    """What the pipeline needs of the engine."""

    offset: int

    def step(self, entry: Entry) -> list[Effect]: ...
    def snapshot(self) -> bytes: ...
    def latest(self, agent: str) -> tuple[Any, Any, Any]: ...


class FrameItem(msgspec.Struct):
    """An admitted frame. message: the AgentMessage as received. done(seq) is called when it is durable."""

    agent: str
    spool_id: bytes
    frame: records.Frame
    message: bytes
    done: Callable[[int], None]


class InputItem(msgspec.Struct):
    """Any other input. answer is called with the Command's answer when that is durable; None for other inputs."""

    input: PulseIn | Tick | Command | Config
    answer: Callable[[CommandAnswer], None] | None = None


class LetterItem(msgspec.Struct):
    """An admitted frame that cannot be read: kept, and its number used up."""

    agent: str
    spool_id: bytes
    seq: int
    code: str
    detail: str
    body: bytes
    done: Callable[[int], None]


class OperationItem(msgspec.Struct):
    operation: Operation
    answer: Callable[[Answer], None]


Item = FrameItem | InputItem | LetterItem | OperationItem


class Batch:
    """One transaction in the making."""

    __slots__ = (
        "answers", "base", "bytes", "configs", "done", "items", "items_max", "letters", "live", "marks", "notices",
        "operations", "outcomes", "received_ms", "rows", "snapshot",
    )  # fmt: skip

    def __init__(self, received_ms: int, base: int, items_max: int) -> None:
        """base: offset of the newest entry before this batch."""
        self.received_ms = received_ms
        self.base = base
        self.items_max = items_max
        self.items: list[Item] = []  # what was taken, in order
        self.rows: list[Row] = []
        self.marks: dict[tuple[str, bytes], int] = {}
        self.outcomes: list[Outcome] = []
        self.configs: list[tuple[int, int, Config]] = []
        self.letters: list[Letter] = []
        self.operations: list[OperationItem] = []
        self.live: list[Live] = []
        self.done: list[tuple[Callable[[int], None], int]] = []
        self.answers: list[tuple[Callable[[CommandAnswer], None], CommandAnswer]] = []
        self.notices = 0
        self.bytes = 0
        self.snapshot: tuple[int, bytes] | None = None

    @property
    def is_full(self) -> bool:
        return len(self.items) >= self.items_max or self.bytes >= BATCH_BYTES_MAX

    def transaction(self, trim_upto: int = 0, trim_before_ms: int = 0) -> Transaction:
        return Transaction(
            rows=self.rows,
            marks=[Mark(agent, spool_id, seq) for (agent, spool_id), seq in self.marks.items()],
            outcomes=self.outcomes,
            configs=self.configs,
            letters=self.letters,
            live=self.live,
            operations=[item.operation for item in self.operations],
            at_ms=self.received_ms,
            trim_upto=trim_upto,
            trim_before_ms=trim_before_ms,
        )


class Batcher:
    """Holds the engine, the journal's next offset and time, and the high-water marks, admitted and committed.

    `begin`, `take` each item, `seal` (or all at once: `prepare`); then commit `batch.transaction()`; then `finish`.
    """

    def __init__(self, engine: Core, marks: Sequence[Mark] = (), *, offset: int = 0, received_ms: int = 0) -> None:
        """offset, received_ms: of the newest entry of the journal."""
        self.engine = engine
        self.offset = max(offset, engine.offset, 0)
        self.received_ms = received_ms
        self.entries = 0  # since the start
        self.snapshot_offset = self.offset
        self._admitted = {(mark.agent, mark.spool_id): mark.seq for mark in marks}
        self._committed = dict(self._admitted)
        self._undeclared: set[tuple[str, bytes]] = set()  # spools whose declarations we do not have
        self._tick = received_ms // TICK_MS
        self._live_ms = received_ms
        self._snapshot_ms = 0
        self._heard: dict[str, int] = {}  # agents whose newest values are not written yet, longest waiting first

    # -------------------------------------------------------------------------------------------------- admission

    def admit(self, agent: str, spool_id: bytes, seq: int, follows: int) -> Admission:
        """Judge a frame, and move the mark when it is accepted: it must then be offered, whatever becomes of its stream."""
        key = (agent, spool_id)
        verdict = admit(self._admitted.get(key, 0), seq, follows)
        if verdict is Admission.ACCEPT:
            self._admitted[key] = seq
        return verdict

    def adopt(self, agent: str, spool_id: bytes, first_unacked: int) -> bool:
        """A spool never heard of goes on where it is: what it no longer holds was acknowledged to it, by a database we lost.

        True: what it declared of layouts is not here, and it has not been told so yet.
        """
        key = (agent, spool_id)
        if key in self._admitted or first_unacked <= 1:
            return key in self._undeclared
        self._admitted[key] = self._committed[key] = first_unacked - 1
        log.warning(
            "unknown spool starts in the middle: earlier frames are not in this database",
            agent=agent,
            seq=first_unacked,
        )
        self.lose_layouts(agent, spool_id)
        return True

    def lose_layouts(self, agent: str, spool_id: bytes) -> None:
        """What this spool declared is not known here: its agent must say it again."""
        self._undeclared.add((agent, spool_id))

    def declaring(self, agent: str, spool_id: bytes) -> None:
        """Its agent has been told."""
        self._undeclared.discard((agent, spool_id))

    def high_water(self, agent: str, spool_id: bytes) -> int:
        return self._admitted.get((agent, spool_id), 0)

    def committed(self, agent: str, spool_id: bytes) -> int:
        return self._committed.get((agent, spool_id), 0)

    # ----------------------------------------------------------------------------------------------------- batches

    def prepare(self, items: Sequence[Item], now_ms: int) -> Batch:
        batch = self.begin(now_ms)
        for item in items:
            self.take(batch, item)
        self.seal(batch)
        return batch

    def begin(self, now_ms: int) -> Batch:
        """A new batch; with a tick first when one is due."""
        batch = self.open(now_ms)
        if self.is_tick_due(now_ms):
            self.take(batch, self.tick())
        return batch

    def open(self, now_ms: int, items_max: int = BATCH_ENTRIES_MAX) -> Batch:
        """A new batch with nothing in it."""
        if self.received_ms - now_ms > CLOCK_BACK_MS_MAX:
            log.error("the clock was set back, journal time follows it", by_ms=self.received_ms - now_ms)
        self.received_ms = self._journal_ms(now_ms)
        return Batch(self.received_ms, self.offset, items_max)

    def tick(self) -> InputItem:
        """The tick that is due, to be taken first. Ticks that were missed are not made up for."""
        self._tick = self.received_ms // TICK_MS
        return InputItem(_TICK)

    def restamp(self, batch: Batch, now_ms: int) -> None:
        """What is taken from here on came now: a batch stays open for as long as the disk needs for the one before."""
        self.received_ms = batch.received_ms = self._journal_ms(now_ms)

    def is_tick_due(self, now_ms: int) -> bool:
        return self._journal_ms(now_ms) // TICK_MS != self._tick

    def take(self, batch: Batch, item: Item) -> None:
        """Step the engine by one item. An exception of the engine passes through; the batch is as it was before."""
        if type(item) is FrameItem:
            self._take_frame(batch, item)
        elif type(item) is InputItem:
            self._take_input(batch, item)
        elif type(item) is LetterItem:
            letter = Letter(item.agent, item.spool_id, item.seq, batch.received_ms, item.code, item.detail, item.body)
            batch.letters.append(letter)
            batch.bytes += len(item.body)
            self._promise(batch, item.agent, item.spool_id, item.seq, item.done)
        else:
            assert type(item) is OperationItem
            batch.operations.append(item)
        batch.items.append(item)

    def replace(self, engine: Core, base: int) -> None:
        """Go on with an engine that has applied all that is committed: nothing behind offset `base` is, or is on its way."""
        assert engine.offset <= base <= self.offset, (engine.offset, base, self.offset)
        self.engine = engine
        self.offset = base
        self.snapshot_offset = min(self.snapshot_offset, base)

    def seal(self, batch: Batch) -> None:
        """Nothing more comes into it: add the newest values and the engine's snapshot when they are due."""
        now_ms = batch.received_ms
        if abs(now_ms - self._live_ms) >= LIVE_MS and self._heard:
            self._live_ms = now_ms
            for agent in list(islice(self._heard, LIVE_AGENTS_MAX)):
                batch.live.append(self._live(agent, self._heard.pop(agent)))
        aged = self.offset > self.snapshot_offset and abs(now_ms - self._snapshot_ms) >= SNAPSHOT_MS
        if aged or self.offset - self.snapshot_offset >= SNAPSHOT_ENTRIES:
            self.snapshot_offset, self._snapshot_ms = (
                self.offset,
                now_ms,
            )  # first: what fails is not tried with each batch
            batch.snapshot = (self.offset, self.engine.snapshot())

    def finish(self, batch: Batch, answers: Sequence[Answer] = ()) -> None:
        """The batch is durable: say so to everyone who waits for it."""
        for key, seq in batch.marks.items():
            self._committed[key] = max(seq, self._committed.get(key, 0))
        for done, seq in batch.done:
            done(seq)
        for answer, value in batch.answers:
            answer(value)
        for item, result in zip(batch.operations, answers, strict=True):
            item.answer(result)

    # ------------------------------------------------------------------------------------------------------ leaves

    def _journal_ms(self, now_ms: int) -> int:
        """Journal time never runs back, but for a clock that was wrong by more than a little."""
        return self.received_ms if 0 < self.received_ms - now_ms <= CLOCK_BACK_MS_MAX else now_ms

    def _take_frame(self, batch: Batch, item: FrameItem) -> None:
        agent, message = item.agent, item.message
        offset, received_ms = self.offset + 1, batch.received_ms
        self._step(batch, Entry(offset, received_ms, FrameIn(agent, item.spool_id, item.frame)))
        batch.rows.append(Row(offset, received_ms, "frame", agent, item.spool_id, message))
        batch.bytes += len(message)
        self._heard[agent] = received_ms
        self._promise(batch, agent, item.spool_id, item.frame.seq, item.done)

    def _take_input(self, batch: Batch, item: InputItem) -> None:
        what = item.input
        offset, received_ms = self.offset + 1, batch.received_ms
        effects = self._step(batch, Entry(offset, received_ms, what))
        agent, body = "", _MSGPACK.encode(what)
        if type(what) is PulseIn:
            agent = what.agent
            self._heard[agent] = received_ms
        elif type(what) is Config:
            batch.configs.append((offset, received_ms, what))
        batch.rows.append(Row(offset, received_ms, KINDS[type(what)], agent, b"", body))
        batch.bytes += len(body)
        if item.answer is not None:
            answers = [effect for effect in effects if type(effect) is CommandAnswer]
            batch.answers.append((item.answer, answers[-1] if answers else CommandAnswer()))

    def _step(self, batch: Batch, entry: Entry) -> list[Effect]:
        effects = self.engine.step(entry)
        self.offset = entry.offset
        self.entries += 1
        if effects:
            batch.outcomes.append(Outcome(entry.offset, entry.received_ms, effects, digest(effects)))
            batch.notices += sum([type(effect) is Notice for effect in effects])
        return effects

    def _promise(self, batch: Batch, agent: str, spool_id: bytes, seq: int, done: Callable[[int], None]) -> None:
        key = (agent, spool_id)
        batch.marks[key] = seq
        if seq > self._admitted.get(key, 0):
            self._admitted[key] = seq
        batch.done.append((done, seq))

    def _live(self, agent: str, at_ms: int) -> Live:
        ids, times, values = self.engine.latest(agent)
        body = ids.astype("<i8").tobytes() + times.astype("<i8").tobytes() + values.astype("<f8").tobytes()
        return Live(agent, at_ms, body)


KINDS: dict[type, str] = {PulseIn: "pulse", Tick: "tick", Command: "command", Config: "config"}


def digest(effects: Sequence[Effect]) -> bytes:
    """8 bytes that are the same only for the same effects, in the same order."""
    return blake2b(_MSGPACK.encode(effects), digest_size=8).digest()


def entry_of(row: Row) -> Entry:
    """The journal entry of a stored row: what was stepped when it was written. ValueError when its body is damaged."""
    what: Input
    if row.kind == "frame":
        message = codec.decode_agent(row.body)
        if not isinstance(message, records.Frame):
            raise ValueError(f"journal entry {row.offset}: a {type(message).__name__} where a frame was expected")
        what = FrameIn(row.agent, row.spool_id, message)
    else:
        what = _INPUT.decode(row.body)
    return Entry(row.offset, row.received_ms, what)
