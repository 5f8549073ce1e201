"""An agent's spool and link against a model of a collector, in one thread and on fake time.

The model keeps the collector's promises (admit by `follows <= mark < seq`, acknowledge what is committed, forget what
is not when it dies) and nothing else, so that what the tests see is the agent's doing.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tocsin_agent.link import Link
from tocsin_agent.spool import Spool
from tocsin_agent.wishes import Facts, Reconnect, Send, Stop, Wish
from tocsin_proto import records as r
from tocsin_proto.codec import decode_agent, layout_id, pack_floats, unbundle

START_MS = 1_760_000_000_000
SERIES = (r.Series("", "test.value", "1", r.SeriesKind.GAUGE), r.Series("", "test.filler", "1", r.SeriesKind.GAUGE))
LAYOUT = r.Layout(layout_id(SERIES), SERIES)


@dataclass
class Collector:
    """What it admitted, in order, and how much of that is committed."""

    credit_bytes: int = r.CREDIT_BYTES
    admitted: list[tuple[bytes, r.Frame]] = field(default_factory=list)
    committed: int = 0  # how many of these survive a crash
    spool_id: bytes = b""
    hello: r.Hello | None = None
    pulses: list[r.Pulse] = field(default_factory=list)
    reports: list[r.AssignmentReport] = field(default_factory=list)

    def mark(self, spool_id: bytes, *, durable: bool = False) -> int:
        frames = self.admitted[: self.committed] if durable else self.admitted
        return max((frame.seq for one, frame in frames if one == spool_id), default=0)

    def receive(self, raw: bytes) -> list[r.CollectorMessage]:
        return [said for one in unbundle(raw) or [raw] for said in self._receive(one)]

    def _receive(self, raw: bytes) -> list[r.CollectorMessage]:
        message = decode_agent(raw)
        match message:
            case r.Hello():
                self.hello, self.spool_id = message, message.spool_id
                return [self.welcome(self.mark(self.spool_id, durable=True) + 1)]
            case r.Frame(seq, follows):
                mark = self.mark(self.spool_id)
                if seq <= mark:
                    return self.acks()
                if follows > mark:
                    return [r.Nack(mark + 1)]
                self.admitted.append((self.spool_id, message))
            case r.Pulse():
                self.pulses.append(message)
            case r.AssignmentReport():
                self.reports.append(message)
        return []

    def welcome(self, resume_from: int) -> r.Welcome:
        return r.Welcome(1, resume_from, self.credit_bytes, r.FRAME_BYTES_MAX, START_MS, "", "edge-1")

    def commit(self) -> list[r.CollectorMessage]:
        self.committed = len(self.admitted)
        return self.acks()

    def acks(self) -> list[r.CollectorMessage]:
        durable = self.mark(self.spool_id, durable=True)
        return [r.Ack(durable)] if durable else []

    def crash(self) -> None:
        del self.admitted[self.committed :]

    def frames(self) -> Iterator[r.Frame]:
        return (frame for _, frame in self.admitted)


@dataclass(frozen=True)
class Made:
    """One frame that was appended. `number` is in its sample and, if it has one, in its event."""

    number: int
    spool_id: bytes
    seq: int
    wall_ms: int
    has_event: bool


class Rig:
    """bytes_max, segment_bytes: of the spool. `made`: all that was ever appended."""

    def __init__(self, folder: Path, *, seed: int = 0, bytes_max: int = 1 << 20, segment_bytes: int = 4096) -> None:
        self.folder = folder
        self.bytes_max = bytes_max
        self.segment_bytes = segment_bytes
        self.random = random.Random(seed)
        self.now_ms = START_MS
        self.made: list[Made] = []
        self.collector = Collector()
        self.wishes: list[Wish] = []
        self._numbers = itertools.count(1)
        self.open()

    def open(self) -> None:
        self.spool = Spool.open(
            self.folder,
            bytes_max=self.bytes_max,
            age_ms_max=7 * 86_400_000,
            segment_bytes=self.segment_bytes,
            now_ms=self.now_ms,
            random_bytes=self.random.randbytes,
        )
        self.link = Link(self.spool, Facts("test"))

    def clock(self) -> r.Clock:
        return r.Clock(self.now_ms, max(0, self.now_ms - START_MS), 1)

    def append(self, *, event: bool = False, filler: int = 0) -> Made:
        """One second later, one frame."""
        self.now_ms += 1000
        number = next(self._numbers)
        self.spool.begin()
        seq, follows = self.spool.next_seq()
        events = (r.Event("", "test", str(number), self.now_ms, text="x" * filler),) if event else ()
        frame = r.Frame(
            seq,
            follows,
            self.clock(),
            layouts=() if self.spool.declares(LAYOUT.id) else (LAYOUT,),
            sections=(r.Section(LAYOUT.id, self.now_ms, pack_floats([float(number), 0.0])),),
            events=events,
        )
        made = Made(number, self.spool.spool_id, seq, self.now_ms, event)
        self.made.append(made)
        self.spool.append(frame)
        return made

    def connect(self) -> None:
        self.carry(self.link.connected(self.clock()))

    def carry(self, wishes: list[Wish]) -> None:
        """Takes what the link wants to the collector, its answers back, until neither has anything to say."""
        while wishes:
            answers: list[r.CollectorMessage] = []
            for wish in wishes:
                if isinstance(wish, Send):
                    answers += self.collector.receive(wish.raw)
                else:
                    self.wishes.append(wish)
            wishes = []
            for answer in answers:
                wishes += self.link.received(answer, self.clock())
            wishes += self.link.wake(self.clock())

    def pump(self) -> None:
        self.carry(self.link.wake(self.clock()))

    def commit(self) -> None:
        answers = self.collector.commit()
        if self.link.is_open:
            for answer in answers:
                self.carry(self.link.received(answer, self.clock()))
            self.pump()

    def deliver_all(self) -> None:
        """Streams until nothing is left, over as many reconnects as the link asks for."""
        for _ in range(1000):
            self.now_ms += 1000
            self.wishes.clear()
            self.connect()
            while not any(isinstance(wish, Reconnect | Stop) for wish in self.wishes):
                before = (self.spool.oldest.acked, self.link.counters.frames_sent)
                self.pump()
                self.commit()
                self.now_ms += 1001
                if before == (self.spool.oldest.acked, self.link.counters.frames_sent):
                    break
            self.link.disconnected()
            if self.spool.oldest is self.spool.active and self.spool.active.drained:
                return
        raise AssertionError("the link never came to an end")

    def crash(self) -> None:
        self.link.disconnected()
        self.spool.abandon()

    def missing(self) -> list[Made]:
        """Frames whose samples or event are neither delivered nor within a declared gap; delivered twice: raises."""
        samples: list[int] = []
        events: list[int] = []
        gaps: list[tuple[bytes, r.Gap]] = []
        for spool_id, frame in self.collector.admitted:
            samples += [int(_first(section.values)) for section in frame.sections]
            events += [int(event.name) for event in frame.events]
            gaps += [(spool_id, gap) for gap in frame.gaps]
        assert len(samples) == len(set(samples)), "a frame was delivered twice"
        assert len(events) == len(set(events)), "an event was delivered twice"

        def is_told(made: Made) -> bool:
            return any(
                (spool_id == made.spool_id and gap.first_seq <= made.seq <= gap.last_seq)
                or (not gap.first_seq and gap.from_ms <= made.wall_ms <= gap.to_ms)
                for spool_id, gap in gaps
            )

        delivered, told = set(samples), set(events)
        return [
            made
            for made in self.made
            if (made.number not in delivered or (made.has_event and made.number not in told)) and not is_told(made)
        ]


def _first(values: bytes) -> float:
    import struct

    number: float = struct.unpack_from("<d", values)[0]
    return number
