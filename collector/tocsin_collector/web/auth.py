"""Who is asking: sessions, roles, the guard against forged forms, the brake on guessing passwords.

Not where passwords are checked: the engine does that behind its socket. A session is a row of `api_token`, found by
the hash of what the browser or the command presents. Invariant: a cookie alone never changes anything; a form carries
a token made from the session's secret, and the API takes changes only with a bearer token.
"""

import hashlib
import hmac
from collections import deque
from dataclasses import dataclass

from starlette.requests import Request

COOKIE = "tocsin_session"
# What the engine says when it cannot be asked at all, or not now: no verdict on what was asked.
ENGINE_AWAY = frozenset({"unreachable", "busy", "timeout", "internal"})
ROLES = {"viewer": 1, "operator": 2, "admin": 3}
TOKEN_CHARS_MAX = 512


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who has logged in. `secret` is what was presented; it is never shown or logged."""

    account: str
    role: str
    secret: str
    is_bearer: bool

    def may(self, role: str) -> bool:
        return ROLES.get(self.role, 0) >= ROLES[role]

    @property
    def form_token(self) -> str:
        """Bound to this session and useless without it."""
        return hmac.new(self.secret.encode(), b"tocsin form", hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        return f"Session({self.account!r}, {self.role!r})"


def presented(request: Request) -> tuple[str, bool]:
    """The secret that came with the request, and whether as a bearer token. "" when there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and 0 < len(token.strip()) <= TOKEN_CHARS_MAX:
        return token.strip(), True
    cookie = request.cookies.get(COOKIE, "")
    return (cookie, False) if len(cookie) <= TOKEN_CHARS_MAX else ("", False)


def token_hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def is_same_origin(request: Request) -> bool:
    """Whether a form was sent from our own pages, as the browser states it. No statement: not a browser of today."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("host", "")


def is_form_token(session: Session, token: str) -> bool:
    return hmac.compare_digest(session.form_token.encode(), token.encode())


class Brake:
    """At most `tries_max` failures per key within `window_ms`; `keys_max` keys, the longest idle is forgotten first."""

    def __init__(self, tries_max: int = 5, window_ms: int = 300_000, keys_max: int = 10_000) -> None:
        self.tries_max = tries_max
        self.window_ms = window_ms
        self.keys_max = keys_max
        self._failures: dict[str, deque[int]] = {}

    def wait_ms(self, key: str, now_ms: int) -> int:
        """How long this key must wait; 0: it may try."""
        times = self._failures.get(key)
        if times is None:
            return 0
        while times and now_ms - times[0] >= self.window_ms:
            times.popleft()
        if not times:
            del self._failures[key]
            return 0
        return self.window_ms - (now_ms - times[0]) if len(times) >= self.tries_max else 0

    def failed(self, key: str, now_ms: int) -> None:
        times = self._failures.pop(key, None) or deque(maxlen=self.tries_max)
        times.append(now_ms)
        self._failures[key] = times  # now the youngest
        while len(self._failures) > self.keys_max:
            del self._failures[next(iter(self._failures))]

    def passed(self, key: str) -> None:
        self._failures.pop(key, None)
