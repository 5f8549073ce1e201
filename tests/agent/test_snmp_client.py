"""The SNMP client against agents that are slow, wrong, hostile or gone: real sockets on loopback."""

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.support.snmp_agents import BULK, GET, NEXT, Question, counter64, number, octets, opaque, pdu_type
from tests.support.udp import UdpServer, udp_server

import tocsin_agent
from tocsin_agent.snmp.client import Target, UdpSnmpClient
from tocsin_agent.snmp.codec import Request, Version, encode_request
from tocsin_agent.snmp.errors import (
    SnmpAddress,
    SnmpAuth,
    SnmpErrorStatus,
    SnmpGarbage,
    SnmpRefused,
    SnmpTimeout,
)
from tocsin_agent.snmp.values import Missing, text

A = (1, 3, 6, 1, 4, 1, 58888, 7, 1)
B = (1, 3, 6, 1, 4, 1, 58888, 7, 2)
C = (1, 3, 6, 1, 4, 1, 58888, 7, 3)
Answer = Callable[[bytes], Iterable[bytes]]


def target(port: int, *, version: Version = Version.V2C, timeout_s: float = 2.0, tries: int = 2) -> Target:
    return Target("127.0.0.1", port, version, b"secret", timeout_s, tries)


def ask(
    answer: Answer, use: Callable[[UdpSnmpClient], Awaitable[Any]], **options: Any
) -> tuple[Any, UdpServer, UdpSnmpClient]:
    """What `use` gave (or the exception it raised), with the server that saw the datagrams."""

    async def run() -> tuple[Any, UdpServer, UdpSnmpClient]:
        async with udp_server(answer) as server:
            client = UdpSnmpClient(target(server.port, **options))
            try:
                result = await use(client)
            except Exception as error:
                result = error
            finally:
                client.close()
            return result, server, client

    return asyncio.run(run())


def values(datagram: bytes) -> list[bytes]:
    question = Question(datagram)
    return [question.answer([(name, number(name[-1])) for name in question.names])]


def test_a_get_returns_a_value_for_every_oid_that_was_asked():
    result, server, _ = ask(values, lambda client: client.get([A, B]))
    assert result == {A: 1, B: 2}
    assert len(server.received) == 1


def test_an_oid_that_the_agent_leaves_out_is_missing_and_not_asked_for_again():
    def answer(datagram: bytes) -> list[bytes]:
        return [Question(datagram).answer([(A, number(1))])]

    result, server, _ = ask(answer, lambda client: client.get([A, B]))
    assert result == {A: 1, B: Missing.INSTANCE}
    assert len(server.received) == 1


def test_silence_is_a_timeout_that_names_what_cannot_be_told_apart():
    result, server, _ = ask(lambda _: [], lambda client: client.get([A]), timeout_s=0.05)
    assert type(result) is SnmpTimeout
    assert "wrong community" in str(result)
    assert "2 tries" in str(result)
    ids = [Question(datagram).request_id for datagram in server.received]
    assert len(set(ids)) == 2, "every try has a request-id of its own"


def test_an_answer_to_the_first_try_that_comes_during_the_second_is_the_answer():
    questions: list[Question] = []

    def answer(datagram: bytes) -> list[bytes]:
        questions.append(Question(datagram))
        return [] if len(questions) == 1 else [questions[0].answer([(A, number(42))])]

    result, _, _ = ask(answer, lambda client: client.get([A]), timeout_s=0.2)
    assert result == {A: 42}


def test_late_and_duplicate_answers_are_counted_and_never_taken_for_another_request():
    questions: list[Question] = []

    def answer(datagram: bytes) -> list[bytes]:
        questions.append(Question(datagram))
        now = questions[-1].answer([(name, number(len(questions))) for name in questions[-1].names])
        earlier = [question.answer([(name, number(99)) for name in question.names]) for question in questions[:-1]]
        return [*earlier, now, now]

    async def three(client: UdpSnmpClient) -> list[Any]:
        return [await client.get([A]) for _ in range(3)]

    result, _, client = ask(answer, three)
    assert result == [{A: 1}, {A: 2}, {A: 3}]
    assert client.strays >= 3


def test_a_wrong_request_id_is_no_answer():
    def answer(datagram: bytes) -> list[bytes]:
        question = Question(datagram)
        return [question.answer([(A, number(1))], request_id=(question.request_id + 1) % 2**31)]

    result, _, client = ask(answer, lambda client: client.get([A]), timeout_s=0.1)
    assert isinstance(result, SnmpTimeout)
    assert client.strays == 2


def test_an_answer_from_another_port_is_never_seen():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        server_of: list[UdpServer] = []

        def answer(datagram: bytes) -> list[bytes]:
            other.sendto(Question(datagram).answer([(A, number(1))]), server_of[0].peer)
            return []

        async def run() -> None:
            async with udp_server(answer) as server:
                server_of.append(server)
                client = UdpSnmpClient(target(server.port, timeout_s=0.1))
                with pytest.raises(SnmpTimeout):
                    await client.get([A])
                assert client.strays == 0
                client.close()

        asyncio.run(run())


@pytest.mark.parametrize(
    ("datagram", "cause"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not BER"),
        (b"\x30\x82\xff\xff\x02\x01\x01", "not BER"),
        (b"\x30\x80" * 30_000, "not BER"),
        (b"\x00" * 65_507, "not"),
    ],
)
def test_garbage_is_named_as_garbage(datagram: bytes, cause: str):
    result, _, _ = ask(lambda _: [datagram], lambda client: client.get([A]), tries=1, timeout_s=0.2)
    assert isinstance(result, SnmpGarbage)
    assert cause in str(result)


def test_an_answer_with_another_community_or_version_is_garbage():
    def other_community(datagram: bytes) -> list[bytes]:
        return [Question(datagram).answer([(A, number(1))], community=b"public")]

    result, _, _ = ask(other_community, lambda client: client.get([A]), tries=1, timeout_s=0.2)
    assert isinstance(result, SnmpGarbage)
    assert "another community" in str(result)
    assert "secret" not in str(result)

    def other_version(datagram: bytes) -> list[bytes]:
        return [datagram.replace(b"\x02\x01\x01", b"\x02\x01\x00", 1)]

    result, _, _ = ask(other_version, lambda client: client.get([A]), tries=1, timeout_s=0.2)
    assert isinstance(result, SnmpGarbage)


def test_garbage_before_the_right_answer_does_no_harm():
    def answer(datagram: bytes) -> list[bytes]:
        return [b"noise", *values(datagram)]

    result, _, _ = ask(answer, lambda client: client.get([A]))
    assert result == {A: 1}


def test_a_closed_port_is_refused_and_not_silence():
    async def run() -> None:
        async with udp_server(values) as server:
            port = server.port
        client = UdpSnmpClient(target(port, timeout_s=0.1))
        with pytest.raises(SnmpRefused, match="refused"):
            await client.get([A])
        client.close()

    asyncio.run(run())


def test_a_name_that_does_not_resolve_is_an_address_error():
    async def run() -> None:
        client = UdpSnmpClient(Target("no such host..invalid", 161, Version.V2C, b"x", 1.0, 1))
        with pytest.raises(SnmpAddress):
            await client.get([A])

    asyncio.run(run())


def test_too_big_splits_the_get_until_it_fits():
    def answer(datagram: bytes) -> list[bytes]:
        question = Question(datagram)
        return [question.answer([], status=1)] if len(question.names) > 2 else values(datagram)

    names = [(*A, n) for n in range(1, 11)]
    result, _, _ = ask(answer, lambda client: client.get(names))
    assert result == {name: name[-1] for name in names}


def test_one_object_that_is_too_big_is_an_error_of_its_own():
    def answer(datagram: bytes) -> list[bytes]:
        return [Question(datagram).answer([], status=1)]

    result, _, _ = ask(answer, lambda client: client.get([A, B]))
    assert isinstance(result, SnmpErrorStatus)
    assert result.name == "tooBig"


def test_an_error_status_names_itself_and_the_object():
    def answer(datagram: bytes) -> list[bytes]:
        return [Question(datagram).answer([(A, number(0)), (B, number(0))], status=5, index=2)]

    result, _, _ = ask(answer, lambda client: client.get([A, B]))
    assert isinstance(result, SnmpErrorStatus)
    assert str(result) == "the device answered genErr for 1.3.6.1.4.1.58888.7.2"


def test_an_agent_that_says_so_has_refused_the_credential():
    def answer(datagram: bytes) -> list[bytes]:
        return [Question(datagram).answer([], status=16)]

    result, _, _ = ask(answer, lambda client: client.get([A]))
    assert isinstance(result, SnmpAuth)


def test_v1_objects_that_are_not_there_are_missing_and_the_others_are_read():
    def answer(datagram: bytes) -> list[bytes]:
        question = Question(datagram)
        if B in question.names:
            return [question.answer([], status=2, index=question.names.index(B) + 1)]
        return [question.answer([(name, question.api.Integer(name[-1])) for name in question.names])]

    result, _, _ = ask(answer, lambda client: client.get([A, B, C]), version=Version.V1)
    assert result == {A: 1, B: Missing.INSTANCE, C: 3}


def test_odd_values_arrive_as_they_are():
    def answer(datagram: bytes) -> list[bytes]:
        odd = [
            (A, number(-5)),
            (B, counter64(2**64 - 1)),
            (C, opaque(bytes.fromhex("9f780442f60000"))),
            ((*C, 1), octets(b"\xff\xfe caf\xe9 \0\0")),
            ((*C, 2), octets(b"x" * 60_000)),
            ((*C, 3), opaque(b"\x9f\x78")),
        ]
        return [Question(datagram).answer(odd)]

    names = [A, B, C, (*C, 1), (*C, 2), (*C, 3)]
    result, _, _ = ask(answer, lambda client: client.get(names), timeout_s=0.5)
    assert result[A] == -5
    assert result[B] == 2**64 - 1
    assert result[C] == 123.0
    assert text(result[(*C, 1)]) == "\ufffd\ufffd caf\ufffd"
    assert len(result[(*C, 2)]) == 60_000
    assert len(text(result[(*C, 2)])) == 255
    assert result[(*C, 3)] == b"\x9f\x78"


def test_only_one_request_is_outstanding_per_device():
    waiting = 0
    most = 0

    async def run() -> list[Any]:
        server: UdpServer

        def reply(datagram: bytes) -> None:
            nonlocal waiting
            waiting -= 1
            assert server.transport is not None
            server.transport.sendto(values(datagram)[0], server.peer)

        def answer(datagram: bytes) -> list[bytes]:
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            # Answered later: a second question would come in between if the client let it.
            asyncio.get_running_loop().call_later(0.003, reply, datagram)
            return []

        async with udp_server(answer) as server:
            client = UdpSnmpClient(target(server.port, timeout_s=1))
            found = await asyncio.gather(*(client.get([(*A, n)]) for n in range(20)))
            client.close()
            return found

    assert asyncio.run(run()) == [{(*A, n): n} for n in range(20)]
    assert most == 1


def test_a_cancelled_request_leaves_the_client_usable():
    questions: list[bytes] = []

    def answer(datagram: bytes) -> list[bytes]:
        questions.append(datagram)
        return [] if len(questions) == 1 else values(datagram)

    async def cancelled_then_again(client: UdpSnmpClient) -> Any:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await client.get([A])
        return await client.get([B])

    result, _, _ = ask(answer, cancelled_then_again, timeout_s=0.2)
    assert result == {B: 2}


def test_a_thousand_mutated_answers_neither_hang_nor_crash_and_name_their_cause():
    seed = random.randrange(2**32)
    luck = random.Random(seed)
    question = Question(encode_request(Version.V2C, b"secret", Request.GET, 7, [A, B, C]))
    good = question.answer([(A, number(1)), (B, octets(b"text")), (C, counter64(7)), ((*C, 1), opaque(b"\x9f\x78"))])

    def mutated(_: bytes) -> list[bytes]:
        bad = bytearray(good)
        for _ in range(luck.randint(1, 6)):
            at = luck.randrange(len(bad) or 1)
            match luck.randrange(4):
                case 0:
                    bad[at : at + 1] = luck.randbytes(1)
                case 1:
                    del bad[at:]
                case 2:
                    bad[at:at] = luck.randbytes(luck.randint(1, 8))
                case 3:
                    del bad[at : at + luck.randint(1, 4)]
        return [bytes(bad) or b"\x30"]

    async def run() -> dict[str, int]:
        outcomes: dict[str, int] = {}
        async with udp_server(mutated) as server:
            client = UdpSnmpClient(target(server.port, timeout_s=0.002, tries=1), new_id=lambda: 7)
            for _ in range(1000):
                try:
                    await client.get([A, B, C])
                    outcome = "answer"
                except (SnmpGarbage, SnmpErrorStatus, SnmpTimeout) as error:
                    outcome = type(error).__name__ if str(error) else "no cause"
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
            client.close()
        return outcomes

    outcomes = asyncio.run(run())
    assert sum(outcomes.values()) == 1000, f"seed {seed}"
    assert "no cause" not in outcomes, f"seed {seed}"
    assert outcomes.get("SnmpGarbage", 0) > 100, f"seed {seed}: {outcomes}"


def test_every_datagram_that_leaves_is_a_get_a_getnext_or_a_getbulk():
    def answer(datagram: bytes) -> list[bytes]:
        question = Question(datagram)
        if question.kind == GET:
            return values(datagram)
        varbinds: list[tuple[Any, Any]] = []
        row = question.names
        for _ in range(question.repetitions or 1):
            row = [(*name[:9], name[9] + 1) if len(name) > 9 else (*name, 1) for name in row]
            row = [name if name[9] <= 50 else (1, 3, 6, 2) for name in row]
            varbinds += [(name, number(1)) for name in row]
            if row[0] == (1, 3, 6, 2):
                break
        return [question.answer(varbinds)]

    async def everything(client: UdpSnmpClient) -> None:
        await client.get([A, B])
        await client.walk(A)
        await client.columns([A, B])

    seen: set[int] = set()
    for version in Version:
        result, server, _ = ask(answer, everything, version=version, timeout_s=0.5)
        assert result is None, result
        seen |= {pdu_type(datagram) for datagram in server.received}
    assert seen == {GET, NEXT, BULK}


def test_no_source_file_of_the_agent_can_name_a_write():
    root = Path(tocsin_agent.__file__).parent
    files = [*root.rglob("*.py")]
    assert len(files) > 5
    for file in files:
        source = file.read_text(encoding="utf-8")
        for word in ("SetRequest", "set_cmd", "setCmd", "SetCommandGenerator"):
            assert word not in source, f"{file} names {word}: nothing of Tocsin writes to a device"
