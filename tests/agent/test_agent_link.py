"""The agent's side of the protocol, as scripts against a collector that keeps its promises, or breaks them."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.support.edge_rig import LAYOUT, START_MS, Rig

from tocsin_agent.link import (
    ANSWER_WITHIN_MS,
    NACK_EVERY_MS,
    NACKS_MAX,
    PULSE_EVERY_MS,
    WELCOME_WITHIN_MS,
    Deliver,
    Reconnect,
    Send,
    Stop,
    Wish,
)
from tocsin_proto import records as r
from tocsin_proto.codec import decode_agent, unbundle

UNLIMITED = 1 << 30


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "spool")


def said(wishes: list[Wish]) -> list[r.AgentMessage]:
    sent = [wish.raw for wish in wishes if isinstance(wish, Send)]
    return [decode_agent(one) for raw in sent for one in unbundle(raw) or [raw]]


def frames(wishes: list[Wish]) -> list[r.Frame]:
    return [message for message in said(wishes) if isinstance(message, r.Frame)]


def test_nothing_but_hello_is_said_before_the_welcome(rig: Rig) -> None:
    rig.append()
    (hello,) = said(rig.link.connected(rig.clock()))
    assert isinstance(hello, r.Hello)
    assert (hello.spool_id, hello.first_unacked, hello.last_seq) == (rig.spool.spool_id, 1, 1)
    assert rig.link.wake(rig.clock()) == []
    rig.link.received(rig.collector.welcome(1), rig.clock())
    assert [frame.seq for frame in frames(rig.link.wake(rig.clock()))] == [1]


def test_a_collector_that_never_welcomes_is_left(rig: Rig) -> None:
    rig.link.connected(rig.clock())
    rig.now_ms += WELCOME_WITHIN_MS
    assert rig.link.wake_in_ms(rig.clock()) == 0
    assert rig.link.wake(rig.clock()) == [Reconnect("no welcome", failed=True)]
    assert rig.link.wake(rig.clock()) == []


def test_a_collector_that_stops_answering_is_left_and_the_frames_stay(rig: Rig) -> None:
    rig.append()
    rig.connect()
    rig.now_ms += ANSWER_WITHIN_MS - 1
    assert not any(isinstance(wish, Reconnect) for wish in rig.link.wake(rig.clock()))
    rig.now_ms += 1
    assert rig.link.wake(rig.clock()) == [Reconnect("no answer", failed=True)]
    assert rig.spool.first_unacked == 1


def test_unacked_bytes_stay_within_the_credit(rig: Rig) -> None:
    rig.collector.credit_bytes = 1000
    for _ in range(50):
        rig.append()
    rig.connect()
    assert 0 < rig.link.flight_bytes <= 1000
    sent = len(rig.collector.admitted)
    assert sent < 50
    rig.commit()
    assert len(rig.collector.admitted) > sent
    rig.deliver_all()
    assert rig.missing() == []


def test_one_frame_larger_than_the_credit_goes_alone(rig: Rig) -> None:
    rig.collector.credit_bytes = 50
    for _ in range(3):
        rig.append()
    rig.connect()
    assert len(rig.collector.admitted) == 1
    rig.commit()
    assert len(rig.collector.admitted) == 2


def test_credit_zero_pauses_until_there_is_credit_again(rig: Rig) -> None:
    rig.collector.credit_bytes = 0
    rig.append()
    rig.connect()
    assert rig.collector.admitted == []
    rig.carry(rig.link.received(r.Credit(1000), rig.clock()))
    rig.pump()
    assert len(rig.collector.admitted) == 1


def test_a_pulse_goes_ahead_of_a_backlog_and_every_ten_seconds(rig: Rig) -> None:
    for _ in range(60):
        rig.append(event=True, filler=2000)
    rig.link.connected(rig.clock())
    rig.link.received(rig.collector.welcome(1), rig.clock())
    first, second, *_ = said(rig.link.wake(rig.clock()))
    assert isinstance(first, r.Pulse)
    assert first.backlog_bytes > 60 * 2000
    assert isinstance(second, r.Frame)
    while frames(rig.link.wake(rig.clock())):
        pass
    assert rig.link.wake_in_ms(rig.clock()) == PULSE_EVERY_MS
    rig.now_ms += PULSE_EVERY_MS
    assert isinstance(said(rig.link.wake(rig.clock()))[0], r.Pulse)


def test_one_wake_sends_so_little_that_a_pulse_never_waits_long(rig: Rig) -> None:
    for _ in range(100):
        rig.append(event=True, filler=2000)
    rig.link.connected(rig.clock())
    rig.link.received(rig.collector.welcome(1), rig.clock())
    assert len(frames(rig.link.wake(rig.clock(), bytes_max=10_000))) == 5


def test_an_ack_trims_and_is_the_only_thing_that_does(rig: Rig) -> None:
    for _ in range(5):
        rig.append()
    rig.connect()
    assert rig.spool.first_unacked == 1
    rig.carry(rig.link.received(r.Ack(3), rig.clock()))
    assert rig.spool.first_unacked == 4
    rig.link.received(r.Ack(2), rig.clock())
    assert rig.spool.first_unacked == 4


def test_an_ack_of_what_was_never_sent_trims_nothing(rig: Rig) -> None:
    rig.connect()
    for _ in range(5):
        rig.append()
    rig.link.received(r.Ack(5), rig.clock())
    assert rig.spool.first_unacked == 1
    assert rig.link.counters.protocol_errors == 1


def test_an_ack_may_name_frames_of_an_earlier_stream(rig: Rig) -> None:
    for _ in range(5):
        rig.append()
    rig.connect()  # all five arrive, none is committed yet
    rig.link.disconnected()
    rig.link.connected(rig.clock())
    rig.link.received(rig.collector.welcome(1), rig.clock())
    rig.link.received(r.Ack(5), rig.clock())
    assert rig.spool.first_unacked == 6
    assert frames(rig.link.wake(rig.clock())) == []


def test_nacks_behind_one_gap_rewind_once_a_second(rig: Rig) -> None:
    for _ in range(5):
        rig.append()
    rig.connect()
    rig.link.received(r.Nack(3), rig.clock())
    assert [frame.seq for frame in frames(rig.link.wake(rig.clock()))] == [3, 4, 5]
    rig.link.received(r.Nack(3), rig.clock())
    assert frames(rig.link.wake(rig.clock())) == []
    rig.now_ms += NACK_EVERY_MS
    rig.link.received(r.Nack(3), rig.clock())
    assert [frame.seq for frame in frames(rig.link.wake(rig.clock()))] == [3, 4, 5]


def test_a_collector_that_only_nacks_is_left(rig: Rig) -> None:
    rig.append()
    rig.connect()
    wishes: list[Wish] = []
    for _ in range(NACKS_MAX + 1):
        rig.now_ms += NACK_EVERY_MS
        wishes = rig.link.received(r.Nack(1), rig.clock())
        rig.link.wake(rig.clock())
    assert wishes == [Reconnect("the collector keeps asking for the same", failed=True)]


def test_a_rejected_frame_is_never_sent_again(rig: Rig) -> None:
    for _ in range(3):
        rig.append()
    rig.connect()
    rig.link.received(r.Reject(1, "malformed", "no such thing"), rig.clock())
    assert rig.spool.first_unacked == 2  # a dead letter is kept: with nothing before it, it is delivered
    rig.link.received(r.Reject(3, "malformed"), rig.clock())
    rig.link.disconnected()
    rig.link.connected(rig.clock())
    rig.link.received(rig.collector.welcome(2), rig.clock())
    assert [frame.seq for frame in frames(rig.link.wake(rig.clock()))] == [2]
    rig.append()
    (frame,) = frames(rig.link.wake(rig.clock()))
    assert (frame.seq, frame.follows) == (4, 2)
    assert [(gap.first_seq, gap.last_seq, gap.reason) for gap in frame.gaps] == [(3, 3, "rejected")]


def test_a_frame_that_kills_the_stream_twice_is_set_aside_and_told(rig: Rig) -> None:
    for _ in range(4):
        rig.append()

    def stream() -> list[int]:
        rig.link.connected(rig.clock())
        rig.link.received(rig.collector.welcome(rig.spool.oldest.acked + 1), rig.clock())
        return [frame.seq for frame in frames(rig.link.wake(rig.clock()))]

    assert stream() == [1, 2, 3, 4]
    rig.link.disconnected(suspicious=True)
    assert stream() == [1]  # one at a time from here on, so that the blame is exact
    rig.link.received(r.Ack(1), rig.clock())
    assert [frame.seq for frame in frames(rig.link.wake(rig.clock()))] == [2]
    rig.link.disconnected(suspicious=True)
    rig.link.connected(rig.clock())
    rig.link.received(rig.collector.welcome(2), rig.clock())
    (frame,) = frames(rig.link.wake(rig.clock()))
    assert (frame.seq, frame.follows) == (3, 1)
    assert [(gap.first_seq, gap.last_seq, gap.reason, gap.frames) for gap in frame.gaps] == [(2, 2, "poison", 1)]
    rig.link.received(r.Ack(3), rig.clock())
    assert [frame.seq for frame in frames(rig.link.wake(rig.clock()))] == [4]
    assert rig.link.counters.poisoned == 1
    assert len(list((rig.folder / "dead").iterdir())) == 1


def test_a_poison_frame_stays_aside_over_a_restart(rig: Rig) -> None:
    rig.append()
    for _ in range(2):
        rig.connect()
        rig.link.disconnected(suspicious=True)
        rig.collector.crash()
    rig.crash()
    rig.open()
    rig.append()
    rig.deliver_all()
    assert rig.link.counters.frames_sent == 1
    rig.append()
    rig.deliver_all()
    assert [gap.reason for frame in rig.collector.frames() for gap in frame.gaps] == ["unclean start", "poison"]
    assert rig.missing() == []


def test_a_network_that_fails_ten_times_condemns_no_frame(rig: Rig) -> None:
    rig.append()
    for _ in range(10):
        rig.connect()
        rig.link.disconnected()
        rig.collector.crash()
    rig.deliver_all()
    assert rig.link.counters.poisoned == 0
    assert [frame.seq for frame in rig.collector.frames()] == [1]


def test_drain_asks_for_a_later_reconnect_and_revoked_for_none(rig: Rig) -> None:
    rig.connect()
    assert rig.link.received(r.Drain(2500), rig.clock()) == [Reconnect("drained", after_ms=2500)]
    rig.link.disconnected()
    rig.connect()
    assert rig.link.received(r.Revoked("stolen"), rig.clock()) == [Stop("stolen")]
    assert rig.link.wake(rig.clock()) == []


def test_assignments_and_requests_are_handed_on_and_answers_are_sent(rig: Rig) -> None:
    rig.connect()
    assignment = r.Assignment("e1", (r.AssignedDevice("sw-1", "192.0.2.1", "snmp", b"{}"),))
    assert rig.link.received(assignment, rig.clock()) == [Deliver(assignment)]
    assert rig.link.received(r.ProbeRequest(7, "sw-1"), rig.clock()) == [Deliver(r.ProbeRequest(7, "sw-1"))]
    rig.link.say(r.AssignmentReport("e1", ("device plc-7: modbus is not accepted here",)))
    rig.link.say(r.ProbeAnswer(7, True))
    rig.pump()
    assert [report.etag for report in rig.collector.reports] == ["e1"]


def test_what_an_unclean_start_left_is_delivered_first_under_its_own_id(rig: Rig) -> None:
    for _ in range(3):
        rig.append()
    old_id = rig.spool.spool_id
    rig.connect()
    rig.collector.commit()  # durable at the collector, but the agent never hears of it
    rig.append()
    rig.crash()
    rig.now_ms += 60_000
    rig.open()
    assert rig.spool.spool_id != old_id
    made = rig.append()
    rig.deliver_all()
    assert [(spool_id, frame.seq) for spool_id, frame in rig.collector.admitted] == [
        *((old_id, seq) for seq in (1, 2, 3, 4)),
        (rig.spool.spool_id, 1),
    ]
    last = rig.collector.admitted[-1][1]
    assert [(gap.first_seq, gap.reason) for gap in last.gaps] == [(0, "unclean start")]
    assert (last.gaps[0].from_ms, last.gaps[0].to_ms) == (START_MS + 4000, START_MS + 64_000)
    assert made.seq == 1
    assert rig.missing() == []


def test_a_restored_copy_takes_a_new_id_and_loses_nothing_new(rig: Rig) -> None:
    for _ in range(3):
        rig.append()
    rig.deliver_all()
    rig.spool.close()
    rig.open()
    old_id = rig.spool.spool_id
    rig.append()
    rig.append()
    # The same folder ran elsewhere meanwhile: numbers 4 to 9 of this id are taken.
    rig.link.connected(rig.clock())
    assert rig.link.received(rig.collector.welcome(10), rig.clock()) == [Reconnect("new spool id", failed=True)]
    rig.link.disconnected()
    assert rig.spool.spool_id != old_id
    rig.deliver_all()
    assert rig.missing() == []
    assert [frame.seq for spool_id, frame in rig.collector.admitted if spool_id == rig.spool.spool_id] == [1, 2]


def test_a_collector_that_went_back_in_time_is_told_what_it_lost(rig: Rig) -> None:
    for _ in range(200):
        rig.append()
    rig.deliver_all()
    rig.append()
    first_held = rig.spool.active.segments[0].first_seq
    assert first_held > 10
    rig.link.connected(rig.clock())
    rig.link.received(rig.collector.welcome(5), rig.clock())
    frame = frames(rig.link.wake(rig.clock(), UNLIMITED))[0]
    assert (frame.seq, frame.follows) == (first_held, 4)
    assert [(gap.first_seq, gap.last_seq, gap.reason) for gap in frame.gaps] == [
        (5, first_held - 1, "acknowledged before")
    ]


def declared(rig: Rig, resume_from: int, *, again: bool = False) -> dict[int, int]:
    """One stream, every frame acknowledged but the last: which frames were sent, and how many layouts each declares."""
    rig.now_ms += 1000
    rig.link.connected(rig.clock())
    welcome = rig.collector.welcome(resume_from)
    rig.link.received(replace(welcome, declare_again=again), rig.clock())
    sent: dict[int, int] = {}
    while found := frames(rig.link.wake(rig.clock())):
        sent |= {frame.seq: len(frame.layouts) for frame in found}
        rig.link.received(r.Ack(found[-1].seq - 1), rig.clock())
    rig.link.disconnected()
    return sent


def test_a_collector_that_lost_the_declarations_gets_them_with_the_first_frame_that_uses_them(rig: Rig) -> None:
    for _ in range(8):
        rig.append()
    assert declared(rig, 1) == {1: 1, **dict.fromkeys(range(2, 9), 0)}
    assert rig.spool.first_unacked == 8
    # Another database: it adopts the spool where it is. The frame that waits was made when the layout was known.
    for _ in range(3):
        rig.append()
    assert declared(rig, 8, again=True) == {8: 1, 9: 0, 10: 0, 11: 0}
    # Frames made from now on declare for themselves.
    rig.append()
    rig.append()
    assert declared(rig, 11) == {11: 0, 12: 1, 13: 0}


def test_a_declaration_that_was_owed_goes_again_until_it_is_acknowledged(rig: Rig) -> None:
    for _ in range(4):
        rig.append()
    declared(rig, 1)
    rig.link.connected(rig.clock())
    rig.link.received(replace(rig.collector.welcome(4), declare_again=True), rig.clock())
    assert [len(frame.layouts) for frame in frames(rig.link.wake(rig.clock()))] == [1]
    rig.link.disconnected()
    assert declared(rig, 4) == {4: 1}  # nothing was acknowledged: the same frame carries it again
    rig.link.connected(rig.clock())
    rig.link.received(rig.collector.welcome(5), rig.clock())
    rig.link.disconnected()
    assert not rig.link._redeclaration.is_owed(rig.spool.active)


def test_after_a_restart_the_declarations_are_read_from_the_segment_that_still_holds_them(rig: Rig) -> None:
    for _ in range(6):
        rig.append()
    declared(rig, 1)
    rig.spool.close()
    rig.open()
    assert declared(rig, 6, again=True) == {6: 1}


def test_a_rejected_declaration_is_made_again(rig: Rig) -> None:
    for _ in range(2):
        rig.append()
    rig.connect()
    rig.link.received(r.Reject(1, "malformed"), rig.clock())
    rig.append()
    (frame,) = frames(rig.link.wake(rig.clock()))
    assert (frame.seq, [layout.id for layout in frame.layouts]) == (3, [LAYOUT.id])
