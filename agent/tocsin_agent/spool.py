"""What the agent has to say and the collector has not yet acknowledged, on disk, within bounds.

Not the protocol (`link`) and not the files (`generation`, `segments`). Invariant: every appended frame is delivered or
lies within a declared gap, and no (spool_id, seq) ever names two frames.

A frame may be sent before it is synced. That is sound because an unclean start takes a new spool id: a number that
was sent and then lost with the power is never given to another frame of the same id. What an unclean start left behind
stays a generation of its own, with its old id and numbers, and is delivered first: what the collector had stored of it
without our knowing is then dropped there as a repeat.

All times are Unix milliseconds of the agent's clock; age is judged by the clock in the frames. One thread only,
except `fsync`.
"""

import contextlib
from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path
from typing import Final

import structlog
from msgspec.structs import replace

from tocsin_agent.generation import Generation, Lost
from tocsin_agent.opening import GENERATIONS_MAX, SpoolBusyError, goes_on, kept, locked, taken
from tocsin_agent.remains import entry_of, gap_of, joined
from tocsin_agent.segments import Entry, Kind, Segment
from tocsin_agent.sidefiles import NAME, Birth, Marker
from tocsin_proto.codec import WireError, decode_frame, encode_frame
from tocsin_proto.records import Frame, Gap, Layout

BYTES_MAX: Final = 256 * 1024 * 1024
AGE_MS_MAX: Final = 7 * 24 * 3600 * 1000
SEGMENT_BYTES: Final = 4 * 1024 * 1024
LAYOUTS_MAX: Final = 4096  # remembered, to declare them again in a new segment
DEAD: Final = "dead"
DEAD_MAX: Final = 16
BOUND_EVERY_MS: Final = 60_000
PLAUSIBLE_MS: Final = 1_577_836_800_000  # 2020: an earlier stamp is of a clock that was not set yet

__all__ = ["GENERATIONS_MAX", "Spool", "SpoolBusyError"]

log = structlog.get_logger()


class Spool:
    """Opened with `Spool.open`; then begin, next_seq, append for each frame, and sync once a second."""

    def __init__(
        self,
        folder: Path,
        *,
        bytes_max: int,
        age_ms_max: int,
        segment_bytes: int,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.folder = folder
        self.bytes_max = bytes_max
        self.age_ms_max = age_ms_max
        self.segment_bytes = min(segment_bytes, max(bytes_max // 8, 4096))
        self.dropped_frames = 0
        self.dropped_events = 0
        self.gaps: list[Gap] = []  # told by the next frame
        self._random_bytes = random_bytes
        self._lock: FileIO | None = None
        self._old: list[Generation] = []
        self._active: Generation
        self._declared: set[int] = set()
        self._declared_in: Segment | None = None
        self._layouts: dict[int, Layout] = {}
        self._opened_at = 0  # last_seq when opened
        self._failing = False
        self._sync_failed = False
        self._told: list[Gap] = []  # kept on disk until the frame that tells them is acked
        self._told_in = 0
        self._owes_on_disk = False
        self._bounded_ms = 0

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        bytes_max: int = BYTES_MAX,
        age_ms_max: int = AGE_MS_MAX,
        segment_bytes: int = SEGMENT_BYTES,
        now_ms: int,
        random_bytes: Callable[[int], bytes],
    ) -> "Spool":
        """Always succeeds, whatever is in the folder, even on a disk that takes nothing; SpoolBusyError apart."""
        spool = cls(
            folder,
            bytes_max=bytes_max,
            age_ms_max=age_ms_max,
            segment_bytes=segment_bytes,
            random_bytes=random_bytes,
        )
        spool._lock = locked(folder)
        spool._adopt(now_ms)
        spool._bound(now_ms)
        return spool

    # ------------------------------------------------------------------------------------------------ what it holds

    @property
    def spool_id(self) -> bytes:
        return self._active.spool_id

    @property
    def first_unacked(self) -> int:
        return self._active.first_unacked

    @property
    def last_seq(self) -> int:
        return self._active.last_seq

    @property
    def bytes_held(self) -> int:
        """On disk and in memory, all generations; quarantine and dead letters have bounds of their own."""
        return sum(generation.bytes_held for generation in self.generations)

    @property
    def backlog_bytes(self) -> int:
        """What the collector has not acknowledged."""
        return sum(generation.backlog_bytes for generation in self.generations)

    @property
    def generations(self) -> list[Generation]:
        """Oldest first; the last one is appended to."""
        return [*self._old, self._active]

    @property
    def oldest(self) -> Generation:
        """The one to deliver now."""
        return self._old[0] if self._old else self._active

    @property
    def active(self) -> Generation:
        return self._active

    # ------------------------------------------------------------------------------------------------------ writing

    def begin(self) -> None:
        """Before a frame is built: ends the segment if it is due, so that `declares` answers for the next one."""
        active = self._active.active
        if active is None or not active.count:
            return
        if self._sync_failed:
            self._sync_failed = False
            self._active.seal()
        now_ms = active.to_ms
        self._active.rotate(self.segment_bytes, now_ms - self.age_ms_max // 8)
        if self._active.active is None or now_ms - self._bounded_ms >= BOUND_EVERY_MS:
            self._bound(now_ms)

    def next_seq(self) -> tuple[int, int]:
        """The next frame's `seq` and `follows`."""
        return self._active.last_seq + 1, self._active.last_kept

    def declares(self, layout_id: int) -> bool:
        """Whether the segment that the next frame goes to has this layout already."""
        return self._declared_in is self._active.active and layout_id in self._declared

    def forget_declared(self) -> dict[int, Layout]:
        """The next frames declare all that they use. Returns the layouts that are known here, by id."""
        self._declared_in, self._declared = None, set()
        return dict(self._layouts)

    def append(self, frame: Frame) -> None:
        """Keeps the frame, with the gaps that are owed. What cannot be kept is dropped, counted, and owed as a gap."""
        assert frame.seq == self._active.last_seq + 1, (frame.seq, self._active.last_seq)
        self._layouts |= {layout.id: layout for layout in frame.layouts}
        # A clock that was set meanwhile: what was stamped before must not share the age of what comes now.
        self._active.rotate(2 * self.segment_bytes, frame.clock.wall_ms - self.age_ms_max // 8)
        segment: Segment | None = self._active.writable()
        while segment is not None:
            whole, told = self._completed(frame, segment)
            if whole is None:
                self._drop(frame, "refused")
                return
            try:
                self._active.append(whole)
            except OSError as exc:
                self._report(exc)
                segment = self._active.retreat()
                continue
            if told:
                self._told_in = frame.seq
                self._told = joined([*self._told, *self.gaps[:told]])
                self.gaps = self.gaps[told:]
            self._note(frame, segment)
            return
        self._drop(frame, "disk full")

    def sync(self) -> None:
        """Once a second: what was appended survives a power loss from here on. Never raises."""
        self.settle()
        self.fsync()

    def settle(self) -> None:
        """The quick part of `sync`: memory to disk where it can be, and how far the collector is. Never raises."""
        for generation in self.generations:
            try:
                generation.settle()
            except OSError as exc:
                self._report(exc)
        if self._told and self._active.acked >= self._told_in:
            self._told = []
        if self._owes_on_disk and not self.gaps and not self._told:
            self._owes_on_disk = not self._active.owe(())

    def fsync(self) -> None:
        """The slow part of `sync`; on a card that takes seconds it may run in a thread. Never raises."""
        active = self._active.active
        try:
            if active is not None:
                active.sync()
        except (OSError, ValueError) as exc:
            # After a failed fsync nobody knows what is on disk: the rest goes to a file that did not fail.
            self._report(exc)
            self._sync_failed = True
            return
        if self._failing and (active is None or not active.is_memory):
            self._failing = False
            log.info("spool is on disk again")

    def close(self) -> None:
        """A clean end: the next open goes on under the same id. Never raises."""
        marker = Marker(
            inode=0,
            last_seq=self._active.last_seq,
            last_kept=self._active.last_kept,
            sent=self._active.sent,
            dropped_frames=self.dropped_frames,
            dropped_events=self.dropped_events,
            gaps=tuple(self.gaps),
        )
        try:
            for generation in self._old:
                generation.settle()
                generation.abandon()
            self._active.close(marker)
        except OSError as exc:
            log.warning("spool could not be closed cleanly", error=str(exc))
        self._unlock()

    def abandon(self) -> None:
        """Lets go of files and lock without closing, as a kill would."""
        for generation in self.generations:
            generation.abandon()
        self._unlock()

    # ------------------------------------------------------------------------------------------------------ reading

    def read(self, from_seq: int, bytes_max: int) -> list[Entry]:
        return self._active.read(from_seq, bytes_max)

    def ack(self, seq: int) -> None:
        self._active.ack(seq)

    def set_aside(self, generation: Generation, seq: int) -> None:
        """A frame that kills the stream: never sent again, kept in `dead/` for whoever wants to know why."""
        generation.set_aside(seq, "poison")
        entries = generation.read(seq, 1)
        folder = self.folder / DEAD
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            if entries and entries[0].seq == seq:
                (folder / f"{generation.spool_id.hex()}-{seq}.frame").write_bytes(entries[0].raw)
            for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)[:-DEAD_MAX]:
                old.unlink()
        except OSError as exc:
            log.warning("dead letter cannot be kept", seq=seq, error=str(exc))

    def retire(self, generation: Generation, gaps: tuple[Gap, ...] = ()) -> None:
        """An old generation that is delivered. `gaps`: what it could not tell any more."""
        assert generation is not self._active
        self._old.remove(generation)
        self._owe(gaps)
        generation.remove()

    def renew(self) -> None:
        """A new id: the collector holds numbers under this one that we never gave out (we are a restored copy).

        What was appended since the start moves over; what was there before is what the collector has.
        """
        past, since = self._active, self._opened_at + 1
        self._opened_at = 0
        self._active = self._born(past.ordinal + 1, past.newest_ms)
        self._told = []
        self._owe(())
        while batch := past.read(since, self.segment_bytes):
            for entry in batch:
                since = entry.seq + 1
                self._move(entry)
        past.remove()

    # ------------------------------------------------------------------------------------------------------ helpers

    def _completed(self, frame: Frame, segment: Segment) -> tuple[Entry | None, int]:
        """The record of the frame, and how many owed gaps it tells. It declares all that this segment lacks."""
        known = self._declared if segment is self._declared_in else set()
        here = {layout.id for layout in frame.layouts}
        lacking = {one.layout for one in frame.sections} - known - here
        layouts = (*frame.layouts, *(self._layouts[id_] for id_ in sorted(lacking) if id_ in self._layouts))
        told = len(self.gaps)
        whole = replace(frame, layouts=layouts, gaps=(*frame.gaps, *self.gaps))
        # Too large with all of it: the gaps wait for the next frame, at last the layouts as well.
        for attempt, count in ((whole, told), (replace(whole, gaps=frame.gaps), 0), (frame, 0)):
            entry = entry_of(attempt, Kind.FULL)
            if entry is not None:
                return entry, count
        return None, 0

    def _note(self, frame: Frame, segment: Segment) -> None:
        if segment is not self._declared_in:
            self._declared_in, self._declared = segment, set()
        self._declared |= {layout.id for layout in frame.layouts} | {one.layout for one in frame.sections}
        if len(self._layouts) > LAYOUTS_MAX:
            self._layouts = {id_: one for id_, one in self._layouts.items() if id_ in self._declared}

    def _drop(self, frame: Frame, reason: str) -> None:
        try:
            encode_frame(frame)
        except WireError as exc:
            log.error("frame refused, it would break the wire's contract", seq=frame.seq, problem=str(exc))
        self._active.skip(frame.seq)
        self.dropped_frames += 1
        self.dropped_events += len(frame.events)
        self.gaps = joined([*self.gaps, *frame.gaps, gap_of(frame, reason)])

    def _owe(self, gaps: Iterable[Gap]) -> None:
        """For the next frame to tell."""
        self.gaps = joined([*self.gaps, *gaps])
        owed = (*self._told, *self.gaps)
        if owed:
            self._owes_on_disk = self._active.owe(owed)

    def _report(self, exc: Exception) -> None:
        if not self._failing:
            log.warning("spool cannot be written, frames stay in memory while there is room", error=str(exc))
        self._failing = True

    def _bound(self, now_ms: int) -> None:
        """Oldest samples first, events last, and everything that is too old."""
        self._bounded_ms = now_ms
        for generation in self.generations:
            while (n := generation.aged(now_ms - self.age_ms_max, PLAUSIBLE_MS)) is not None:
                self._count(generation.shrink(n, "too old", Kind.GAPS, self.segment_bytes))
        room = self.bytes_max - 2 * self.segment_bytes
        while self.bytes_held > room and self._shrink(Kind.FULL):
            pass
        while self._events_bytes() > room // 4 and self._shrink(Kind.EVENTS):
            pass
        while self.bytes_held > room and self._shrink(Kind.EVENTS):
            pass

    def _shrink(self, kind: Kind) -> bool:
        for generation in self.generations:
            n = generation.candidate(kind)
            if n is not None:
                self._count(generation.shrink(n, "spool full", Kind(kind + 1), self.segment_bytes))
                return True
        return False

    def _events_bytes(self) -> int:
        return sum(one.size for each in self.generations for one in each.segments if one.kind == Kind.EVENTS)

    def _count(self, lost: Lost) -> None:
        self.dropped_frames += lost.frames
        self.dropped_events += lost.events

    def _move(self, entry: Entry) -> None:
        self.begin()
        seq, follows = self.next_seq()
        with contextlib.suppress(WireError):
            self.append(replace(decode_frame(entry.raw), seq=seq, follows=follows))

    # ------------------------------------------------------------------------------------------------------ opening

    def _adopt(self, now_ms: int) -> None:
        found = self._found()
        newest = found[-1] if found else None
        marker = taken(newest.folder) if newest is not None else None
        if newest is not None and marker is not None and goes_on(newest, marker):
            self._old, owed = kept(found[:-1])
            self._resume(newest, marker)
        else:
            gaps = self._unclean(found, marker, now_ms)
            ordinal = max(self._ordinals(), default=0) + 1
            self._active = self._born(ordinal, now_ms)
            self._owe(gaps)
            self._old, owed = kept(found)
        self._owe(owed)
        self.dropped_frames += sum(gap.frames for gap in owed)

    def _ordinals(self) -> list[int]:
        try:
            return [int(match[1]) for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name))]
        except OSError:
            return []

    def _found(self) -> list[Generation]:
        try:
            folders = sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))
        except OSError:
            return []
        found = []
        for folder in folders:
            try:
                found.append(Generation.load(folder))
                for letter in self.folder.glob(f"{DEAD}/{found[-1].spool_id.hex()}-*.frame"):
                    seq = letter.stem.partition("-")[2]
                    if seq.isascii() and seq.isdecimal():
                        found[-1].set_aside(int(seq), "poison")
            except OSError as exc:
                log.warning("spool generation cannot be read", folder=folder.name, error=str(exc))
        return found

    def _resume(self, newest: Generation, marker: Marker) -> None:
        newest.last_seq, newest.last_kept, newest.sent = marker.last_seq, marker.last_kept, marker.sent
        self.dropped_frames, self.dropped_events = marker.dropped_frames, marker.dropped_events
        self._active = newest
        self._told = [gap for gap in newest.owed() if gap not in marker.gaps]
        self._told_in = newest.last_kept
        self._owe(marker.gaps)
        self._opened_at = newest.last_seq

    def _unclean(self, found: list[Generation], marker: Marker | None, now_ms: int) -> tuple[Gap, ...]:
        """What the new generation owes for the old ones."""
        if not found:
            return ()
        newest = found[-1]
        owed = list(newest.owed())
        if marker is not None:
            self.dropped_frames, self.dropped_events = marker.dropped_frames, marker.dropped_events
            owed += [gap for gap in marker.gaps if gap not in owed]
        since = newest.newest_ms or now_ms
        reason = "unclean start" if marker is None else "corrupt" if newest.damaged else "restored"
        return (*owed, Gap(0, 0, min(since, now_ms), now_ms, reason))

    def _born(self, ordinal: int, born_ms: int) -> Generation:
        self._declared_in, self._declared = None, set()
        return Generation.create(self.folder, self._random_bytes(16), ordinal, Birth(born_ms))

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
