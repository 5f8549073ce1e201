"""The collector as the operator's command sees it: the saved login, one HTTP client, errors as exit codes.

Not the commands (`operator.py`). Invariant: the token is written to a file of mode 0600 and nowhere else.
"""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import stamina

from tocsin_proto.exits import PROBLEM, REFUSED, UNREACHABLE

TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 32 * 1024 * 1024


class Failed(Exception):
    """Ends the command with `exit_code`; code, message and hint are what people and programs are told."""

    def __init__(self, exit_code: int, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code
        self.message = message
        self.hint = hint


class Login(msgspec.Struct, frozen=True):
    """What `tocsin login` keeps. ca: PEM file of the authority to trust, "" for the system's."""

    url: str
    token: str
    user: str = ""
    ca: str = ""


def login_file(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "/")) / ".config")
    return Path(base) / "tocsin" / "login.json"


def save(login: Login, file: Path) -> None:
    """Whole or not at all, and readable by its owner only from its first byte."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(msgspec.json.encode(login))
    new.replace(file)


def saved(file: Path, environ: Mapping[str, str]) -> Login:
    """The login in force: TOCSIN_URL and TOCSIN_TOKEN_FILE win over the saved one. Raises Failed."""
    try:
        login = msgspec.json.decode(file.read_bytes(), type=Login)
    except FileNotFoundError:
        login = Login("", "")
    except (OSError, msgspec.MsgspecError) as error:
        raise Failed(REFUSED, "login", f"{file}: {error}", "log in again: tocsin login URL") from error
    token = login.token
    if "TOCSIN_TOKEN_FILE" in environ:
        try:
            token = Path(environ["TOCSIN_TOKEN_FILE"]).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Failed(REFUSED, "login", f"TOCSIN_TOKEN_FILE: {error}") from error
    login = Login(environ.get("TOCSIN_URL", login.url), token, login.user, environ.get("TOCSIN_CA", login.ca))
    if not login.url or not login.token:
        raise Failed(REFUSED, "login", "nobody is logged in here", "tocsin login https://collector.example:8443")
    return login


class Collector:
    """One collector's API. Every method returns decoded JSON or raises Failed."""

    def __init__(self, login: Login, language: str) -> None:
        self.url = login.url
        # Its own log of retries would land on stdout, among the data.
        stamina.instrumentation.set_on_retry_hooks(())
        headers = {"Accept-Language": language, "User-Agent": "tocsin"}
        if login.token:
            headers["Authorization"] = f"Bearer {login.token}"
        try:
            verify = ssl.create_default_context(cafile=login.ca or None)
        except OSError as error:
            raise Failed(REFUSED, "login", f"{login.ca}: {error.strerror or error}", "name the CA with --ca") from error
        # No proxy from the environment: a plant's collector is near, and its token stays with it.
        self._client = httpx2.Client(
            base_url=f"{login.url}/api/v1", headers=headers, timeout=TIMEOUT_S, verify=verify, trust_env=False
        )

    def __enter__(self) -> "Collector":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        asked = {name.rstrip("_"): value for name, value in query.items() if value not in (None, "")}
        # Only reading is repeated: it changes nothing however often it arrives.
        try:
            for attempt in stamina.retry_context(on=httpx2.ConnectError, attempts=2, timeout=3.0, wait_initial=0.2):
                with attempt:
                    return self._opened("GET", path, params=asked)
        except httpx2.ConnectError as error:
            raise _gone(self.url, error) from error
        raise AssertionError("stamina ended without a result")

    def all(self, path: str, limit: int, **query: Any) -> list[Any]:
        """Up to `limit` items of a paged list."""
        items: list[Any] = []
        after = ""
        while len(items) < limit:
            page = self.get(path, limit=min(500, limit - len(items)), after=after, **query)
            items += page["items"]
            after = page["next"]
            if not after:
                break
        return items

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            return self._opened("POST", path, json=dict(body or {}))
        except httpx2.ConnectError as error:
            raise _gone(self.url, error) from error

    def _opened(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            answer = self._client.request(method, path, **arguments)
        except httpx2.ConnectError:
            raise
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _gone(self.url, error) from error
        if len(answer.content) > ANSWER_BYTES_MAX:
            raise Failed(PROBLEM, "too-long", f"the answer has more than {ANSWER_BYTES_MAX} bytes")
        try:
            found = msgspec.json.decode(answer.content)
        except msgspec.MsgspecError as error:
            message = f"{self.url} is no collector: it answered {answer.status_code} without JSON"
            raise Failed(UNREACHABLE, "not-a-collector", message, "check the address") from error
        if answer.status_code < 400:
            return found
        raise _refused(answer.status_code, found)


def _gone(url: str, error: Exception) -> Failed:
    return Failed(UNREACHABLE, "unreachable", f"the collector at {url} does not answer: {error}", "is it running?")


def _refused(status: int, told: Any) -> Failed:
    told = told if isinstance(told, dict) else {}
    code, message = str(told.get("code", "failed")), str(told.get("detail") or told.get("title") or f"HTTP {status}")
    exit_code = {401: REFUSED, 403: REFUSED, 503: UNREACHABLE}.get(status, PROBLEM)
    hint = "tocsin login URL" if status == 401 and code == "denied" else str(told.get("hint", ""))
    return Failed(exit_code, code, message, hint)
