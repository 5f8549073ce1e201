"""One segment of the spool: a file of checksummed records, or the same bytes in memory while the disk takes none.

Not the order of segments, not what may be dropped (`generation`). Invariant: what `walk` yields has a right checksum
and a rising sequence number, whatever the bytes of the file; damage is stepped over, never an error.

    segment = header record*
    header  = magic(8) spool_id(16) crc32(4)
    record  = marker(4) crc32(4) length(4) kind(1) zero(3) seq(8) follows(8) time_ms(8) frame(length)   little-endian
"""

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from enum import IntEnum
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple

from tocsin_proto.records import FRAME_BYTES_MAX

MAGIC: Final = b"TOCSPL1\n"
MARKER: Final = b"\xf5\x9aTR"
HEADER: Final = struct.Struct("<8s16sI")
RECORD: Final = struct.Struct("<4sIIB3xQQq")
RECORD_BYTES_MAX: Final = RECORD.size + FRAME_BYTES_MAX
WINDOW_BYTES: Final = RECORD_BYTES_MAX + 64 * 1024  # one read; larger than a record, so that a cut is never damage
SCAN_BYTES: Final = 1024 * 1024
RESYNC_MAX: Final = 10_000  # markers tried behind damage before the rest of a segment is given up
MEMORY_BYTES_MAX: Final = 1024 * 1024  # while the disk takes nothing; a full disk must not hide itself


class Kind(IntEnum):
    """What is left of a frame. Higher: less."""

    FULL = 0
    EVENTS = 1  # its samples were dropped
    GAPS = 2  # only the account of what was dropped


class Entry(NamedTuple):
    """One record. `raw` is an encoded Frame with this `seq` and `follows`; `end` is where the next record begins."""

    seq: int
    follows: int
    time_ms: int
    kind: Kind
    raw: bytes
    end: int = 0


class Segment:
    """Appended to by one owner; read at any time."""

    def __init__(self, path: Path, spool_id: bytes) -> None:
        self.path = path
        self.spool_id = spool_id
        self.size = HEADER.size
        self.count = 0
        self.first_seq = 0
        self.last_seq = 0
        self.from_ms = 0
        self.to_ms = 0
        self.kind = Kind.GAPS  # the most that any of its records still holds
        self._file: FileIO | None = None
        self._memory: bytearray | None = None

    @classmethod
    def create(cls, path: Path, spool_id: bytes) -> "Segment":
        """An empty one on disk. OSError when the disk takes none."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        segment = cls(path, spool_id)
        file = FileIO(path, "w+")
        try:
            _write(file, _header(spool_id))
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        segment._file = file
        return segment

    @classmethod
    def in_memory(cls, path: Path, spool_id: bytes) -> "Segment":
        """An empty one that `persist` can put at `path` when the disk has recovered."""
        segment = cls(path, spool_id)
        segment._memory = bytearray(_header(spool_id))
        return segment

    @classmethod
    def write(cls, path: Path, spool_id: bytes, entries: Iterable[Entry]) -> "Segment":
        """A whole one, synced, in place of whatever was at `path`. OSError leaves `path` as it was."""
        fresh = path.with_suffix(".tmp")
        segment = cls.create(fresh, spool_id)
        try:
            for entry in entries:
                segment.append(entry)
            segment.sync()
            segment.seal()
            fresh.replace(path)
        except OSError:
            segment.seal()
            fresh.unlink(missing_ok=True)
            raise
        segment.path = path
        return segment

    @classmethod
    def load(cls, path: Path, spool_id: bytes) -> tuple["Segment", "Condition"]:
        """Reads and verifies every record. OSError when the file cannot be read at all."""
        segment = cls(path, spool_id)
        segment.size = path.stat().st_size
        header = segment._read(0, HEADER.size)
        sound = header == _header(spool_id)
        holes = 0
        end = HEADER.size if sound else 0
        for entry, start in segment._scan(HEADER.size if sound else 0, SCAN_BYTES):
            holes += start != end
            segment._count(entry)
            end = entry.end
        foreign = not sound and len(header) == HEADER.size and _intact(header)
        return segment, Condition(sound=sound, foreign=foreign, holes=holes, valid_end=end)

    @property
    def is_memory(self) -> bool:
        return self._memory is not None

    def append(self, entry: Entry) -> None:
        """OSError: nothing of the entry is left in the segment."""
        body = RECORD.pack(MARKER, 0, len(entry.raw), entry.kind, entry.seq, entry.follows, entry.time_ms)[8:]
        crc = zlib.crc32(entry.raw, zlib.crc32(body))
        record = b"%b%b%b%b" % (MARKER, crc.to_bytes(4, "little"), body, entry.raw)
        if self._memory is not None:
            if len(self._memory) + len(record) > MEMORY_BYTES_MAX:
                raise OSError(errno.ENOSPC, "the spool's memory is full as well")
            self._memory += record
        else:
            assert self._file is not None, "a sealed segment is never appended to"
            self._write_whole(self._file, record)
        self.size += len(record)
        self._count(entry)

    def sync(self) -> None:
        """OSError or ValueError (closed meanwhile: this may run in a thread of its own)."""
        if (file := self._file) is not None:
            handle = os.dup(file.fileno())
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def seal(self) -> None:
        """Ends appending. Reading goes on."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()

    def persist(self) -> None:
        """Moves a segment from memory to its path. OSError: it stays in memory."""
        assert self._memory is not None
        entries = list(self.walk(HEADER.size))
        written = Segment.write(self.path, self.spool_id, entries)
        self._memory = None
        self.size = written.size
        self._file = FileIO(self.path, "r+")
        self._file.seek(0, os.SEEK_END)

    def delete(self) -> None:
        self.seal()
        if self._memory is None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def walk(self, start: int, window: int = WINDOW_BYTES) -> Iterator[Entry]:
        """The sound records from byte `start` on, in order. OSError when the file cannot be read."""
        return (entry for entry, _ in self._scan(start, window))

    def _scan(self, start: int, window: int) -> Iterator[tuple[Entry, int]]:
        offset, last_seq, tries = start, 0, RESYNC_MAX
        while offset < self.size:
            data = self._read(offset, window)
            at_end = len(data) < window
            at = 0
            while at < len(data) and (at_end or len(data) - at >= RECORD_BYTES_MAX):
                entry = _parse(data, at)
                if entry is not None and entry.seq > last_seq:
                    last_seq = entry.seq
                    here, at = offset + at, entry.end
                    yield entry._replace(end=offset + at), here
                    continue
                tries -= 1
                found = data.find(MARKER, at + 1)
                if found < 0 or tries < 0:
                    # A marker may be cut by the window's end.
                    at = len(data) if at_end or tries < 0 else max(at + 1, len(data) - len(MARKER) + 1)
                    break
                at = found
            if at_end or tries < 0 or not data:
                return
            offset += at

    def _read(self, offset: int, count: int) -> bytes:
        if self._memory is not None:
            return bytes(self._memory[offset : offset + count])
        with FileIO(self.path, "r") as file:
            file.seek(offset)
            # Never beyond what was appended whole: a torn write behind `size` is not there.
            return _read_whole(file, max(0, min(count, self.size - offset)))

    def _write_whole(self, file: FileIO, record: bytes) -> None:
        try:
            _write(file, record)
        except OSError:
            # What was written in part would be damage for every later reader.
            with contextlib.suppress(OSError):
                file.truncate(self.size)
                file.seek(self.size)
            raise

    def _count(self, entry: Entry) -> None:
        if not self.count:
            self.first_seq, self.from_ms = entry.seq, entry.time_ms
        self.count += 1
        self.last_seq = entry.seq
        self.from_ms = min(self.from_ms, entry.time_ms)
        self.to_ms = max(self.to_ms, entry.time_ms)
        self.kind = min(self.kind, entry.kind)


class Condition(NamedTuple):
    """What loading found: `holes` between sound records, and where the last of these ends."""

    sound: bool  # the header is this spool's
    foreign: bool  # the header is another spool's
    holes: int
    valid_end: int


def _header(spool_id: bytes) -> bytes:
    return HEADER.pack(MAGIC, spool_id, zlib.crc32(MAGIC + spool_id))


def _intact(header: bytes) -> bool:
    return header == _header(header[8:24])


def _parse(data: bytes, at: int) -> Entry | None:
    """The record at exactly this place, or None when there is no sound one."""
    if len(data) - at < RECORD.size or not data.startswith(MARKER, at):
        return None
    _, crc, length, kind, seq, follows, time_ms = RECORD.unpack_from(data, at)
    end = at + RECORD.size + length
    if length > FRAME_BYTES_MAX or end > len(data):
        return None
    raw = data[at + RECORD.size : end]
    if zlib.crc32(raw, zlib.crc32(data[at + 8 : at + RECORD.size])) != crc or kind > Kind.GAPS:
        return None
    return Entry(seq, follows, time_ms, Kind(kind), raw, end)


def _write(file: FileIO, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += file.write(data[written:])


def _read_whole(file: FileIO, count: int) -> bytes:
    data = file.read(count)
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data
