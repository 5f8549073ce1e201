"""One stream's protocol, as scripts: what comes in, what is wished for. And its laws, under anything that may come in."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.ingest_rig import frame, hello

from tocsin_collector.core.intake import Admission, admit
from tocsin_collector.ingest.poison import Claim, claim_of
from tocsin_collector.ingest.session import (
    Action,
    Close,
    DeadLetter,
    Greeted,
    Limits,
    OfferFrame,
    OfferPulse,
    Report,
    Send,
    Session,
)
from tocsin_proto import records
from tocsin_proto.codec import bundle, decode_agent, encode_agent
from tocsin_proto.v1 import tocsin_pb2 as pb

S, T = b"s" * 16, b"t" * 16
CLOCK = records.Clock(1_790_000_000_000, 1_000, 7)
NOW = 1_790_000_000_500


class Book:
    """The pipeline's book, in memory: admitted by the core's rule, durable when the script says so."""

    def __init__(self) -> None:
        self.admitted: dict[bytes, int] = {}
        self.durable: dict[bytes, int] = {}

        self.undeclared: set[bytes] = set()

    def adopt(self, agent: str, spool_id: bytes, first_unacked: int) -> bool:
        if spool_id not in self.admitted and first_unacked > 1:
            self.admitted[spool_id] = self.durable[spool_id] = first_unacked - 1
            self.undeclared.add(spool_id)
        return spool_id in self.undeclared

    def declaring(self, agent: str, spool_id: bytes) -> None:
        self.undeclared.discard(spool_id)

    def admit(self, agent: str, spool_id: bytes, seq: int, follows: int) -> Admission:
        verdict = admit(self.high_water(agent, spool_id), seq, follows)
        if verdict is Admission.ACCEPT:
            self.admitted[spool_id] = seq
        return verdict

    def high_water(self, agent: str, spool_id: bytes) -> int:
        return self.admitted.get(spool_id, 0)

    def committed(self, agent: str, spool_id: bytes) -> int:
        return self.durable.get(spool_id, 0)


class Play:
    def __init__(self, assignment: records.Assignment | None = None, limits: Limits | None = None) -> None:
        self.book = Book()
        self.assignment = assignment
        self.now = NOW
        self.session = Session("edge-1", self.book, lambda: self.assignment, limits)

    def get(self, *messages: records.AgentMessage | bytes) -> list[Action]:
        raws = [message if isinstance(message, bytes) else encode_agent(message) for message in messages]
        return [action for raw in raws for action in self.session.received(raw, self.now)]

    def commit(self, seq: int, spool: bytes = S) -> list[records.CollectorMessage]:
        self.book.durable[spool] = seq
        self.session.committed(spool, seq)
        return self.session.flush()


def sent(actions: Sequence[Action], kind: type) -> list[Any]:
    return [action.message for action in actions if isinstance(action, Send) and isinstance(action.message, kind)]


def poison(seq: int, follows: int) -> bytes:
    return pb.AgentMessage(frame=pb.Frame(seq=seq, follows=follows, sections=[pb.Section()])).SerializeToString()


def test_a_hello_is_greeted_welcomed_and_anchors_the_clock() -> None:
    actions = Play().get(hello(S, clock=CLOCK, last_seq=9))
    assert [type(action) for action in actions] == [Greeted, Send, OfferPulse]
    (welcome,) = sent(actions, records.Welcome)
    assert welcome == records.Welcome(1, 1, records.CREDIT_BYTES, records.FRAME_BYTES_MAX, NOW, "", "edge-1")
    assert actions[-1] == OfferPulse(records.Pulse(CLOCK, last_seq=9))


def test_an_agent_resumes_behind_what_is_durable_not_behind_what_was_only_admitted() -> None:
    play = Play()
    play.get(hello(S), frame(1), frame(2), frame(3))
    play.commit(1)
    other = Session("edge-1", play.book)
    actions = other.received(encode_agent(hello(S, last_seq=3)), NOW)
    assert sent(actions, records.Welcome)[0].resume_from == 2
    # What was admitted on the first stream is not offered again, and is acknowledged on the second once it is durable.
    assert other.received(encode_agent(frame(2)), NOW) == ()
    assert other.flush() == [records.Ack(1)]
    play.book.durable[S] = 3
    other.committed(S, 3)
    assert other.flush() == [records.Ack(3)]


def test_a_spool_that_the_collector_never_heard_of_goes_on_in_its_middle() -> None:
    play = Play()
    actions = play.get(hello(S, first_unacked=41, last_seq=50))
    assert sent(actions, records.Welcome)[0].resume_from == 41
    assert [type(action) for action in play.get(frame(41))] == [OfferFrame]


def test_an_agent_whose_declarations_are_lost_is_asked_for_them_until_it_has_heard_of_it() -> None:
    play = Play()
    asked = [
        sent(Session("edge-1", play.book).received(encode_agent(hello(S, first_unacked=41, last_seq=50)), NOW), kind)
        for kind in (records.Welcome, records.Welcome)
    ]
    assert [welcome.declare_again for (welcome,) in asked] == [True, True]  # the first stream died before a frame came
    (welcome,) = sent(play.get(hello(S, first_unacked=41, last_seq=50)), records.Welcome)
    assert welcome.declare_again
    play.get(frame(41))
    (welcome,) = sent(
        Session("edge-1", play.book).received(encode_agent(hello(S, first_unacked=41, last_seq=50)), NOW),
        records.Welcome,
    )
    assert not welcome.declare_again


def test_one_ack_answers_all_that_a_commit_holds() -> None:
    play = Play()
    play.get(hello(S), *(frame(seq) for seq in range(1, 6)))
    for seq in range(1, 5):
        play.book.durable[S] = seq
        play.session.committed(S, seq)
    assert play.session.flush() == [records.Ack(4)]
    assert play.session.flush() == []
    assert play.commit(5) == [records.Ack(5)]
    assert play.session.in_flight_bytes == 0


def test_a_frame_is_offered_with_the_bytes_that_came() -> None:
    play = Play()
    play.get(hello(S))
    raw = encode_agent(frame(1))
    (offer,) = play.get(raw)
    assert isinstance(offer, OfferFrame)
    assert (offer.spool_id, offer.frame.seq, offer.raw) == (S, 1, raw)


def test_one_nack_for_a_gap_and_another_when_the_agent_tries_again_and_still_has_it() -> None:
    play = Play()
    play.get(hello(S), frame(1))
    assert play.get(frame(3), frame(4), frame(5)) == [Send(records.Nack(2))]
    assert play.get(frame(3), frame(4)) == [Send(records.Nack(2))]
    assert [type(action) for action in play.get(frame(2), frame(3))] == [OfferFrame, OfferFrame]
    assert play.get(frame(9)) == [Send(records.Nack(4))]


def test_a_gap_that_is_never_filled_ends_the_stream() -> None:
    play = Play(limits=Limits(nack_rounds_max=3))
    actions = play.get(hello(S), *[frame(3)] * 10)
    assert len(sent(actions, records.Nack)) == 3
    assert isinstance(actions[-1], Close)
    assert actions[-1].code == "FAILED_PRECONDITION"
    assert play.get(frame(1)) == []
    assert play.book.admitted == {}


def test_a_drop_that_the_agent_declares_is_no_gap() -> None:
    play = Play()
    play.get(hello(S), frame(1))
    assert [type(action) for action in play.get(frame(10, follows=1))] == [OfferFrame]


def test_a_dead_letter_is_rejected_only_when_it_is_kept() -> None:
    play = Play()
    play.get(hello(S), frame(1))
    (letter,) = play.get(poison(2, 1))
    assert isinstance(letter, DeadLetter)
    assert (letter.seq, letter.code, letter.raw) == (2, "malformed", poison(2, 1))
    assert "frame.clock: missing" in letter.detail
    assert play.commit(1) == [records.Ack(1)]
    assert play.commit(2) == [records.Reject(2, "malformed", letter.detail), records.Ack(2)]
    assert play.get(poison(2, 1)) == []
    assert play.session.flush() == [records.Ack(2)]
    assert [type(action) for action in play.get(frame(3))] == [OfferFrame]


def test_poison_behind_a_gap_is_asked_for_again_like_any_frame() -> None:
    play = Play()
    assert play.get(hello(S), poison(5, 4))[-1] == Send(records.Nack(1))
    assert play.session.counts.rejects == 0


def test_what_breaks_our_decoder_is_put_aside_too() -> None:
    def broken(raw: bytes) -> records.AgentMessage:
        return decode_agent(raw) if b"unlucky" not in raw else {}["unlucky"]

    session = Session("edge-1", Book(), decode=broken)
    session.received(encode_agent(hello(S)), NOW)
    unlucky = records.Frame(1, 0, CLOCK, events=(records.Event("", "agent", "unlucky", 0),))
    (letter,) = session.received(encode_agent(unlucky), NOW)
    assert isinstance(letter, DeadLetter)
    assert (letter.seq, letter.code) == (1, "undecodable")


REFUSALS: dict[str, tuple[list[records.AgentMessage | bytes], str, str]] = {
    "nothing but noise": ([b"\xff" * 9], "INVALID_ARGUMENT", "no such message"),
    "noise after Hello": ([hello(S), b"\xff" * 9], "INVALID_ARGUMENT", "no such message"),
    "a frame first": ([frame(1)], "FAILED_PRECONDITION", "Hello comes first"),
    "poison first": ([poison(1, 0)], "FAILED_PRECONDITION", "Hello comes first"),
    "a pulse first": ([records.Pulse(CLOCK)], "FAILED_PRECONDITION", "Hello comes first"),
    "a newer agent": ([hello(S, protocol_min=3, protocol_max=4)], "FAILED_PRECONDITION", "update the collector"),
    "poison without a number": ([hello(S), poison(0, 0)], "INVALID_ARGUMENT", "frame"),
    "a spool id of three bytes": (
        [pb.AgentMessage(hello=pb.Hello(protocol_min=1, protocol_max=1, spool_id=b"abc")).SerializeToString()],
        "INVALID_ARGUMENT",
        "hello",
    ),
    "Hellos without end": ([hello(bytes([n]) * 16) for n in range(17)], "RESOURCE_EXHAUSTED", "more than 16 Hellos"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_breaks_the_protocol_ends_the_stream_with_a_code(what: str) -> None:
    messages, code, reason = REFUSALS[what]
    play = Play()
    closed = play.get(*messages)[-1]
    assert isinstance(closed, Close)
    assert (closed.code, reason in closed.reason) == (code, True), closed
    assert play.get(hello(S), frame(1)) == []


def test_an_agent_one_protocol_older_is_accepted() -> None:
    next_year = Limits(protocol_min=1, protocol_max=2)
    for oldest, newest, agreed in ((1, 1, 1), (1, 3, 2), (2, 2, 2)):
        actions = Play(limits=next_year).get(hello(S, protocol_min=oldest, protocol_max=newest))
        assert sent(actions, records.Welcome)[0].protocol == agreed
    (closed,) = Play(limits=Limits(protocol_min=2, protocol_max=3)).get(hello(S, protocol_min=1, protocol_max=1))
    assert isinstance(closed, Close)
    assert "update the agent" in closed.reason


def test_a_second_generation_of_the_spool_is_acknowledged_by_its_own_numbers() -> None:
    play = Play()
    play.get(hello(S), frame(1), frame(2), poison(3, 2))
    actions = play.get(hello(T, last_seq=1), frame(1))
    assert sent(actions, records.Welcome)[0].resume_from == 1
    # The old generation's commit comes late: its numbers would be read as the new one's.
    assert play.commit(3, S) == []
    assert play.session.in_flight_bytes == len(encode_agent(frame(1)))
    assert play.commit(1, T) == [records.Ack(1)]
    assert play.session.in_flight_bytes == 0


def test_beyond_its_credit_an_agent_is_not_to_be_read() -> None:
    size = len(encode_agent(frame(1)))
    play = Play(limits=Limits(credit_bytes=2 * size))
    play.get(hello(S), frame(1))
    assert play.session.has_credit
    play.get(frame(2))
    assert not play.session.has_credit
    play.commit(1)
    assert play.session.has_credit


def test_pulses_that_come_too_fast_are_dropped_and_counted() -> None:
    play = Play()
    play.get(hello(S))
    assert play.get(*[records.Pulse(CLOCK)] * 5) == []
    play.now += 1_000
    assert play.get(records.Pulse(CLOCK, 7, 8)) == [OfferPulse(records.Pulse(CLOCK, 7, 8))]
    assert play.session.counts.pulses_dropped == 5


def test_an_assignment_is_sent_when_the_agent_has_another_one() -> None:
    one, two = records.Assignment("one"), records.Assignment("two")
    play = Play(one)
    assert sent(play.get(hello(S, assignment_etag="zero")), records.Assignment) == [one]
    assert play.session.assign() == ()
    play.assignment = two
    assert play.session.assign() == (Send(two),)
    assert play.get(records.AssignmentReport("two", ("x",))) == [Report(records.AssignmentReport("two", ("x",)))]
    assert sent(Play(one).get(hello(S, assignment_etag="one")), records.Assignment) == []
    assert sent(Play(None).get(hello(S, assignment_etag="one")), records.Assignment) == []


def test_an_answer_that_nobody_asked_for_is_counted() -> None:
    play = Play()
    assert play.get(hello(S), records.ProbeAnswer(1, True))[3:] == []
    assert play.session.counts.unasked == 1


# -------------------------------------------------------------------------------------------------------------- laws

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.integers(1, 12), st.integers(0, 3)),
        st.tuples(st.just("poison"), st.integers(1, 12), st.integers(0, 3)),
        st.tuples(st.just("commit"), st.integers(1, 12), st.just(0)),
        st.tuples(st.just("hello"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("reconnect"), st.integers(0, 1), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_each_number_is_taken_once_in_order_and_never_acknowledged_before_it_is_durable(
    steps: list[tuple[str, int, int]],
) -> None:
    play = Play(limits=Limits(hellos_max=1000, nack_rounds_max=1000))
    spool = S
    taken: dict[bytes, list[int]] = {S: [], T: []}
    play.get(hello(S))
    for kind, number, back in steps:
        actions: list[Action] = []
        if kind == "frame":
            actions = play.get(frame(number, follows=max(0, number - 1 - back)))
        elif kind == "poison":
            actions = play.get(poison(number, max(0, number - 1 - back)))
        elif kind == "commit":
            durable = [seq for seq in taken[spool] if seq <= number]
            if durable:
                play.book.durable[spool] = max(durable[-1], play.book.durable.get(spool, 0))
                play.session.committed(spool, durable[-1])
        else:
            spool = (S, T)[number]
            if kind == "reconnect":
                play.session = Session("edge-1", play.book, limits=Limits(hellos_max=1000, nack_rounds_max=1000))
            (welcome,) = sent(play.get(hello(spool)), records.Welcome)
            assert welcome.resume_from == play.book.durable.get(spool, 0) + 1
        for action in actions:
            if isinstance(action, OfferFrame | DeadLetter):
                assert action.spool_id == spool
                seq = action.seq if isinstance(action, DeadLetter) else action.frame.seq
                assert not taken[spool] or seq > taken[spool][-1]
                taken[spool].append(seq)
        for message in play.session.flush():
            if isinstance(message, records.Ack | records.Reject):
                assert message.seq <= play.book.durable.get(spool, 0)
        assert play.session.in_flight_bytes >= 0


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_can_break_a_stream_other_than_by_a_code(raw: bytes, is_frame: bool) -> None:
    play = Play()
    play.get(hello(S))
    for action in play.get(b"\x12" + raw if is_frame else raw):
        assert isinstance(action, Send | OfferFrame | OfferPulse | DeadLetter | Report | Greeted | Close)


CLAIMS: dict[str, tuple[Callable[[], bytes], Claim | None]] = {
    "a whole frame": (lambda: encode_agent(frame(7, follows=5)), Claim(7, 5)),
    "the first frame": (lambda: encode_agent(frame(1)), Claim(1, 0)),
    "a truncated frame": (lambda: encode_agent(frame(300, follows=299))[:9], Claim(300, 299)),
    "a frame that follows itself": (lambda: poison(7, 7), Claim(7, 6)),
    "a pulse": (lambda: encode_agent(records.Pulse(CLOCK)), None),
    "nothing": (lambda: b"", None),
    "a number beyond the store": (lambda: b"\x12\x00\x08" + b"\xff" * 9 + b"\x01", None),
    "a number that never ends": (lambda: b"\x12\x00\x08" + b"\xff" * 50, None),
}


@pytest.mark.parametrize("what", CLAIMS)
def test_the_number_of_an_undecodable_frame_is_read_from_its_first_bytes(what: str) -> None:
    raw, claim = CLAIMS[what]
    assert claim_of(raw()) == claim


def test_a_bundle_is_admitted_frame_by_frame_and_a_poisoned_one_takes_none_with_it() -> None:
    play = Play()
    play.get(hello(S))
    frames = [encode_agent(frame(1)), poison(2, 1), encode_agent(frame(3)), encode_agent(frame(3))]
    actions = play.get(bundle(frames))
    assert [type(action) for action in actions] == [OfferFrame, DeadLetter, OfferFrame]
    assert [action.raw for action in actions] == frames[:3]
    assert play.session.counts.duplicates == 1
    assert play.commit(3)[-1] == records.Ack(3)


def test_a_bundle_of_anything_but_frames_ends_the_stream() -> None:
    play = Play()
    play.get(hello(S))
    (end,) = play.get(bundle([encode_agent(hello(S))]))
    assert isinstance(end, Close)
    assert end.code == "INVALID_ARGUMENT"
