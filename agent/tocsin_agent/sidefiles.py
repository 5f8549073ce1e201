"""The small files beside a generation's segments: each lost or torn without harm, because it is then not believed.

Not the segments (`segments`), and no decisions. Invariant: what a reader here returns was written whole by the writer
here, or is the answer for "there is nothing".
"""

import contextlib
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Final

import msgspec

from tocsin_agent.durable import sync_folder
from tocsin_proto.records import Gap

NAME: Final = re.compile(r"(\d{8})-([0-9a-f]{32})")
QUARANTINED_MAX: Final = 8  # damaged segments kept for whoever wants to know
BIRTH: Final = "birth.json"
END: Final = "end.json"
OWED: Final = "owed.json"
MARKER: Final = "clean"
ACKED: Final = "acked"


class Marker(msgspec.Struct, frozen=True):
    """Written when a spool is closed, removed when it is opened. `inode` is the marker's own: a copy has another."""

    inode: int
    last_seq: int
    last_kept: int
    sent: int
    dropped_frames: int
    dropped_events: int
    gaps: tuple[Gap, ...] = ()


class Birth(msgspec.Struct, frozen=True):
    born_ms: int


class End(msgspec.Struct, frozen=True):
    """Of a generation that another has followed: what it held then, so that a later loss of its tail is seen."""

    last_kept: int
    newest_ms: int


def write_marker(folder: Path, marker: Marker) -> None:
    """OSError: the next open sees an unclean start."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / MARKER).open("wb") as file:
        body = msgspec.json.encode(msgspec.structs.replace(marker, inode=os.fstat(file.fileno()).st_ino))
        file.write(body + b"\n%08x\n" % zlib.crc32(body))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_marker(folder: Path) -> Marker | None:
    """None: not closed cleanly, or a copy of a folder that was."""
    path = folder / MARKER
    try:
        body, crc, _ = path.read_bytes().split(b"\n")
        marker = msgspec.json.decode(body, type=Marker)
        inode = path.stat().st_ino
    except (OSError, ValueError):
        return None
    return marker if crc == b"%08x" % zlib.crc32(body) and marker.inode == inode else None


def quarantine(path: Path, *, keep: bool = False) -> None:
    """Moves a file (`keep`: a second name or copy) to the spool's quarantine, which never holds more than a few."""
    folder = path.parent.parent / "quarantine"
    target = folder / f"{path.parent.name}-{path.stem}.bad"
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True, mode=0o700)
        if not keep:
            path.replace(target)
        else:
            target.unlink(missing_ok=True)
            try:
                target.hardlink_to(path)
            except OSError:
                target.write_bytes(path.read_bytes())
        for old in sorted(folder.glob("*.bad"))[:-QUARANTINED_MAX]:
            old.unlink()


def read_acked(path: Path) -> tuple[int, int]:
    try:
        raw = path.read_bytes()
    except OSError:
        return 0, 0
    if len(raw) != 20 or zlib.crc32(raw[:16]) != int.from_bytes(raw[16:], "little"):
        return 0, 0
    seq, newest_ms = struct.unpack("<Qq", raw[:16])
    return seq, newest_ms


def write_acked(path: Path, seq: int, newest_ms: int) -> None:
    # In place and without a sync: when it is lost or torn, the collector says again how far it is.
    raw = struct.pack("<Qq", seq, newest_ms)
    path.write_bytes(raw + zlib.crc32(raw).to_bytes(4, "little"))
