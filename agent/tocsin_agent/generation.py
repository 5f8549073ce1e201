"""The records of one spool id: a folder of segments, oldest first, from the first unacked to the newest.

Not the choice of what to drop and when, nor the ids (`spool`). Invariant: sequence numbers rise without repeats; what
is missing in between is told by a gap in a later frame, or left as a hole that whoever sends can see (`follows`).
"""

import contextlib
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog

from tocsin_agent.durable import remove_folder, sync_folder, write_atomic
from tocsin_agent.remains import remains
from tocsin_agent.segments import HEADER, SCAN_BYTES, Condition, Entry, Kind, Segment
from tocsin_agent.sidefiles import (
    ACKED,
    BIRTH,
    END,
    NAME,
    OWED,
    Birth,
    End,
    Marker,
    quarantine,
    read_acked,
    write_acked,
    write_marker,
)
from tocsin_proto.records import Gap

ASIDE_MAX: Final = 1024
LOSSES_MAX: Final = 64  # reasons remembered for holes that no frame could tell

log = structlog.get_logger()


class Lost(NamedTuple):
    frames: int = 0
    events: int = 0


class Cursor(NamedTuple):
    """Where the last read ended, so that the next one does not search."""

    segment: Segment
    seq: int
    offset: int


class Generation:
    """Appended to while it is the newest; drained and removed when another has taken its place."""

    def __init__(self, folder: Path, spool_id: bytes, ordinal: int) -> None:
        self.folder = folder
        self.spool_id = spool_id
        self.ordinal = ordinal
        self.segments: list[Segment] = []
        self.last_seq = 0  # numbers are never used again, not even those of frames that no disk would take
        self.last_kept = 0
        self.acked = 0
        self.sent = 0  # what the collector may hold without our knowing: acked < seq <= sent
        self.damaged = False
        self.birth = Birth(0)
        self.end: End | None = None
        self.aside: dict[int, str] = {}  # never to be sent again, and why
        self._active: Segment | None = None
        self._cursor: Cursor | None = None
        self._losses: list[Gap] = []
        self._acked_on_disk = 0
        self._acked_ms = 0  # newest record when that was written

    @classmethod
    def create(cls, root: Path, spool_id: bytes, ordinal: int, birth: Birth) -> "Generation":
        """A disk that takes nothing is no error: the folder comes with the first segment that it takes."""
        generation = cls(root / f"{ordinal:08d}-{spool_id.hex()}", spool_id, ordinal)
        generation.birth = birth
        try:
            generation.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(generation.folder / BIRTH, msgspec.json.encode(birth))
            sync_folder(root)
        except OSError as exc:
            log.warning("spool folder cannot be written, frames stay in memory", error=str(exc))
        return generation

    @classmethod
    def load(cls, folder: Path) -> "Generation":
        """Verifies all there is. Damaged segments are quarantined and what is sound in them stays."""
        match = NAME.fullmatch(folder.name)
        assert match is not None, folder
        generation = cls(folder, bytes.fromhex(match[2]), int(match[1]))
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            generation.birth = msgspec.json.decode((folder / BIRTH).read_bytes(), type=Birth)
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            generation.end = msgspec.json.decode((folder / END).read_bytes(), type=End)
        for leftover in folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                leftover.unlink()
        paths = sorted(folder.glob("*.seg"))
        for path in paths:
            generation._adopt(path, is_last=path == paths[-1])
        generation.acked, generation._acked_ms = read_acked(folder / ACKED)
        generation._acked_on_disk = generation.acked
        generation.last_seq = generation.last_kept = max(generation.last_kept, generation.acked)
        generation._trim()
        return generation

    @property
    def bytes_held(self) -> int:
        return sum(segment.size for segment in self.segments)

    @property
    def backlog_bytes(self) -> int:
        """What is not acked; of a segment that is acked in part, its share."""
        total = 0
        for one in self.segments:
            waiting = one.last_seq - max(self.acked, one.first_seq - 1)
            total += one.size * max(0, waiting) // (one.last_seq - one.first_seq + 1)
        return total

    @property
    def first_unacked(self) -> int:
        """The oldest number that is held and not acked; last_seq + 1 when there is none."""
        if self.acked >= self.last_kept or not self.segments:
            return self.last_seq + 1
        return max(self.acked + 1, self.segments[0].first_seq)

    @property
    def drained(self) -> bool:
        return self.acked >= self.last_kept

    @property
    def active(self) -> Segment | None:
        return self._active

    def span_ms(self) -> tuple[int, int] | None:
        """Times of the oldest and the newest record on disk, acked or not."""
        if not self.segments:
            return None
        return min(one.from_ms for one in self.segments), max(one.to_ms for one in self.segments)

    def owe(self, gaps: tuple[Gap, ...]) -> bool:
        """Keeps gaps until they have arrived: the next start may be an unclean one. False: not kept."""
        try:
            if gaps:
                write_atomic(self.folder / OWED, msgspec.json.encode(gaps))
            else:
                (self.folder / OWED).unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def owed(self) -> tuple[Gap, ...]:
        try:
            return msgspec.json.decode((self.folder / OWED).read_bytes(), type=tuple[Gap, ...])
        except (OSError, msgspec.MsgspecError):
            return ()

    @property
    def newest_ms(self) -> int:
        """Time of the newest record that is or was here, as far as is known."""
        return max(self.birth.born_ms, self._acked_ms, max((one.to_ms for one in self.segments), default=0))

    def conclude(self) -> Gap | None:
        """At every open, for a generation that another follows. A gap when it lost its tail since the last time."""
        before, self.end = self.end, End(self.last_kept, self.newest_ms)
        if before == self.end:
            return None
        try:
            write_atomic(self.folder / END, msgspec.json.encode(self.end))
        except OSError as exc:
            log.warning("spool folder cannot be written", folder=self.folder.name, error=str(exc))
        if before is None or before.last_kept <= self.last_kept:
            return None
        lost = before.last_kept - self.last_kept
        return Gap(0, 0, min(self.newest_ms, before.newest_ms), before.newest_ms, "corrupt", lost)

    def count(self) -> int:
        """Records held, roughly: what is acked of the oldest segment is among them."""
        return sum(segment.count for segment in self.segments)

    # ------------------------------------------------------------------------------------------------------ writing

    def rotate(self, segment_bytes: int, from_ms_min: int) -> None:
        """Ends the active segment when it is due by size or age. One in memory stays until the disk takes it."""
        active = self._active
        if active is None or active.is_memory or not active.count:
            return
        if active.size >= segment_bytes or active.from_ms < from_ms_min:
            self.seal()

    def seal(self) -> None:
        if self._active is not None and not self._active.is_memory:
            self._active.seal()
            self._active = None

    def writable(self) -> Segment:
        """The segment that the next append goes to."""
        if self._active is None:
            path = self._path(self.last_seq + 1)
            try:
                self._active = Segment.create(path, self.spool_id)
            except OSError as exc:
                log.warning("spool segment cannot be created, frames stay in memory", error=str(exc))
                self._active = Segment.in_memory(path, self.spool_id)
        return self._active

    def retreat(self) -> Segment | None:
        """To memory, after the disk refused an append. None: that was memory already."""
        active = self._active
        if active is None or active.is_memory:
            return None
        active.seal()
        if not active.count:
            active.delete()
        self._active = Segment.in_memory(self._path(self.last_seq + 1), self.spool_id)
        return self._active

    def append(self, entry: Entry) -> None:
        """OSError: not kept, and the number is not taken."""
        assert entry.seq == self.last_seq + 1, (entry.seq, self.last_seq)
        segment = self.writable()
        segment.append(entry)
        if segment.count == 1:
            self.segments.append(segment)
        self.last_seq = self.last_kept = entry.seq

    def skip(self, seq: int) -> None:
        """Takes the number of a frame that could not be kept."""
        assert seq == self.last_seq + 1, (seq, self.last_seq)
        self.last_seq = seq

    def settle(self) -> None:
        """Tries the disk again for what is in memory, and writes how far the collector has acked."""
        if self._active is not None and self._active.is_memory and self._active.count:
            self._active.persist()
        if self.acked != self._acked_on_disk:
            write_acked(self.folder / ACKED, self.acked, self.newest_ms)
            self._acked_on_disk = self.acked

    def close(self, marker: Marker) -> None:
        """OSError: the next open will see an unclean start, which is the truth."""
        self.settle()
        if self._active is not None:
            self._active.sync()
        self.abandon()
        write_marker(self.folder, marker)

    def abandon(self) -> None:
        """Lets go of the files without a word, as a kill would."""
        for segment in self.segments:
            segment.seal()
        if self._active is not None:
            self._active.seal()
            self._active = None

    # ------------------------------------------------------------------------------------------------------ reading

    def read(self, from_seq: int, bytes_max: int) -> list[Entry]:
        """Sound records with seq >= from_seq, in order: at least one if there is one, else at most `bytes_max`."""
        out: list[Entry] = []
        total = 0
        for segment in [one for one in self.segments if one.last_seq >= from_seq]:
            try:
                for entry in segment.walk(self._start(segment, from_seq)):
                    if entry.seq < from_seq:
                        continue
                    total += len(entry.raw)
                    if out and total > bytes_max:
                        return out
                    out.append(entry)
                    from_seq = entry.seq + 1
                    self._cursor = Cursor(segment, from_seq, entry.end)
            except OSError as exc:
                log.warning("spool segment cannot be read", segment=segment.path.name, error=str(exc))
                self._lose(segment, "unreadable")
        return out

    def ack(self, seq: int) -> None:
        """All up to `seq` are durable at the collector: whole segments of them go."""
        self.acked = max(self.acked, min(seq, self.last_seq))
        self._trim()

    def explain(self, first_seq: int, last_seq: int) -> str:
        """Why these numbers are missing."""
        if last_seq <= self.acked:
            return "acknowledged before"  # the collector has gone back to an older state
        reasons = {gap.reason for gap in self._losses if gap.first_seq <= last_seq and gap.last_seq >= first_seq}
        reasons |= {reason for seq, reason in self.aside.items() if first_seq <= seq <= last_seq}
        return reasons.pop() if len(reasons) == 1 else "several" if reasons else "corrupt"

    def set_aside(self, seq: int, reason: str) -> None:
        """The record stays until what follows is acked, but is not sent again."""
        self.aside[seq] = reason
        if len(self.aside) > ASIDE_MAX:
            del self.aside[min(self.aside)]

    def remember(self, gap: Gap) -> None:
        """The reason of a hole that the next frame sent has to tell."""
        self._losses = [*self._losses[-LOSSES_MAX + 1 :], gap]

    def remove(self) -> None:
        self.abandon()
        remove_folder(self.folder)
        self.segments.clear()

    # ----------------------------------------------------------------------------------------------------- dropping

    def candidate(self, kind: Kind) -> int | None:
        """The oldest segment that holds this kind and may be rewritten."""
        return next((n for n, one in enumerate(self.segments) if one.kind == kind and self._rewritable(one)), None)

    def aged(self, before_ms: int, plausible_ms: int) -> int | None:
        """The oldest rewritable segment whose newest record is older. Stamps of an unset clock have no age."""
        for n, one in enumerate(self.segments):
            if one.kind != Kind.GAPS and plausible_ms <= one.to_ms < before_ms and self._rewritable(one):
                return n
        return None

    def shrink(self, n: int, reason: str, keep: Kind, segment_bytes: int) -> Lost:
        """Replaces segment `n` by what remains of it, together with the remains before it where they fit."""
        segment = self.segments[n]
        before = self.segments[n - 1] if n else None
        if before is not None and (
            before.kind < keep or not self._rewritable(before) or before.size + segment.size > 2 * segment_bytes
        ):
            before = None
        old = [segment] if before is None else [before, segment]
        try:
            rest = remains(self._unacked(old), reason, keep)
        except OSError as exc:
            log.warning("spool segment cannot be read", segment=segment.path.name, error=str(exc))
            return self._lose(segment, "unreadable")
        if not rest.entries:  # all of it was acked meanwhile
            segment.delete()
            self.segments.remove(segment)
            return Lost()
        try:
            # In place of the older: a crash in between leaves numbers twice, which loading and reading step over.
            fresh = Segment.write(old[0].path, self.spool_id, rest.entries)
        except OSError:
            return self._lose(segment, reason)
        if before is not None:
            segment.delete()
        self.segments[n + 1 - len(old) : n + 1] = [fresh]
        return Lost(rest.frames_lost, rest.events_lost)

    def _rewritable(self, segment: Segment) -> bool:
        # What may have reached the collector is left alone until it says so: a gap must not cover what arrived.
        in_flight = segment.first_seq <= self.sent and segment.last_seq > self.acked
        return segment is not self._active and not segment.is_memory and not in_flight

    def _unacked(self, segments: list[Segment]) -> Iterator[Entry]:
        entries = chain.from_iterable(segment.walk(HEADER.size, SCAN_BYTES) for segment in segments)
        return (entry for entry in entries if entry.seq > self.acked)

    def _lose(self, segment: Segment, reason: str) -> Lost:
        """The whole segment, without an account on disk: whoever sends next sees the hole and tells it."""
        lost = segment.last_seq - max(segment.first_seq - 1, self.acked)
        self.remember(Gap(segment.first_seq, segment.last_seq, segment.from_ms, segment.to_ms, reason, lost))
        self.segments.remove(segment)
        if reason == "unreadable":
            quarantine(segment.path)
        else:
            segment.delete()
        return Lost(lost)

    # ------------------------------------------------------------------------------------------------------ helpers

    def _adopt(self, path: Path, *, is_last: bool) -> None:
        try:
            segment, condition = Segment.load(path, self.spool_id)
        except OSError as exc:
            log.warning("spool segment cannot be read", segment=path.name, error=str(exc))
            self.damaged = True
            quarantine(path)
            return
        whole = condition.sound and not condition.holes and condition.valid_end == segment.size
        if condition.foreign or (not segment.count and not whole):
            self.damaged = True
            quarantine(path)
            return
        if segment.last_seq <= self.last_kept:  # empty, or left by a rewrite that a crash cut short
            segment.delete()
            return
        if is_last and condition.sound and not condition.holes and not whole:
            self._cut(segment, condition)
        elif not whole:
            self.damaged = True
            segment = self._repaired(segment)
        self.segments.append(segment)
        self.last_kept = segment.last_seq

    def _cut(self, segment: Segment, condition: Condition) -> None:
        """The tail that was being written when the agent died. Never acked: it was never whole."""
        with contextlib.suppress(OSError):
            os.truncate(segment.path, condition.valid_end)
        segment.size = condition.valid_end
        self.damaged = True

    def _repaired(self, segment: Segment) -> Segment:
        """The sound records in a segment of their own, the damaged file in quarantine."""
        log.warning("spool segment is damaged, its sound records are kept", segment=segment.path.name)
        quarantine(segment.path, keep=True)
        try:
            return Segment.write(segment.path, self.spool_id, segment.walk(0, SCAN_BYTES))
        except OSError:
            return segment  # readers step over the damage

    def _trim(self) -> None:
        while self.segments and self.segments[0].last_seq <= self.acked:
            oldest = self.segments[0]
            if oldest is self._active:
                if not oldest.is_memory:
                    return
                self._active = None
            oldest.delete()
            self.segments.pop(0)

    def _start(self, segment: Segment, from_seq: int) -> int:
        cursor = self._cursor
        if cursor is not None and cursor.segment is segment and cursor.seq <= from_seq:
            return cursor.offset
        return HEADER.size

    def _path(self, seq: int) -> Path:
        return self.folder / f"{seq:020d}.seg"
