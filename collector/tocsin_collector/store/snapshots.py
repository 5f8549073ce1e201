"""Snapshot files: the engine's memory at one journal offset, so that a restart replays seconds instead of days.

Not truth: any of them may be missing or damaged, the next older one or the store's own truth takes its place.
The invariant: a file under its final name is whole, and says so by its checksum.
"""

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import structlog

log = structlog.get_logger(__name__)

KEEP = 2
_MAGIC = b"TOCSNAP1"
_DIGEST_BYTES = 32
_NAME_DIGITS = 20
_HEAD_BYTES = len(_MAGIC) + 8 + _DIGEST_BYTES


class Snapshot(NamedTuple):
    offset: int
    data: bytes


class Snapshots:
    """The folder of one engine's snapshots, `<offset>.snap` each."""

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        self.folder = folder
        self.keep = keep

    def write(self, offset: int, data: bytes) -> Path:
        """Write, sync, give it its name, then delete those beyond `keep`. OSError when the disk will not have it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{offset:0{_NAME_DIGITS}}.snap"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(_MAGIC + offset.to_bytes(8, "little") + _digest(offset, data))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(self.folder)
        for old in self._files()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> Iterator[Snapshot]:
        """The valid ones, newest first. A damaged one is told of and passed over."""
        for path in self._files():
            try:
                yield _read(path)
            except (OSError, ValueError) as exc:
                log.error("snapshot not usable, trying an older one", file=path.name, problem=str(exc))

    def floor(self) -> int:
        """Offset of the oldest kept, once there are `keep`: what a restart can never need is up to here. Else 0."""
        files = self._files()
        return int(files[self.keep - 1].stem) if len(files) >= self.keep else 0

    def highest(self) -> int:
        """The highest offset any snapshot names, valid or not; 0 without one."""
        return max((int(path.name[:_NAME_DIGITS]) for path in self.folder.glob("[0-9]*.snap*")), default=0)

    def set_aside(self, last: int) -> None:
        """Rename those of entries behind `last`, which the journal does not hold: they tell of another history."""
        for path in self._files():
            if int(path.stem) > last:
                path.replace(path.with_name(f"{path.name}.bad"))

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.glob("*.snap") if path.stem.isdecimal()), reverse=True)


def _read(path: Path) -> Snapshot:
    raw = path.read_bytes()
    head, data = raw[:_HEAD_BYTES], raw[_HEAD_BYTES:]
    if len(head) < _HEAD_BYTES or not head.startswith(_MAGIC):
        raise ValueError("not a snapshot file, or cut short")
    offset = int.from_bytes(head[len(_MAGIC) : len(_MAGIC) + 8], "little")
    if head[-_DIGEST_BYTES:] != _digest(offset, data):
        raise ValueError("checksum does not match")
    return Snapshot(offset, data)


def _digest(offset: int, data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES, key=offset.to_bytes(8, "little")).digest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
