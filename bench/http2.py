"""As much of HTTP/2 as one gRPC stream over TLS needs, on the client's side: many messages in one write.

Not a client for anything but a loader: the collector's cost is to be measured on two cores that the loader shares, and gRPC's
own client takes as much of them as the collector does. Flow control is kept; whatever ends the stream is an error.
RFC 9113 (frames, flow control), RFC 7541 (header fields, here only literal ones), gRPC over HTTP/2 (message prefix).
"""

import asyncio
import ssl
import struct
from collections.abc import Callable

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS, PADDED = 1, 1, 4, 8
INITIAL_WINDOW_SIZE = 4  # the setting's identifier
STREAM = 1
WINDOW_BYTES = 65_535  # what each side starts with
FRAME_BYTES_MAX = 16_384  # what may be sent before anything else is agreed on
_HEAD = struct.Struct(">BHBBI")  # length in three bytes, kind, flags, stream
_PREFIX = struct.Struct(">BI")  # of a gRPC message: not compressed, length


class Http2Error(Exception):
    """The connection or the stream has ended, or speaks something else."""


class Stream(asyncio.Protocol):
    """One connection with one call. on_message(bytes), on_room(): more may be sent; on_end(error)."""

    def __init__(
        self,
        path: str,
        on_message: Callable[[bytes], None],
        on_room: Callable[[], None],
        on_end: Callable[[Http2Error], None],
    ) -> None:
        self.room_bytes = 0  # how much flow control allows now
        self._path = path
        self._on_message = on_message
        self._on_room = on_room
        self._on_end = on_end
        self._received = bytearray()
        self._messages = bytearray()
        self._connection_bytes = WINDOW_BYTES
        self._stream_bytes = WINDOW_BYTES
        self._initial_bytes = WINDOW_BYTES
        self._consumed = 0
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        if chosen != "h2":
            self._on_end(Http2Error(f"the server speaks {chosen}, not h2"))
            return
        fields = {
            ":method": "POST",
            ":scheme": "https",
            ":path": self._path,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
            "user-agent": "tocsin-bench",
        }
        block = b"".join(_field(name, value) for name, value in fields.items())
        transport.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(SETTINGS, 0, 0, b"")
            + _frame(HEADERS, END_HEADERS, STREAM, block)
        )
        self._recount()

    def put(self, message: bytes) -> None:
        """Take a message that fits `room_bytes`; it goes out with `flush`."""
        size = len(message) + 5
        assert size <= min(self.room_bytes + 5, FRAME_BYTES_MAX), size
        head = _head(size, DATA, 0, STREAM)
        self._out.append(b"%b%b%b" % (head, _PREFIX.pack(0, len(message)), message))
        self._connection_bytes -= size
        self._stream_bytes -= size
        self._recount()

    def flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def close(self) -> None:
        self._on_end = lambda error: None
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end(Http2Error(f"connection lost: {exc}"))

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start = 0
        while len(received) - start >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(received, start)
            end = start + 9 + (high << 16 | low)
            if len(received) < end:
                break
            self._take(kind, flags, stream, bytes(received[start + 9 : end]))
            start = end
        del received[:start]

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == DATA:
            self._data(flags, body)
        elif kind == WINDOW_UPDATE:
            self._widen(stream, int.from_bytes(body, "big"))
        elif kind == SETTINGS and not flags & ACK:
            self._settings(body)
        elif kind == PING and not flags & ACK:
            self._transport.write(_frame(PING, ACK, 0, body))
        elif kind in (RST_STREAM, GOAWAY) or (kind == HEADERS and flags & END_STREAM):
            self._on_end(Http2Error(f"the server ended the stream, frame type {kind}: {body!r}"))

    def _data(self, flags: int, body: bytes) -> None:
        assert not flags & PADDED, "gRPC pads nothing"
        self._messages += body
        while len(self._messages) >= 5:
            _, size = _PREFIX.unpack_from(self._messages)
            if len(self._messages) < 5 + size:
                break
            self._on_message(bytes(self._messages[5 : 5 + size]))
            del self._messages[: 5 + size]
        self._consumed += len(body)
        if self._consumed > WINDOW_BYTES // 2:
            more = self._consumed.to_bytes(4, "big")
            self._transport.write(_frame(WINDOW_UPDATE, 0, 0, more) + _frame(WINDOW_UPDATE, 0, STREAM, more))
            self._consumed = 0

    def _settings(self, body: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", body):
            if name == INITIAL_WINDOW_SIZE:
                self._stream_bytes += value - self._initial_bytes
                self._initial_bytes = value
        self._transport.write(_frame(SETTINGS, ACK, 0, b""))
        self._recount()
        self._on_room()

    def _widen(self, stream: int, more: int) -> None:
        if stream:
            self._stream_bytes += more
        else:
            self._connection_bytes += more
        self._recount()
        self._on_room()

    def _recount(self) -> None:
        self.room_bytes = min(self._connection_bytes, self._stream_bytes) - 5


async def connect(host: str, port: int, context: ssl.SSLContext, stream: Stream) -> None:
    """Connect `stream` by TLS; the server's certificate must be for `host`."""
    context.set_alpn_protocols(["h2"])
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: stream, "127.0.0.1", port, ssl=context, server_hostname=host)


def _head(size: int, kind: int, flags: int, stream: int) -> bytes:
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream)


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return _head(len(body), kind, flags, stream) + body


def _field(name: str, value: str) -> bytes:
    """A literal header field, never indexed: 0, then name and value with their lengths."""
    assert max(len(name), len(value)) < 127, (name, value)
    return b"\0%c%b%c%b" % (len(name), name.encode(), len(value), value.encode())
