"""The spool alone: its bounds, its identity, full and broken disks."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.support.edge_rig import LAYOUT, Rig

from tocsin_agent.generation import Generation
from tocsin_agent.segments import HEADER, MEMORY_BYTES_MAX, Kind
from tocsin_agent.sidefiles import QUARANTINED_MAX
from tocsin_agent.spool import GENERATIONS_MAX, SpoolBusyError
from tocsin_proto.codec import decode_frame
from tocsin_proto.records import FRAME_BYTES_MAX, Clock, Event, Frame


@contextlib.contextmanager
def no_room_on_disk() -> Iterator[None]:
    """No file of this process may grow: a real refusal by the kernel, as of a full disk. The log is a file as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with capture_logs():
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_clean_restart_goes_on_under_the_same_id(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    for _ in range(5):
        rig.append()
    spool_id = rig.spool.spool_id
    rig.spool.close()
    rig.open()
    assert (rig.spool.spool_id, rig.spool.last_seq, rig.spool.first_unacked) == (spool_id, 5, 1)
    assert rig.append().seq == 6
    rig.deliver_all()
    assert rig.missing() == []
    assert not [gap for frame in rig.collector.frames() for gap in frame.gaps]


def test_a_restored_copy_of_the_folder_gets_a_new_id(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    rig.append()
    spool_id = rig.spool.spool_id
    rig.spool.close()
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    rig.folder = tmp_path / "copy"
    rig.open()
    assert rig.spool.spool_id != spool_id
    assert rig.spool.oldest.spool_id == spool_id


def test_how_far_the_collector_is_survives_a_restart(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    for _ in range(5):
        rig.append()
    rig.spool.ack(3)
    rig.spool.sync()
    rig.crash()
    rig.open()
    assert rig.spool.oldest.first_unacked == 4


def test_acked_segments_leave_the_disk(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    for _ in range(300):
        rig.append()
    held = len(list(tmp_path.glob("spool/*/*.seg")))
    rig.spool.ack(300)
    assert held > 5
    assert len(list(tmp_path.glob("spool/*/*.seg"))) == 1
    assert rig.spool.backlog_bytes == 0


def test_every_segment_declares_the_layouts_it_uses(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    for _ in range(200):
        rig.append()
    assert len(rig.spool.active.segments) > 3
    for segment in rig.spool.active.segments:
        first = decode_frame(next(segment.walk(HEADER.size)).raw)
        assert [layout.id for layout in first.layouts] == [LAYOUT.id]


def test_a_full_spool_drops_samples_first_keeps_events_and_tells_the_gap(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", bytes_max=64 * 1024)
    for n in range(2000):
        rig.append(event=n % 40 == 0)
    assert rig.spool.bytes_held <= 64 * 1024
    dropped = rig.spool.dropped_frames
    assert dropped > 1000
    rig.deliver_all()
    assert rig.missing() == []
    delivered = list(rig.collector.frames())
    assert sum(len(frame.events) for frame in delivered) == 50
    assert sum(len(frame.sections) for frame in delivered) == 2000 - dropped
    gaps = [gap for frame in delivered for gap in frame.gaps]
    assert {gap.reason for gap in gaps} == {"spool full"}
    assert sum(gap.frames for gap in gaps) == dropped
    assert delivered[-1].sections


def test_a_flood_of_events_stays_within_the_bound_too(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", bytes_max=64 * 1024)
    for _ in range(600):
        rig.append(event=True, filler=500)
    assert rig.spool.bytes_held <= 64 * 1024
    assert rig.spool.dropped_events > 0
    rig.deliver_all()
    assert rig.missing() == []


def test_what_may_have_arrived_is_not_called_lost(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", bytes_max=64 * 1024)
    for _ in range(30):
        rig.append()
    rig.connect()  # all of it arrives
    rig.link.disconnected()
    rig.collector.commit()
    for _ in range(1000):
        rig.append()
    rig.deliver_all()
    gaps = [gap for frame in rig.collector.frames() for gap in frame.gaps]
    assert min(gap.first_seq for gap in gaps) > 30
    assert rig.missing() == []


def test_what_is_too_old_goes_with_its_events_and_is_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    for _ in range(100):
        rig.append(event=True)
    rig.now_ms += 8 * 86_400_000
    for _ in range(100):
        rig.append()
    rig.deliver_all()
    delivered = list(rig.collector.frames())
    assert sum(len(frame.events) for frame in delivered) == 0
    assert [gap.reason for frame in delivered for gap in frame.gaps] == ["too old"]
    assert rig.missing() == []


def test_frames_of_a_clock_that_was_not_set_yet_are_not_called_old(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    rig.now_ms = 5_000
    for _ in range(100):
        rig.append()
    rig.now_ms = 1_760_000_000_000
    for _ in range(100):
        rig.append()
    assert rig.spool.dropped_frames == 0


def test_on_a_full_disk_frames_go_on_from_memory_and_reach_the_disk_later(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    for _ in range(3):
        rig.append()
    with no_room_on_disk():
        rig.connect()
        for _ in range(50):
            rig.append()
            rig.spool.sync()
            rig.pump()
        rig.commit()
        assert len(rig.collector.admitted) == 53  # the full disk itself gets reported
        for _ in range(20):
            rig.append()
    assert rig.spool.dropped_frames == 0
    rig.spool.sync()
    rig.crash()
    rig.open()
    rig.append()
    rig.deliver_all()
    assert rig.missing() == []
    assert sum(len(frame.sections) for frame in rig.collector.frames()) == 74


def test_when_memory_is_full_as_well_frames_are_counted_and_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", bytes_max=8 << 20, segment_bytes=1 << 20)
    rig.append()
    with no_room_on_disk():
        for _ in range(MEMORY_BYTES_MAX // 8000):
            rig.append(event=True, filler=8000)
    assert rig.spool.dropped_frames > 0
    assert rig.spool.gaps
    rig.append()
    rig.deliver_all()
    gaps = [gap for frame in rig.collector.frames() for gap in frame.gaps]
    assert [gap.reason for gap in gaps] == ["disk full"]
    assert gaps[0].frames == rig.spool.dropped_frames
    assert rig.missing() == []


def test_it_starts_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")
    rig = Rig(tmp_path / "spool")
    for _ in range(5):
        rig.append()
    rig.deliver_all()
    assert rig.missing() == []
    rig.spool.close()


def test_strange_files_in_the_folder_stop_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    rig.append()
    rig.crash()
    (generation,) = [path for path in rig.folder.iterdir() if path.name.startswith("0000")]
    (generation / "junk.seg").write_bytes(os.urandom(5000))
    (generation / "empty.seg").write_bytes(b"")
    (generation / "acked").write_bytes(b"\xff" * 20)
    (generation / "owed.json").write_bytes(b"{")
    (generation / "clean").write_bytes(b"not a marker")
    (generation / f"{9:020d}.seg").mkdir()
    (rig.folder / f"{7:08d}-{'ab' * 16}").write_text("no folder")
    rig.open()
    rig.append()
    rig.deliver_all()
    assert rig.missing() == []


@pytest.mark.parametrize("clean", [True, False])
def test_a_damaged_segment_is_quarantined_and_its_sound_records_arrive(tmp_path: Path, clean: bool) -> None:
    rig = Rig(tmp_path / "spool")
    for _ in range(200):
        rig.append()
    spool_id = rig.spool.spool_id
    if clean:
        rig.spool.close()
    else:
        rig.crash()
    paths = sorted(tmp_path.glob("spool/*/*.seg"))
    body = bytearray(paths[2].read_bytes())
    body[len(body) // 2] ^= 1
    paths[2].write_bytes(body)
    rig.open()
    assert rig.spool.spool_id != spool_id
    assert len(list(tmp_path.glob("spool/quarantine/*.bad"))) == 1
    rig.append()
    rig.deliver_all()
    assert sum(len(frame.sections) for frame in rig.collector.frames()) == 200
    corrupt = [gap for frame in rig.collector.frames() for gap in frame.gaps if gap.first_seq]
    assert [(gap.reason, gap.frames) for gap in corrupt] == [("corrupt", 1)]
    assert rig.missing() == []


def test_a_missing_middle_segment_is_a_gap_and_the_rest_arrives(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    for _ in range(200):
        rig.append()
    rig.crash()
    sorted(tmp_path.glob("spool/*/*.seg"))[2].unlink()
    rig.open()
    rig.append()
    rig.deliver_all()
    delivered = sum(len(frame.sections) for frame in rig.collector.frames())
    gaps = [gap for frame in rig.collector.frames() for gap in frame.gaps if gap.first_seq]
    assert delivered + gaps[0].frames == 201
    assert rig.missing() == []


def test_quarantine_never_grows_beyond_its_bound(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    for _ in range(800):
        rig.append()
    rig.crash()
    for path in tmp_path.glob("spool/*/*.seg"):
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(b"damage")
    rig.open()
    assert len(list(tmp_path.glob("spool/quarantine/*.bad"))) == QUARANTINED_MAX


def test_repair_twice_in_a_row_finds_nothing_more_to_repair(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    for _ in range(100):
        rig.append()
    rig.crash()
    path = sorted(tmp_path.glob("spool/*/*.seg"))[1]
    body = bytearray(path.read_bytes())
    body[700] ^= 0x10
    path.write_bytes(body)
    rig.open()
    repaired = path.read_bytes()
    rig.crash()
    rig.open()
    assert path.read_bytes() == repaired
    assert len(list(tmp_path.glob("spool/quarantine/*.bad"))) == 1


def test_unclean_starts_beyond_the_bound_give_up_the_oldest_and_tell_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    for _ in range(GENERATIONS_MAX + 3):
        rig.append()
        rig.crash()
        rig.open()
    assert len(rig.spool.generations) == GENERATIONS_MAX + 1
    assert rig.spool.dropped_frames > 0
    rig.append()
    rig.deliver_all()
    assert len(list(rig.folder.glob("0*"))) == 1
    assert rig.missing() == []


def test_two_agents_on_one_spool_are_refused(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from tocsin_agent.spool import Spool\n"
        "spool = Spool.open(pathlib.Path(sys.argv[1]), now_ms=0, random_bytes=os.urandom)\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "spool")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(SpoolBusyError, match="another agent"):
            Rig(tmp_path / "spool")
        assert other.stdin is not None
        other.stdin.close()
    Rig(tmp_path / "spool").spool.close()


def test_a_frame_that_breaks_the_contract_is_counted_and_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool")
    rig.append()
    big = Event("", "test", "big", rig.now_ms, text="x" * 8192)
    rig.spool.append(Frame(2, 1, rig.clock(), events=(big,) * (FRAME_BYTES_MAX // 8192 + 1)))
    rig.spool.append(Frame(3, 1, Clock(rig.now_ms, -1, 1)))
    assert (rig.spool.dropped_frames, rig.spool.next_seq()) == (2, (4, 1))
    rig.append()
    rig.deliver_all()
    told = [gap for frame in rig.collector.frames() for gap in frame.gaps]
    assert [(gap.first_seq, gap.last_seq, gap.reason) for gap in told] == [(2, 3, "refused")]


def test_remains_keep_their_kind_over_a_restart(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "spool", bytes_max=64 * 1024)
    for n in range(1000):
        rig.append(event=n % 40 == 0)
    kinds = [(segment.first_seq, segment.last_seq, segment.kind) for segment in rig.spool.active.segments]
    assert kinds[0][2] == Kind.EVENTS
    rig.spool.close()
    loaded = Generation.load(rig.spool.active.folder)
    assert [(segment.first_seq, segment.last_seq, segment.kind) for segment in loaded.segments] == kinds
