"""The signed webhook against a real receiver: what is sent, and what each answer and each accident means."""

import asyncio
import hashlib
import hmac
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.desk_rig import notice
from tests.support.receiver import CUT, HANG, SECRET, Answer, Receiver

from tocsin_collector.config import Channel
from tocsin_collector.core.model import Notice
from tocsin_collector.desk import cloudevents, outbox
from tocsin_collector.desk.base import CONNECTORS, Delivery, Outcome, Surroundings, Verdict, connector
from tocsin_collector.desk.signature import SIGNATURES_MAX, SignatureError, sign, verify
from tocsin_collector.desk.webhook import Webhook, classify, retry_after_s
from tocsin_collector.i18n import language
from tocsin_proto.settings import Duration, SettingsError

NOW_S = 1_800_000_000
OPENED = notice("I-7", 0, "opened")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    (tmp_path / "desk").write_bytes(SECRET + b"\n")
    (tmp_path / "desk").chmod(0o600)
    return tmp_path


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


def surroundings(secrets: Path) -> Surroundings:
    return Surroundings(secrets, "//collector.example/tocsin", "https://tocsin.example/", unix_ms)


def channel(url: str, **fields: Any) -> Channel:
    return Channel(id="desk", url=url, secret_file="desk", **{"timeout": Duration("5s"), **fields})


def deliver(secrets: Path, url: str, *notices: Notice, **fields: Any) -> list[Outcome]:
    async def main() -> list[Outcome]:
        webhook = connector(channel(url, **fields), surroundings(secrets))
        try:
            return [await webhook.deliver(Delivery(f"{n.incident}:{n.ordinal}:desk", 1, n)) for n in notices]
        finally:
            await webhook.close()

    return asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ what is sent


def test_a_notice_arrives_as_a_signed_cloudevent(receiver: Receiver, secrets: Path) -> None:
    (outcome,) = deliver(secrets, receiver.url, OPENED)

    assert outcome == Outcome(Verdict.OK)
    (call,) = receiver.calls
    assert call.headers["Content-Type"] == "application/cloudevents+json; charset=utf-8"
    assert call.headers["Idempotency-Key"] == "I-7:0:desk"
    data = call.event.pop("data")
    assert call.event == {
        "specversion": "1.0",
        "id": "I-7:0:desk",
        "source": "//collector.example/tocsin",
        "type": "io.tocsin.incident.opened",
        "subject": "I-7",
        "time": "2027-01-15T08:00:00.000Z",
        "datacontenttype": "application/json",
    }
    assert data["text"] == "/ on edge-1 is 93.2% full"
    assert data["link"] == "https://tocsin.example/incidents/I-7"
    assert (data["key"], data["severity"], data["state"]) == ("disk-full/I-7", "major", "open")
    assert (data["opened_at"], data["resolved_at"]) == ("2027-01-15T08:00:00.000Z", None)


def test_the_sentence_is_in_the_language_of_the_channel(receiver: Receiver, secrets: Path) -> None:
    deliver(secrets, receiver.url, OPENED, lang="zh")
    assert receiver.calls[0].event["data"]["lang"] == "zh-CN"


def test_a_repetition_is_the_same_event_to_the_byte() -> None:
    delivery = Delivery("I-7:0:desk", 1, OPENED)
    first = cloudevents.encode(delivery, source="//a", link="", language=language("en"))
    again = cloudevents.encode(Delivery("I-7:0:desk", 9, OPENED), source="//a", link="", language=language("en"))
    assert first == again
    assert json.loads(first)["data"]["link"] is None


@given(st.integers(-(1 << 62), 1 << 62))
def test_every_moment_can_be_written(ms: int) -> None:
    text = cloudevents.moment(ms)
    assert text is None if ms <= 0 else text is not None and text.endswith("Z") and len(text) == 24


def test_one_connection_serves_many_notices(receiver: Receiver, secrets: Path) -> None:
    outcomes = deliver(secrets, receiver.url, *[notice(f"I-{n}", 0, "opened") for n in range(20)])
    assert {outcome.verdict for outcome in outcomes} == {Verdict.OK}
    assert receiver.connections == 1


def test_neither_secret_nor_address_is_ever_logged(
    receiver: Receiver, secrets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        receiver.plan.append(Answer(500, body=b"oops"))
        (outcome,) = deliver(secrets, f"{receiver.url}?token=hidden", OPENED)
    assert "hidden" not in caplog.text + outcome.detail
    assert SECRET.decode() not in caplog.text + outcome.detail


# ---------------------------------------------------------------------------------------------------- what is answered


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Verdict.OK), (202, Verdict.OK), (204, Verdict.OK),
        (301, Verdict.PERMANENT), (307, Verdict.PERMANENT),
        (400, Verdict.PERMANENT), (402, Verdict.PERMANENT), (401, Verdict.RETRY), (403, Verdict.RETRY),
        (404, Verdict.PERMANENT), (422, Verdict.PERMANENT),
        (408, Verdict.RETRY), (425, Verdict.RETRY), (429, Verdict.RETRY), (500, Verdict.RETRY), (503, Verdict.RETRY),
    ],
)  # fmt: skip
def test_every_answer_has_a_meaning(receiver: Receiver, secrets: Path, status: int, verdict: Verdict) -> None:
    receiver.plan.append(Answer(status, {"Location": receiver.url}))
    (outcome,) = deliver(secrets, receiver.url, OPENED)
    assert outcome.verdict is verdict
    assert len(receiver.calls) == 1, "a redirect is not followed"
    assert verdict is Verdict.OK or f"HTTP {status}" in outcome.detail


def test_the_receivers_words_are_kept_short_and_printable(receiver: Receiver, secrets: Path) -> None:
    receiver.plan.append(Answer(422, body=b"no such\n\x1b[31m queue " + b"x" * 5000))
    receiver.plan.append(Answer(500, body=b"y" * 10_000_000))
    refused, endless = deliver(secrets, receiver.url, OPENED, notice("I-8", 0, "opened"))
    assert refused.detail.startswith("HTTP 422: no such ?[31m queue xxx")
    assert len(refused.detail) < 250
    assert (endless.verdict, len(endless.detail)) == (Verdict.RETRY, len("HTTP 500: ") + 200)


def test_a_receiver_may_say_when_to_come_again(receiver: Receiver, secrets: Path) -> None:
    receiver.plan.append(Answer(503, {"Retry-After": "120"}))
    (outcome,) = deliver(secrets, receiver.url, OPENED)
    assert outcome.retry_after_s == 120.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0), ("17", 17.0), ("Fri, 15 Jan 2027 08:01:30 GMT", 90.0), ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("", 0.0), ("soon", 0.0), ("-5", 0.0), ("9" * 400, 999_999_999.0), ("Fri, 99 Jan 2027 08:01:30 GMT", 0.0), ("१", 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_garbage_is_nothing(header: str, seconds: float) -> None:
    assert retry_after_s(header, NOW_S * 1000) == seconds


@given(st.text(max_size=40))
def test_no_retry_after_header_breaks_anything(header: str) -> None:
    assert classify(503, header, "", NOW_S * 1000).retry_after_s >= 0


# ------------------------------------------------------------------------------------------------------- what happens


def test_a_receiver_that_hangs_or_cuts_may_have_taken_it(receiver: Receiver, secrets: Path) -> None:
    receiver.plan.extend([CUT, HANG])
    cut, hung = deliver(secrets, receiver.url, OPENED, OPENED, timeout=Duration("200ms"))
    assert (cut.verdict, hung.verdict) == (Verdict.UNCERTAIN, Verdict.UNCERTAIN)
    assert hung.detail == "no answer within 0.2 s"
    assert [call.key for call in receiver.calls] == ["I-7:0:desk"] * 2


def test_a_receiver_that_is_not_there_has_taken_nothing(secrets: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (outcome,) = deliver(secrets, f"http://127.0.0.1:{port}/", OPENED)
    assert outcome.verdict is Verdict.RETRY
    assert outcome.detail.startswith("no connection: ConnectError")


def test_a_receiver_that_speaks_no_tls_gets_nothing(receiver: Receiver, secrets: Path) -> None:
    (outcome,) = deliver(secrets, receiver.url.replace("http:", "https:"), OPENED)
    assert outcome.verdict is Verdict.RETRY
    assert not receiver.calls


def test_a_secret_is_changed_without_a_restart_and_its_absence_is_survived(receiver: Receiver, secrets: Path) -> None:
    async def main() -> list[Outcome]:
        webhook = Webhook(channel(receiver.url), surroundings(secrets))
        outcomes = [await webhook.deliver(Delivery("I-7:0:desk", 1, OPENED))]
        (secrets / "desk").write_bytes(b"another")
        outcomes.append(await webhook.deliver(Delivery("I-7:0:desk", 2, OPENED)))
        (secrets / "desk").unlink()
        outcomes.append(await webhook.deliver(Delivery("I-7:0:desk", 3, OPENED)))
        await webhook.close()
        return outcomes

    outcomes = asyncio.run(main())
    assert [o.verdict for o in outcomes] == [Verdict.OK, Verdict.RETRY, Verdict.RETRY]
    assert receiver.refused == ["Tocsin-Signature does not match: another secret, or the body was changed on the way"]
    assert outcomes[2].detail.endswith("desk: No such file or directory")


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file"), (b" \n", "is empty"), (b"x" * 5000, "more than 4096 bytes")]
)
def test_a_channel_without_a_usable_secret_is_told_of_at_the_start(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "desk").write_bytes(content)
    with pytest.raises(SettingsError, match=problem) as caught:
        outbox.connectors([channel("http://127.0.0.1:1/")], surroundings(tmp_path), Path("collector.toml"))
    assert "channel[0].secret_file" in str(caught.value)


def test_every_kind_of_channel_has_its_connector(secrets: Path) -> None:
    kinds = Channel.__annotations__["kind"].__args__
    assert set(kinds) == set(CONNECTORS)
    assert isinstance(connector(channel("http://127.0.0.1:1/"), surroundings(secrets)), Webhook)


# ---------------------------------------------------------------------------------------------------------- signature


def test_the_signature_is_plain_hmac_over_time_and_body() -> None:
    headers = sign(b"k", NOW_S, b"{}")
    by_hand = hmac.new(b"k", b"1800000000.{}", hashlib.sha256).hexdigest()
    assert headers == {"Tocsin-Timestamp": "1800000000", "Tocsin-Signature": f"v1={by_hand}"}
    verify(b"k", {name.lower(): value for name, value in headers.items()}, b"{}", NOW_S + 299)


def test_one_of_several_signatures_is_enough_while_a_secret_is_changed() -> None:
    old, new = sign(b"old", NOW_S, b"{}"), sign(b"new", NOW_S, b"{}")
    both = {**new, "Tocsin-Signature": f"{old['Tocsin-Signature']}, {new['Tocsin-Signature']}"}
    verify(b"old", both, b"{}", NOW_S)
    verify(b"new", both, b"{}", NOW_S)
    flood = {**new, "Tocsin-Signature": "v1=0," * SIGNATURES_MAX + new["Tocsin-Signature"]}
    with pytest.raises(SignatureError):
        verify(b"new", flood, b"{}", NOW_S)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda headers: {**headers, "Tocsin-Timestamp": "1799999999"}, "does not match"),
        (lambda headers: {**headers, "Tocsin-Timestamp": ""}, "missing"),
        (lambda headers: {**headers, "Tocsin-Timestamp": "1e9"}, "missing or no number"),
        (lambda headers: {**headers, "Tocsin-Timestamp": "9" * 5000}, "missing or no number"),
        (lambda headers: {**headers, "Tocsin-Signature": headers["Tocsin-Signature"][3:]}, "does not match"),
        (lambda headers: {**headers, "Tocsin-Signature": "v1=\udcff"}, "does not match"),
        (lambda headers: {}, "missing"),
        (lambda headers: sign(b"k", NOW_S - 301, b"{}"), "301 s off"),
        (lambda headers: sign(b"k", NOW_S + 301, b"{}"), "301 s off"),
    ],
)
def test_what_is_not_signed_right_and_now_is_refused(
    spoil: Callable[[dict[str, str]], dict[str, str]], problem: str
) -> None:
    with pytest.raises(SignatureError, match=problem):
        verify(b"k", spoil(sign(b"k", NOW_S, b"{}")), b"{}", NOW_S)


@given(secret=st.binary(min_size=1), body=st.binary(), other=st.binary())
def test_only_the_signed_body_passes(secret: bytes, body: bytes, other: bytes) -> None:
    headers = sign(secret, NOW_S, body)
    verify(secret, headers, body, NOW_S)
    if other != body:
        with pytest.raises(SignatureError):
            verify(secret, headers, other, NOW_S)
