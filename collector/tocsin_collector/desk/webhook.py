"""The signed webhook: one POST per notice, a CloudEvents event with an HMAC over time and body.

Not a queue: one call, one attempt, one Outcome. The invariants: nothing goes anywhere but to the configured address (no
redirect, no proxy of the environment); neither secret nor address is ever part of an outcome or a log line, because
addresses of webhooks often carry a secret themselves.
"""

import asyncio
import logging
import ssl
import stat
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2
import structlog

from tocsin_collector import i18n
from tocsin_collector.config import Channel
from tocsin_collector.desk import cloudevents, signature
from tocsin_collector.desk.base import ChannelError, Delivery, Outcome, Surroundings, Verdict

log = structlog.get_logger(__name__)

CONNECTIONS_MAX = 16
ANSWER_BYTES_MAX = 64 * 1024  # of an answer; a longer one costs the connection, not memory
SAID_CHARS_MAX = 200  # of an answer, in an error
SECRET_BYTES_MAX = 4096
# And all from 500 on. 401 and 403 are the channel's fault, not the notice's: the breaker waits for a person to mend it.
RETRY_STATUS = frozenset({401, 403, 408, 425, 429})

# Nothing of the request can have reached the receiver.
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class Webhook:
    """Connector of kind "webhook". Raises ChannelError when its secret cannot be read."""

    def __init__(self, channel: Channel, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._url = channel.url
        self._secret_file = surroundings.secrets / channel.secret_file
        self._language = i18n.language(i18n.negotiate(channel.lang))
        self._timeout_s = int(channel.timeout) / 1000
        try:
            read_secret(self._secret_file)
        except (OSError, ValueError) as error:
            raise ChannelError(channel.id, "secret_file", _problem(self._secret_file, error)) from error
        if self._secret_file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            log.warning("secret file can be read by others, make it 0600", channel=channel.id)
        try:
            self._client = _client(channel.url, self._timeout_s)
        except httpx2.InvalidURL as error:
            raise ChannelError(channel.id, "url", f"is no address: {error}") from error

    async def deliver(self, delivery: Delivery) -> Outcome:
        now_ms = self._surroundings.clock()
        try:
            secret = read_secret(self._secret_file)  # each time: it may be changed while we run
        except (OSError, ValueError) as error:
            return Outcome(Verdict.RETRY, f"secret_file: {_problem(self._secret_file, error)}")
        body = cloudevents.encode(
            delivery, source=self._surroundings.source, link=self._surroundings.link, language=self._language
        )
        headers = {
            "Content-Type": cloudevents.CONTENT_TYPE,
            "Idempotency-Key": delivery.idempotency_key,
            **signature.sign(secret, now_ms // 1000, body),
        }
        return await self._post(headers, body, now_ms)

    async def close(self) -> None:
        await self._client.aclose()

    async def _post(self, headers: dict[str, str], body: bytes, now_ms: int) -> Outcome:
        try:
            # The client's time-outs are per read and write; a receiver that drips is ended by this one.
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                said = await _read(response)
        except _NOT_SENT as error:
            return Outcome(Verdict.RETRY, f"no connection: {_named(error)}")
        except (httpx2.TimeoutException, TimeoutError):
            return Outcome(Verdict.UNCERTAIN, f"no answer within {self._timeout_s:g} s")
        except httpx2.HTTPError as error:
            return Outcome(Verdict.UNCERTAIN, f"the connection broke before the answer: {_named(error)}")
        return classify(response.status_code, response.headers.get("Retry-After", ""), said, now_ms)


def classify(status: int, retry_after: str, said: str, now_ms: int) -> Outcome:
    """What an answer means. said: the beginning of its body."""
    if 200 <= status < 300:
        return Outcome(Verdict.OK)
    detail = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    if 300 <= status < 400:
        return Outcome(Verdict.PERMANENT, f"HTTP {status}: redirects are not followed, write the final address as url")
    if status in RETRY_STATUS or status >= 500:
        return Outcome(Verdict.RETRY, detail, retry_after_s(retry_after, now_ms))
    return Outcome(Verdict.PERMANENT, detail)


def retry_after_s(header: str, now_ms: int) -> float:
    """RFC 9110 10.2.3: seconds, or a date. 0 for what is neither, or lies behind us."""
    header = header.strip()
    if header.isascii() and header.isdecimal():
        return float(header[:9])
    try:
        then = parsedate_to_datetime(header)
        return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - _EPOCH).total_seconds() - now_ms / 1000)
    except (ValueError, OverflowError):
        return 0.0


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_secret(path: Path) -> bytes:
    """The file's bytes without white space around them. OSError; ValueError when it is empty or too long."""
    with path.open("rb") as file:
        secret = file.read(SECRET_BYTES_MAX + 1).strip()
    if not secret:
        raise ValueError("is empty, write the signing secret into it")
    if len(secret) > SECRET_BYTES_MAX:
        raise ValueError(f"has more than {SECRET_BYTES_MAX} bytes, it should hold nothing but the signing secret")
    return secret


def _client(url: str, timeout_s: float) -> httpx2.AsyncClient:
    httpx2.URL(url)
    # It writes every address at INFO, with whatever secret stands in it.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    return httpx2.AsyncClient(
        # The system's authorities, where a plant installs its own; $SSL_CERT_FILE and $SSL_CERT_DIR are honoured.
        verify=ssl.create_default_context(),
        timeout=httpx2.Timeout(timeout_s),
        limits=httpx2.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
        follow_redirects=False,
        trust_env=False,
        headers={"User-Agent": "Tocsin", "Accept-Encoding": "identity"},
    )


async def _read(response: httpx2.Response) -> str:
    """The beginning of the answer in printable characters; all of it is read, so that the connection can be used again."""
    head, size = b"", 0
    async for chunk in response.aiter_raw():
        head, size = (head + chunk)[: 4 * SAID_CHARS_MAX], size + len(chunk)
        if size > ANSWER_BYTES_MAX:
            break
    text = " ".join(head.decode("utf-8", "replace").split())
    return "".join(c if c.isprintable() else "?" for c in text)[:SAID_CHARS_MAX]


def _named(error: Exception) -> str:
    """The kind of error and what the system said, which names neither address nor secret."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _problem(path: Path, error: OSError | ValueError) -> str:
    said = error.strerror if isinstance(error, OSError) else str(error)
    return f"{path}: {said}"
