"""Errors of the API as RFC 9457 problem details: what is wrong, and what would be right."""

import msgspec
from starlette.responses import Response


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error. `code` is for programs, `detail` and `hint` are for people."""

    title: str
    status: int
    code: str
    type: str = "about:blank"
    detail: str = ""
    hint: str = ""
    instance: str = ""


class Failure(Exception):
    """Raised by an operation; answered as a Problem."""

    def __init__(self, status: int, code: str, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.hint = hint


TITLES = {
    400: "Bad request",
    401: "Not logged in",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Not possible now",
    413: "Too large",
    415: "Not JSON",
    422: "Not valid",
    429: "Too many tries",
    500: "Internal error",
    503: "Not available",
}

# The engine's error codes, as answers of HTTP. What is not here is a conflict with the state of things.
STATUS_OF = {
    "not-found": 404,
    "unknown": 404,
    "invalid": 422,
    "malformed": 422,
    "too-long": 413,
    "denied": 401,
    "forbidden": 403,
    "busy": 503,
    "timeout": 503,
    "unreachable": 503,
    "internal": 503,
}


def problem(failure: Failure, instance: str = "", headers: dict[str, str] | None = None) -> Response:
    told = Problem(
        title=TITLES.get(failure.status, "Error"),
        status=failure.status,
        code=failure.code,
        detail=failure.detail,
        hint=failure.hint,
        instance=instance,
    )
    return Response(msgspec.json.encode(told), failure.status, headers, "application/problem+json")
