"""What may be asked of the engine process over its control socket: one typed request for each verb, one function.

Not the socket (`control.py`) and not the question who may ask: the web process has judged the role of whoever it speaks for.
Invariant: a request is checked whole before anything of it is done, and what changes the store does so through the pipeline's
one writer.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, get_args

import msgspec

from tocsin_collector import accounts
from tocsin_collector.accounts import AccountError, Role
from tocsin_collector.control import ControlError
from tocsin_collector.core.model import Command, Config
from tocsin_collector.desk.due import RetryError
from tocsin_collector.desk.outbox import Outbox
from tocsin_collector.ingest import tokens
from tocsin_collector.ingest.authority import Authority
from tocsin_collector.ingest.tokens import SECRET_BYTES, TokenError
from tocsin_collector.pipeline import Pipeline, PipelineStoppedError
from tocsin_proto.settings import SettingsError

LOGINS_AT_ONCE = 2  # each takes 64 MiB and 0.1 s of a core
TEXT_CHARS_MAX = 4_000
SESSION_S_MAX = 366 * 86_400


class Request(msgspec.Struct, frozen=True, tag_field="do", forbid_unknown_fields=True):
    """Base of all requests."""


class DoCommand(Request, frozen=True, tag="command"):
    kind: Literal["acknowledge", "resolve", "close", "comment"]
    incident: str
    actor: str
    text: str = ""


class CreateToken(Request, frozen=True, tag="token.create"):
    actor: str
    device: str = ""
    site: str = ""
    ttl_s: int = tokens.TTL_MS // 1000
    uses: int = 1


class RevokeToken(Request, frozen=True, tag="token.revoke"):
    id: str
    actor: str = ""


class RevokeAgent(Request, frozen=True, tag="agent.revoke"):
    name: str
    actor: str = ""


class Login(Request, frozen=True, tag="account.login"):
    name: str
    password: str
    label: str = ""
    ttl_s: int = 12 * 3600


class Logout(Request, frozen=True, tag="account.logout"):
    token_hash: str  # hex


class CreateAccount(Request, frozen=True, tag="account.create"):
    name: str
    password: str
    role: Role
    actor: str = ""


class RetryNotice(Request, frozen=True, tag="outbox.retry"):
    """Tell a notice again that was given up. id: of its outbox row."""

    id: int
    actor: str = ""


class AskStatus(Request, frozen=True, tag="status"):
    """The engine process as it lives."""


class AskMetrics(Request, frozen=True, tag="metrics"):
    """Prometheus text."""


class Reload(Request, frozen=True, tag="reload"):
    """Read registry and rules again, as SIGHUP does."""

    actor: str = ""


AnyRequest = (
    DoCommand
    | CreateToken
    | RevokeToken
    | RevokeAgent
    | Login
    | Logout
    | CreateAccount
    | RetryNotice
    | AskStatus
    | AskMetrics
    | Reload
)
VERBS = tuple(str(kind.__struct_config__.tag) for kind in get_args(AnyRequest))


class Agents(Protocol):
    """What the verbs need of the ingest server."""

    async def revoke(self, agent: str, *, actor: str) -> bool: ...


class Verbs:
    """One per engine process. `answer` is the handler of a ControlServer."""

    def __init__(
        self,
        pipeline: Pipeline,
        authority: Authority,
        agents: Agents,
        outbox: Outbox,
        *,
        enrol_address: Callable[[], str],
        clock: Callable[[], int],
        status: Callable[[], dict[str, Any]],
        metrics: Callable[[], str],
        reload: Callable[[], Awaitable[Config]],
        revoked: Callable[[], Awaitable[None]],
        in_force: Callable[[], Config],
    ) -> None:
        self._pipeline = pipeline
        self._authority = authority
        self._agents = agents
        self._outbox = outbox
        self._enrol_address = enrol_address
        self._clock = clock
        self._status = status
        self._metrics = metrics
        self._reload = reload
        self._revoked = revoked
        self._in_force = in_force
        self._logins = asyncio.Semaphore(LOGINS_AT_ONCE)

    async def answer(self, line: dict[str, Any]) -> dict[str, Any]:
        """The fields of the answer. Raises ControlError for everything the asker can put right."""
        try:
            request = msgspec.convert(line, AnyRequest)
        except msgspec.ValidationError as error:
            raise ControlError("malformed", str(error), f"known are: {', '.join(VERBS)}") from error
        try:
            return await self._do(request)
        except (TokenError, AccountError, RetryError) as error:
            raise ControlError("refused", str(error)) from error
        except PipelineStoppedError as error:
            raise ControlError("busy", "the collector is stopping", "try again in a moment") from error

    async def _do(self, request: AnyRequest) -> dict[str, Any]:
        match request:
            case DoCommand():
                return await self._command(request)
            case CreateToken():
                return await self._create_token(request)
            case RevokeToken():
                return await self._revoke_token(request)
            case RevokeAgent():
                return await self._revoke_agent(request)
            case Login():
                return await self._login(request)
            case Logout():
                return await self._logout(request)
            case CreateAccount():
                return await self._create_account(request)
            case RetryNotice():
                revived = await self._outbox.retry_dead(request.id, request.actor)
                return {"channel": revived.channel, "idempotency_key": revived.idempotency_key}
            case AskStatus():
                return self._status()
            case AskMetrics():
                return {"text": self._metrics()}
            case Reload():
                return await self._reload_files()

    async def _command(self, request: DoCommand) -> dict[str, Any]:
        if len(request.text) > TEXT_CHARS_MAX:
            raise ControlError("refused", f"the text has {len(request.text)} characters, at most {TEXT_CHARS_MAX}")
        answer = await self._pipeline.command(Command(request.kind, request.actor, request.incident, request.text))
        if answer.error:
            raise ControlError("refused", answer.error)
        return {"incident": answer.incident or request.incident}

    async def _create_token(self, request: CreateToken) -> dict[str, Any]:
        known = {site.id for site in self._in_force().registry.sites}
        if request.site and request.site not in known:
            there = ", ".join(sorted(known)) or "none"
            raise ControlError("refused", f'there is no site "{request.site}"', f"sites in the registry: {there}")
        secret, now_ms = secrets.token_bytes(SECRET_BYTES), self._clock()
        token = await self._pipeline.administer(
            lambda connection: tokens.create(
                connection,
                secret=secret,
                actor=request.actor,
                now_ms=now_ms,
                device=request.device,
                site=request.site,
                ttl_ms=request.ttl_s * 1000,
                uses=request.uses,
            )
        )
        text = tokens.text(self._enrol_address(), self._authority.pin, self._authority.ca_pem, secret)
        return {"token": text, "id": token.id, "expires_ms": token.expires_ms}

    async def _revoke_token(self, request: RevokeToken) -> dict[str, Any]:
        now_ms = self._clock()
        token = await self._pipeline.administer(
            lambda connection: tokens.revoke(connection, request.id, actor=request.actor, now_ms=now_ms)
        )
        return {"id": token.id, "revoked_ms": token.revoked_ms}

    async def _revoke_agent(self, request: RevokeAgent) -> dict[str, Any]:
        if not await self._agents.revoke(request.name, actor=request.actor):
            raise ControlError("unknown", f'no agent "{request.name}" has enrolled', "`tocsin hosts ls` shows them")
        await self._revoked()
        return {"name": request.name}

    async def _login(self, request: Login) -> dict[str, Any]:
        account = await self._pipeline.administer(lambda connection: accounts.find(connection, request.name))
        if not 60 <= request.ttl_s <= SESSION_S_MAX:
            raise ControlError("refused", f"ttl_s is {request.ttl_s}", f"a login lasts 60 to {SESSION_S_MAX} s")
        async with self._logins:
            is_right = await asyncio.to_thread(accounts.is_password, account, request.password)
        if account is None or not is_right:
            raise ControlError("denied", "name or password is wrong")
        secret, now_ms, ttl_ms = secrets.token_urlsafe(SECRET_BYTES), self._clock(), request.ttl_s * 1000
        await self._pipeline.administer(
            lambda connection: accounts.start_session(
                connection, account, secret, label=request.label, ttl_ms=ttl_ms, now_ms=now_ms
            )
        )
        return {"token": secret, "role": account.role, "expires_ms": now_ms + ttl_ms}

    async def _logout(self, request: Logout) -> dict[str, Any]:
        try:
            hashed = bytes.fromhex(request.token_hash)
        except ValueError as error:
            raise ControlError("malformed", "token_hash is not hexadecimal") from error
        now_ms = self._clock()
        ended = await self._pipeline.administer(lambda connection: accounts.end_session(connection, hashed, now_ms))
        return {"ended": ended}

    async def _create_account(self, request: CreateAccount) -> dict[str, Any]:
        async with self._logins:
            hashed = await asyncio.to_thread(accounts.hash_password, request.password)
        now_ms = self._clock()
        account = await self._pipeline.administer(
            lambda connection: accounts.create(
                connection,
                name=request.name,
                password_hash=hashed,
                role=request.role,
                actor=request.actor,
                now_ms=now_ms,
            )
        )
        return {"name": account.name, "role": account.role}

    async def _reload_files(self) -> dict[str, Any]:
        try:
            config = await self._reload()
        except SettingsError as error:
            raise ControlError("invalid", str(error), "the configuration in force has not changed") from error
        return {"version": config.registry.version}
