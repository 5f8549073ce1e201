"""Walks: complete on every honest table, ended by a guard on every endless one."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.snmp_agents import BULK, NEXT, Question, number, octets, repeating
from tests.support.udp import udp_server

from tocsin_agent.snmp.client import Target, UdpSnmpClient
from tocsin_agent.snmp.codec import Request, Response, Version, decode_response, encode_request
from tocsin_agent.snmp.errors import SnmpErrorStatus, SnmpTimeout, SnmpWalkEndless
from tocsin_agent.snmp.values import Missing, Oid
from tocsin_agent.snmp.walk import Pace, WalkLimits, walk_columns
from tocsin_collector.demo.responder import Agent, fixed

ROOT: Oid = (1, 3, 6, 1, 4, 1, 58888, 9)
LIMITS = WalkLimits(rows_max=500, requests_max=100, seconds_max=10)


def walk_of(answer, *, limits: WalkLimits = LIMITS, version: Version = Version.V2C, timeout_s: float = 2.0):
    async def run():
        async with udp_server(answer) as server:
            client = UdpSnmpClient(Target("127.0.0.1", server.port, version, b"c", timeout_s, 1))
            try:
                return await client.walk(ROOT, limits=limits), server
            finally:
                client.close()

    return asyncio.run(run())


ENDLESS = {
    "same OID again": lambda name, sent: (*ROOT, 5),
    "cycle": lambda name, sent: (*ROOT, 1 + sent % 3),
    "OID decreased": lambda name, sent: (*ROOT, 10_000 - sent),
    "more than 500 rows": lambda name, sent: (*ROOT, 1 + sent),
}


@pytest.mark.parametrize("version", list(Version))
@pytest.mark.parametrize("reason", ENDLESS)
def test_a_walk_that_would_never_end_is_ended_and_says_why(reason: str, version: Version):
    limits = WalkLimits(rows_max=500, requests_max=1000, seconds_max=10)
    with pytest.raises(SnmpWalkEndless) as caught:
        walk_of(repeating(ENDLESS[reason]), limits=limits, version=version)
    assert caught.value.reason == reason


def test_a_walk_of_too_many_requests_is_ended():
    with pytest.raises(SnmpWalkEndless) as caught:
        walk_of(repeating(lambda name, sent: (*ROOT, 1 + sent)), limits=WalkLimits(requests_max=7))
    assert caught.value.reason == "more than 7 requests"


def test_a_walk_that_takes_too_long_is_ended_by_the_clock_it_was_given():
    now_s = 0.0

    async def slow(kind: Request, oids: Sequence[Oid], repetitions: int = 0, *, tries: int | None = None) -> Response:
        nonlocal now_s
        now_s += 4
        return Response(1, 0, 0, ((((*ROOT, int(now_s))), 1),))

    with pytest.raises(SnmpWalkEndless) as caught:
        asyncio.run(walk_columns(slow, [ROOT], WalkLimits(seconds_max=10), Pace(), lambda: now_s))
    assert caught.value.reason == "longer than 10 s"


def test_an_agent_that_answers_an_empty_row_for_ever_is_ended():
    with pytest.raises(SnmpErrorStatus, match="empty answer"):
        walk_of(lambda datagram: [Question(datagram).answer([])])


def test_too_big_halves_the_rows_asked_for_down_to_getnext():
    asked: list[int] = []

    def answer(datagram: bytes) -> list[bytes]:
        question = Question(datagram)
        asked.append(question.repetitions)
        if question.kind == BULK:
            return [question.answer([], status=1)]
        (name,) = question.names
        last = name[len(ROOT)] if len(name) > len(ROOT) else 0
        return [question.answer([((*ROOT, last + 1) if last < 3 else (*ROOT[:-1], 10), number(last))])]

    rows, _ = walk_of(answer)
    assert asked == [25, 12, 6, 3, 1, 0, 0, 0, 0]
    assert rows == {(1,): 0, (2,): 1, (3,): 2}


def test_silence_at_large_answers_halves_and_is_remembered():
    asked: list[int] = []

    def answer(datagram: bytes) -> list[bytes]:
        question = Question(datagram)
        asked.append(question.repetitions)
        if question.repetitions > 12:
            return []  # as when IP fragments are lost on the way
        (name,) = question.names
        last = name[len(ROOT)] if len(name) > len(ROOT) else 0
        return [
            question.answer([((*ROOT, last + n) if last + n <= 30 else (1, 3, 7), number(n)) for n in range(1, 13)])
        ]

    rows, _ = walk_of(answer, timeout_s=0.25)
    assert len(rows) == 30
    assert asked[:3] == [25, 12, 12]
    assert all(repetitions == 12 for repetitions in asked[1:])


def test_a_device_that_dies_in_a_walk_costs_few_timeouts():
    asked: list[int] = []

    def answer(datagram: bytes) -> list[bytes]:
        asked.append(Question(datagram).kind)
        return []

    with pytest.raises(SnmpTimeout):
        walk_of(answer, timeout_s=0.02)
    assert asked == [BULK, BULK, BULK, NEXT]


def test_a_row_that_does_not_fit_is_asked_for_in_fewer_columns():
    columns = [(*ROOT, column) for column in range(1, 9)]
    cells = {(*column, row): fixed("octets", bytes([65 + row]) * 400) for column in columns for row in range(3)}
    agent = Agent(cells, b"c")

    async def run():
        async with udp_server(lambda datagram: filter(None, [agent.answer(datagram, 0)])) as server:
            client = UdpSnmpClient(Target("127.0.0.1", server.port, Version.V2C, b"c", 2.0, 1))
            try:
                return await client.columns(columns)
            finally:
                client.close()

    rows = asyncio.run(run())
    assert rows == {column: {(row,): bytes([65 + row]) * 400 for row in range(3)} for column in columns}


def test_what_a_getbulk_says_beyond_the_end_is_filler():
    def answer(datagram: bytes) -> list[bytes]:
        question = Question(datagram)
        end = question.api.EndOfMibView("")
        return [question.answer([((*ROOT, 1), octets(b"only")), *[((*ROOT, 1), end)] * 5])]

    rows, server = walk_of(answer)
    assert rows == {(1,): b"only"}
    assert len(server.received) == 1


def test_an_empty_table_is_no_error():
    rows, _ = walk_of(lambda datagram: [Question(datagram).answer([((*ROOT[:-1], 10), number(1))])])
    assert rows == {}


def test_a_pace_that_was_halved_recovers_after_a_long_good_run():
    pace = Pace()
    pace.halve()
    assert pace.repetitions == 12
    for _ in range(Pace.GOOD_RUN):
        pace.answered()
    assert pace.repetitions == 24


indices = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3).map(tuple)
tables = st.dictionaries(
    st.integers(1, 6), st.dictionaries(indices, st.integers(-(2**31), 2**31 - 1), max_size=30), min_size=1, max_size=6
)


@settings(max_examples=30, deadline=None)
@given(table=tables, version=st.sampled_from(Version), repetitions=st.integers(0, 25), width=st.integers(1, 6))
def test_any_table_is_walked_whole_whatever_its_holes(table, version, repetitions, width):
    """The bytes go through the real encoder, a real responder and the real decoder; only the socket is left out."""
    cells = {(*ROOT, c, *index): fixed("integer", v) for c, rows in table.items() for index, v in rows.items()}
    cells[1, 3, 6, 1, 4, 1, 58888, 10] = fixed("integer", 1)  # the walk leaves the table into something else
    agent = Agent(cells, b"c")

    async def ask(kind: Request, oids: Sequence[Oid], repetitions: int = 0, *, tries: int | None = None) -> Response:
        answer = agent.answer(encode_request(version, b"c", kind, 7, oids, repetitions), 0)
        assert answer is not None
        return decode_response(version, b"c", answer)

    columns = [(*ROOT, column) for column in range(1, 8)]
    pace = Pace(0 if version is Version.V1 else repetitions)
    limits = WalkLimits(columns_max=width)
    rows = asyncio.run(walk_columns(ask, columns, limits, pace, lambda: 0.0))
    assert rows == {column: table.get(column[-1], {}) for column in columns}
    assert all(not isinstance(value, Missing) for found in rows.values() for value in found.values())
    assert all(list(found) == sorted(found) for found in rows.values())
