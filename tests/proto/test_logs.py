"""The log: what an operator and a log shipper read, and what nobody may."""

import contextlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator

import pytest
import structlog

from tocsin_proto import logs
from tocsin_proto.logs import Format


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def configured(format: Format, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(format, level, stream)
    return stream


STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_json_lines_carry_the_moment_the_level_and_the_facts() -> None:
    stream = configured("json")
    structlog.get_logger().warning("delivery deferred", target="台账", attempt=3, retry_s=1.5)
    line = json.loads(stream.getvalue())
    assert list(line)[:3] == ["ts", "level", "event"]
    assert re.fullmatch(STAMP, line.pop("ts"))
    assert line == {"level": "warning", "event": "delivery deferred", "target": "台账", "attempt": 3, "retry_s": 1.5}


def test_logfmt_keeps_one_event_on_one_line() -> None:
    stream = configured("logfmt")
    structlog.get_logger().info("trap refused", text='a "b"\nc', fields={"odd key": 1}, **{"two words": "x"})
    told = stream.getvalue()
    assert told.count("\n") == 1
    assert re.match(rf'ts={STAMP} level=info event="trap refused" ', told)
    assert r'text="a \"b\"\nc"' in told
    assert "two_words=x" in told


def test_auto_is_logfmt_where_nobody_looks() -> None:
    stream = configured("auto")
    structlog.get_logger().info("started")
    assert re.fullmatch(rf"ts={STAMP} level=info event=started\n", stream.getvalue())


@pytest.mark.parametrize("format", ["console", "logfmt", "json"])
def test_secrets_are_taken_out_of_every_format_at_every_depth(format: Format) -> None:
    stream = configured(format)
    secret = "hunter2"
    structlog.contextvars.bind_contextvars(session_token=secret)
    try:
        log = structlog.get_logger()
        log.warning(
            "asked", community=secret, snmp={"authKey": secret, "walks": [{"password": secret}]}, raw=secret.encode()
        )
        logging.getLogger("library").warning("said", extra={"api_key": secret})
        try:
            key = secret
            raise ValueError(f"{len(key)} characters")
        except ValueError:
            log.exception("failed", private_key=key)
    finally:
        structlog.contextvars.clear_contextvars()
    told = stream.getvalue()
    assert secret not in told
    assert told.count("[redacted]") >= 5
    assert "7 characters" in told  # the traceback is there, without its variables


def test_a_library_logs_into_the_same_stream_and_format() -> None:
    stream = configured("json")
    logging.getLogger("grpc").warning("channel %s", "closed")
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["logger"]) == ("channel closed", "warning", "grpc")
    assert re.fullmatch(STAMP, line["ts"])


def test_a_level_below_is_silent_and_configuring_again_does_not_double() -> None:
    configured("json", "debug")
    stream = configured("json", "warning")
    log = structlog.get_logger()
    log.info("quiet")
    log.error("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_a_field_has_a_bound_and_so_has_its_depth() -> None:
    stream = configured("json")
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    structlog.get_logger().info("bounded", text="x" * 100_000, deep=deep, when=object)
    line = json.loads(stream.getvalue())
    assert len(line["text"]) == logs.FIELD_CHARS_MAX + 3
    assert json.dumps(line["deep"]).count("[") == logs.DEPTH_MAX


def test_unknown_formats_and_levels_are_refused() -> None:
    with pytest.raises(ValueError, match='"xml" is not a log format, write auto, console, logfmt or json'):
        logs.configure("xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='"loud" is not a log level, write debug, info, warning or error'):
        logs.configure("json", "loud")


@pytest.mark.parametrize("is_full", [True, False], ids=["full disk", "closed pipe"])
def test_a_line_that_cannot_be_written_is_lost_and_stops_nobody(
    is_full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if is_full:
        stream = open("/dev/full", "w")  # noqa: SIM115, PTH123 - closed below, after a write that fails
    else:
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "w")
    logs.configure("json", "info", stream)
    log = structlog.get_logger()
    log.warning("tried", attempt=1)
    logging.getLogger("library").warning("tried %s", "twice")
    with contextlib.suppress(OSError):
        stream.close()
    log.warning("tried", attempt=3)  # on a closed file: ValueError
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logs.Handler)
    assert handler.lost == 3
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")


def test_a_log_call_that_cannot_be_rendered_is_told_without_its_arguments() -> None:
    stream = configured("logfmt")
    logging.getLogger("library").warning("%d", "hunter2")
    assert re.fullmatch(r"log line of test_logs:\d+ cannot be rendered: TypeError\n", stream.getvalue())
