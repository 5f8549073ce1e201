"""The log of all commands: one constant sentence and its facts a line, on stderr, secrets taken out.

Not where people's texts are made: log lines are English and for operators. Invariant: what a field named like a secret
holds is never written (law 9), however deep it is nested, and neither by our own calls nor by a library's; and a line that
cannot be written (full disk, closed pipe) is lost and counted, but stops nobody.
"""

import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import Processor

from tocsin_proto.redaction import REDACTED, is_secret

Format = Literal["auto", "console", "logfmt", "json"]

DEPTH_MAX: Final = 6
FIELD_CHARS_MAX: Final = 2000
_FIRST: Final = ("ts", "level", "logger", "event")


def configure(format: Format = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging; call once, at the start of a command.

    `auto` is `console` on a terminal and `logfmt` elsewhere. ValueError on an unknown format or level.
    """
    out = stream if stream is not None else sys.stderr
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f'"{level}" is not a log level, write debug, info, warning or error')
    rendering = _renderers(format, out)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _stamp,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = Handler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)


class Handler(logging.StreamHandler[TextIO]):
    """The standard library's would tell of a failed write on stderr, arguments and all, or raise."""

    lost = 0  # lines that could not be written

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # a mistake in a call of ours must be seen, but not what it wanted to tell
            line = f"log line of {record.module}:{record.lineno} cannot be rendered: {type(error).__name__}"
        try:
            self.stream.write(line + self.terminator)
            self.flush()
        except (OSError, ValueError):
            self.lost += 1


def redact(logger: Any, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: fields named like a secret lose their value, everything else its excess length."""
    for name, value in fields.items():
        fields[name] = _cleaned(name, value, DEPTH_MAX)
    return fields


def _cleaned(name: str, value: Any, depth: int) -> Any:
    if is_secret(name) and value is not None and not isinstance(value, bool):
        return REDACTED
    if isinstance(value, str):
        return value if len(value) <= FIELD_CHARS_MAX or name == "exception" else value[:FIELD_CHARS_MAX] + "..."
    if isinstance(value, bytes):
        return f"{len(value)} bytes"  # raw packets and keys say nothing to a reader
    if not depth:
        return "..."
    if isinstance(value, dict):
        return {key: _cleaned(str(key), item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cleaned("", item, depth - 1) for item in value]
    return value


def _stamp(logger: Any, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """RFC 3339 in UTC, to the millisecond; a library's record keeps the moment it was made."""
    record = fields.get("_record")
    moment = datetime.now(UTC) if record is None else datetime.fromtimestamp(record.created, UTC)
    fields["ts"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return fields


def _renderers(format: Format, out: TextIO) -> list[Processor]:
    if format == "auto":
        format = "console" if out.isatty() else "logfmt"
    if format == "console":
        # Plain tracebacks: the rich ones print local variables, and with them secrets.
        plain = structlog.dev.plain_traceback
        return [
            redact,
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(), timestamp_key="ts", pad_event_to=0, exception_formatter=plain
            ),
        ]
    if format == "json":
        return [
            structlog.processors.format_exc_info,
            redact,
            _ordered,
            structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ]
    if format == "logfmt":
        return [
            structlog.processors.format_exc_info,
            redact,
            _flat,
            structlog.processors.LogfmtRenderer(key_order=_FIRST, drop_missing=True),
        ]
    raise ValueError(f'"{format}" is not a log format, write auto, console, logfmt or json')


def _ordered(logger: Any, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {**{name: fields[name] for name in _FIRST if name in fields}, **fields}


def _flat(logger: Any, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """logfmt knows no tables: keys must be bare words, values become text."""
    return {
        "".join(char if char.isalnum() or char in "_.-" else "_" for char in str(name)): value
        if isinstance(value, str | int | float | bool)
        else ("" if value is None else str(value))
        for name, value in fields.items()
    }
