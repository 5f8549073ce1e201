"""One call of the API: an operation's description, its typed input, its answer.

The description (`Operation`) is what routing, checking and OpenAPI are made from, so that the three cannot differ.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response

from tocsin_collector.control import ControlError
from tocsin_collector.web.api.problem import STATUS_OF, Failure
from tocsin_collector.web.view import View

LIMIT = 100
LIMIT_MAX = 1000

T = TypeVar("T", bound=msgspec.Struct)


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An operation without parameters."""


class Paging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """after: the cursor `next` of the page before."""

    after: str = ""
    limit: int = LIMIT


class Call:
    """A View with the operation's input beside it."""

    def __init__(self, view: View, query: Any, body: Any) -> None:
        self.view = view
        self.web = view.web
        self.source = view.web.source
        self.language = view.language
        self.query = query
        self.body = body

    def __getitem__(self, name: str) -> str:
        """A part of the path."""
        return str(self.view.request.path_params[name])

    async def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """The engine's answer; its refusals as Failures."""
        try:
            return await self.web.control.call(do, **fields)
        except ControlError as error:
            raise Failure(STATUS_OF.get(error.code, 409), error.code, error.message, error.hint) from error


@dataclass(frozen=True, slots=True)
class Operation:
    """role "": anybody. answer None: nothing but the status."""

    name: str
    method: str
    path: str
    role: str
    summary: str
    run: Callable[[Call], Awaitable[Any]]
    answer: Any
    query: type[msgspec.Struct] = NoQuery
    body: type[msgspec.Struct] | None = None
    status: int = 200


async def perform(operation: Operation, view: View) -> Response:
    """Checks the input, runs, encodes. Raises Failure."""
    query = _query(operation.query, dict(view.request.query_params))
    body = await _body(operation.body, view) if operation.body else None
    result = await operation.run(Call(view, query, body))
    if isinstance(result, Response):
        return result
    return Response(msgspec.json.encode(result), operation.status, media_type="application/json")


def _query(type_: type[T], given: dict[str, str]) -> T:
    known = [field.encode_name for field in msgspec.structs.fields(type_)]
    for name in given:
        if name not in known and name not in ("lang", "theme"):
            close = get_close_matches(name, known, 1)
            hint = f'did you mean "{close[0]}"?' if close else f"known are: {', '.join(known) or 'none'}"
            raise Failure(400, "unknown parameter", f'unknown parameter "{name}"', hint)
    try:
        query = msgspec.convert({n: v for n, v in given.items() if n in known}, type_, strict=False)
    except msgspec.ValidationError as error:
        raise Failure(400, "invalid parameter", str(error)) from error
    limit = getattr(query, "limit", LIMIT)
    if not 1 <= limit <= LIMIT_MAX:
        raise Failure(400, "invalid parameter", f"limit is {limit}", f"1 to {LIMIT_MAX}")
    return query


async def _body(type_: type[T], view: View) -> T:
    sent = view.request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if sent != "application/json":
        raise Failure(415, "not json", f'the body is "{sent}"', "send application/json")
    raw = await view.request.body()
    try:
        return msgspec.json.decode(raw or b"{}", type=type_)
    except msgspec.ValidationError as error:
        raise Failure(422, "invalid body", str(error)) from error
    except msgspec.MsgspecError as error:
        raise Failure(400, "not json", str(error)) from error
