"""A real receiver of signed webhooks on loopback: verifies, records, and misbehaves when told to.

Runs in threads of its own, beside whatever loop or subprocess the test has. A call counts as taken when it was answered
with 2xx; repeated Idempotency-Keys are recorded, and told apart by `taken`.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from tocsin_collector.desk.signature import SignatureError, verify

SECRET = b"a secret that both sides know"


@dataclass(frozen=True)
class Answer:
    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


HANG = "hang"  # take the request, answer nothing until `release` or the end
CUT = "cut"  # take the request, close the connection
Behaviour = Answer | str


@dataclass(frozen=True)
class Call:
    """One request whose signature was right."""

    key: str
    headers: Mapping[str, str]
    event: dict[str, Any]
    behaviour: Behaviour

    @property
    def kind(self) -> str:
        return str(self.event["type"]).rpartition(".")[2]

    @property
    def is_taken(self) -> bool:
        return isinstance(self.behaviour, Answer) and 200 <= self.behaviour.status < 300


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that went away in the middle of an answer is part of the tests."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Receiver:
    """with Receiver() as receiver: ... receiver.url. `plan` holds what to do with the next calls; then 204."""

    def __init__(self, secret: bytes = SECRET, clock: Callable[[], float] = time.time) -> None:
        self.secret = secret
        self.clock = clock
        self.calls: list[Call] = []
        self.refused: list[str] = []  # why signatures were not accepted
        self.plan: deque[Behaviour] = deque()
        self.always: Behaviour = Answer()
        self.connections = 0
        self._changed = threading.Condition()
        self._released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/tocsin"

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def release(self) -> None:
        """Let those go that hang; nothing hangs any more from now on."""
        self._released.set()

    def taken(self) -> list[Call]:
        """What was taken, each key once, in the order of its first arrival."""
        with self._changed:
            found: dict[str, Call] = {}
            for call in self.calls:
                if call.is_taken:
                    found.setdefault(call.key, call)
            return list(found.values())

    def wait_for(self, condition: Callable[["Receiver"], bool], timeout_s: float = 10.0) -> None:
        """Until the condition holds; it is asked after each call. AssertionError when it does not in time."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), timeout_s), (
                f"not in {timeout_s:g} s; calls: {[(call.key, call.kind) for call in self.calls]}, refused: {self.refused}"
            )

    def _take(self, headers: Mapping[str, str], body: bytes) -> Behaviour:
        with self._changed:
            try:
                verify(self.secret, headers, body, self.clock())
            except SignatureError as error:
                self.refused.append(str(error))
                self._changed.notify_all()
                return Answer(401, body=b"signature")
            behaviour = self.plan.popleft() if self.plan else self.always
            event = msgspec.json.decode(body)
            self.calls.append(Call(headers["Idempotency-Key"], headers, event, behaviour))
            self._changed.notify_all()
            return behaviour

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                receiver.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                behaviour = receiver._take(dict(self.headers.items()), body)
                if behaviour == HANG:
                    receiver._released.wait(30)
                if not isinstance(behaviour, Answer):
                    self.close_connection = True
                    return
                self.send_response(behaviour.status)
                for name, value in behaviour.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(behaviour.body)))
                self.end_headers()
                self.wfile.write(behaviour.body)

            def log_message(self, format: str, *args: Any) -> None:
                """Tests print their own."""

        return Handler
