"""The service desk of the demo: takes signed webhooks on loopback and verifies them, as a real receiver should.

Not a desk. Invariant: a notice counts once, when its signature was right, however often it comes.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tocsin_collector.desk.signature import SignatureError, verify

BODY_BYTES_MAX = 256 * 1024
NOTICES_MAX = 100_000


class Notice(NamedTuple):
    """One notice that was verified. kind: opened, updated, resolved."""

    kind: str
    incident: str
    device: str


class Receiver:
    """`with Receiver(secret) as receiver: receiver.url`. Threads of its own; `notices` and `refused` may be read any time."""

    def __init__(self, secret: bytes) -> None:
        self.refused = 0  # signatures that were not right
        self._secret = secret
        self._notices: dict[str, Notice] = {}  # by idempotency key
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="receiver", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/hooks/tocsin"

    @property
    def notices(self) -> list[Notice]:
        with self._lock:
            return list(self._notices.values())

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """The HTTP status to answer with."""
        try:
            verify(self._secret, headers, body, time.time())
            event = json.loads(body)
            notice = Notice(event["type"].rpartition(".")[2], event["subject"], event["data"]["device"])
        except SignatureError:
            with self._lock:
                self.refused += 1
            return 401
        except (ValueError, KeyError, TypeError, AttributeError):
            return 400
        with self._lock:
            if len(self._notices) >= NOTICES_MAX:
                return 507
            self._notices.setdefault(headers.get("Idempotency-Key", event["id"]), notice)
        return 204

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "")
                if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
                    self.close_connection = True
                    self._answer(413)
                    return
                self._answer(receiver.take(dict(self.headers.items()), self.rfile.read(int(length))))

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """The story says what arrived."""

        return Handler
