"""Snapshot files: whole or passed over."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tocsin_collector.store.snapshots import Snapshots


def test_the_two_newest_are_kept_and_read_newest_first(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots")
    assert list(snapshots.newest()) == []
    assert (snapshots.floor(), snapshots.highest()) == (0, 0)
    snapshots.write(9, b"nine")
    assert snapshots.floor() == 0
    snapshots.write(100, b"hundred")
    snapshots.write(20_000, b"twenty thousand")
    assert list(snapshots.newest()) == [(20_000, b"twenty thousand"), (100, b"hundred")]
    assert (snapshots.floor(), snapshots.highest()) == (100, 20_000)
    assert len(list(snapshots.folder.iterdir())) == 2


def cut(raw: bytes) -> bytes:
    return raw[:-1]


def flip(raw: bytes) -> bytes:
    return raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:]


def rename(raw: bytes) -> bytes:
    return raw[:8] + (77).to_bytes(8, "little") + raw[16:]


def empty(raw: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip, rename, empty])
def test_a_damaged_one_is_told_of_and_the_older_one_taken(tmp_path: Path, damage: object) -> None:
    snapshots = Snapshots(tmp_path)
    snapshots.write(1, b"one, whole and sound")
    newest = snapshots.write(2, b"two, whole and sound")
    newest.write_bytes(damage(newest.read_bytes()))  # type: ignore[operator]
    with capture_logs() as logs:
        assert list(snapshots.newest()) == [(1, b"one, whole and sound")]
    assert [log["event"] for log in logs] == ["snapshot not usable, trying an older one"]


def test_half_a_file_of_a_crash_is_never_taken_for_a_snapshot(tmp_path: Path) -> None:
    (tmp_path / "00000000000000000005.partial").write_bytes(b"TOCSNAP1")
    (tmp_path / "notes.snap").write_bytes(b"")
    snapshots = Snapshots(tmp_path)
    assert list(snapshots.newest()) == []
    assert snapshots.highest() == 0


def test_those_of_a_lost_history_are_set_aside_but_their_numbers_stay_used(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    snapshots.write(10, b"ten")
    snapshots.write(500, b"five hundred")
    snapshots.set_aside(40)
    assert list(snapshots.newest()) == [(10, b"ten")]
    assert snapshots.highest() == 500
