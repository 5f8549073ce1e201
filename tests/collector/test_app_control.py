import asyncio
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tocsin_collector import control
from tocsin_collector.control import ControlClient, ControlError, ControlServer


async def echo(request: dict[str, Any]) -> dict[str, Any]:
    match request.get("do"):
        case "refuse":
            raise ControlError("refused", "it cannot be", "do something else")
        case "fail":
            raise ZeroDivisionError
        case "large":
            return {"text": "x" * request["bytes"]}
        case "secret":
            raise RuntimeError(request["password"])
    return {"said": request}


def served(path: Path, use: Callable[[ControlClient], Awaitable[None]]) -> None:
    async def main() -> None:
        server = ControlServer(path, echo)
        await server.start()
        try:
            async with asyncio.timeout(20):
                await use(ControlClient(path))
        finally:
            await server.stop()

    asyncio.run(main())


async def exchange(path: Path, *chunks: bytes, shut: bool = False) -> bytes:
    """Raw bytes there, all bytes back until the server closes or one line has come."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=2**20)
    for chunk in chunks:
        writer.write(chunk)
    if shut:
        writer.write_eof()
        answer = await reader.read()
    else:
        answer = await reader.readline()
    writer.close()
    return answer


def code_of(line: bytes) -> str:
    return str(msgspec.json.decode(line)["error"]["code"])


def test_a_request_is_answered_with_its_fields(tmp_path: Path) -> None:
    async def use(client: ControlClient) -> None:
        assert await client.call("ping", n=1) == {"said": {"do": "ping", "n": 1}}

    served(tmp_path / "s", use)


def test_a_refusal_carries_code_message_and_hint(tmp_path: Path) -> None:
    async def use(client: ControlClient) -> None:
        with pytest.raises(ControlError) as caught:
            await client.call("refuse")
        assert (caught.value.code, caught.value.message, caught.value.hint) == (
            "refused",
            "it cannot be",
            "do something else",
        )

    served(tmp_path / "s", use)


def test_a_failing_handler_is_told_as_internal_without_its_details_and_the_server_lives_on(tmp_path: Path) -> None:
    async def use(client: ControlClient) -> None:
        with pytest.raises(ControlError) as caught:
            await client.call("secret", password="hunter2")
        assert caught.value.code == "internal"
        assert "hunter2" not in str(caught.value)
        assert await client.call("ping")

    served(tmp_path / "s", use)


@pytest.mark.parametrize(
    "line",
    [b"\n", b"nonsense\n", b"[1]\n", b'"do"\n', b'{"do":\n', b"\xff\xfe\n", b"null\n", b"[" * 5_000 + b"\n"],
)
def test_what_is_no_object_is_malformed(tmp_path: Path, line: bytes) -> None:
    async def use(client: ControlClient) -> None:
        assert code_of(await exchange(tmp_path / "s", line)) == "malformed"
        assert await client.call("ping")

    served(tmp_path / "s", use)


def test_a_line_that_never_ends_is_refused_at_its_bound(tmp_path: Path) -> None:
    async def use(client: ControlClient) -> None:
        assert code_of(await exchange(tmp_path / "s", b"x" * (control.LINE_BYTES_MAX + 1))) == "too-long"
        assert await client.call("ping")

    served(tmp_path / "s", use)


def test_half_a_line_is_no_wish(tmp_path: Path) -> None:
    async def use(client: ControlClient) -> None:
        assert await exchange(tmp_path / "s", b'{"do": "ping"}', shut=True) == b""

    served(tmp_path / "s", use)


def test_one_connection_may_ask_many_times(tmp_path: Path) -> None:
    async def use(client: ControlClient) -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        for n in range(3):
            writer.write(msgspec.json.encode({"n": n}) + b"\n")
            assert msgspec.json.decode(await reader.readline())["said"] == {"n": n}
        writer.close()

    served(tmp_path / "s", use)


def test_connections_beyond_the_bound_are_told_so_and_the_others_go_on(tmp_path: Path) -> None:
    async def use(client: ControlClient) -> None:
        held = []
        for _ in range(control.CONNECTIONS_MAX):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(b"{}\n")
            await reader.readline()
            held.append((reader, writer))
        with pytest.raises(ControlError) as caught:
            await client.call("ping")
        assert caught.value.code == "busy"
        reader, writer = held[0]
        writer.write(b'{"n":1}\n')
        assert msgspec.json.decode(await reader.readline())["said"] == {"n": 1}
        for _, writer in held:
            writer.close()

    served(tmp_path / "s", use)


def test_an_answer_of_megabytes_arrives_whole(tmp_path: Path) -> None:
    async def use(client: ControlClient) -> None:
        assert len((await client.call("large", bytes=3_000_000))["text"]) == 3_000_000

    served(tmp_path / "s", use)


def test_a_request_that_is_too_long_is_not_even_sent(tmp_path: Path) -> None:
    async def use(client: ControlClient) -> None:
        with pytest.raises(ControlError, match="a request has at most"):
            await client.call("ping", text="x" * control.LINE_BYTES_MAX)

    served(tmp_path / "s", use)


def test_only_the_owner_may_open_the_socket(tmp_path: Path) -> None:
    async def use(client: ControlClient) -> None:
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600

    served(tmp_path / "s", use)


def test_without_an_engine_the_client_says_who_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ControlError) as caught:
        asyncio.run(ControlClient(tmp_path / "s").call("ping"))
    assert caught.value.code == "unreachable"
    assert "tocsin-collector run" in caught.value.hint


def test_a_socket_that_a_dead_engine_left_behind_is_replaced(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "s"))
    left.close()

    async def use(client: ControlClient) -> None:
        assert await client.call("ping")

    served(tmp_path / "s", use)


def test_the_socket_of_a_living_engine_is_never_taken_over(tmp_path: Path) -> None:
    async def use(client: ControlClient) -> None:
        with pytest.raises(ControlError, match="another collector serves"):
            await ControlServer(tmp_path / "s", echo).start()
        assert await client.call("ping")

    served(tmp_path / "s", use)


def test_stopping_ends_open_connections_and_takes_the_socket_away(tmp_path: Path) -> None:
    async def main() -> None:
        server = ControlServer(tmp_path / "s", echo)
        await server.start()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"{}\n")
        await reader.readline()
        async with asyncio.timeout(5):
            await server.stop()
            assert await reader.read() == b""
        writer.close()
        assert not (tmp_path / "s").exists()

    asyncio.run(main())
