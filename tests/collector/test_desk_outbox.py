"""The outbox on a real pipeline and database: order, retries, what is given up, what a restart finds."""

import asyncio
import json
from itertools import pairwise
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.support.desk_rig import OK, PERMANENT, RETRY, UNCERTAIN, Channel, Rig, clock, notice
from tests.support.virtual_time import run_virtual

from tocsin_collector.desk.base import Delivery, Outcome, Verdict
from tocsin_collector.desk.due import RetryError
from tocsin_collector.desk.schedule import Pace


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tocsin.db"


def script(*outcomes: Outcome) -> Channel:
    """The outcomes in turn, then OK."""
    left = list(outcomes)
    return Channel(lambda delivery: left.pop(0) if left else OK)


def test_a_notice_is_told_once_on_each_channel_and_its_timeline_says_so(path: Path) -> None:
    async def main() -> None:
        async with Rig(path, desk=Channel(), mail=Channel()) as rig:
            await rig.write(notice("I-1", 0, "opened"), notice("I-1", 1, "resolved"))
            await rig.settle(10)
            assert rig.channels["desk"].keys() == ["I-1:0:desk", "I-1:1:desk"]
            assert rig.channels["mail"].keys() == ["I-1:0:mail", "I-1:1:mail"]
            lines = await rig.rows('SELECT incident, "offset", kind, facts FROM timeline ORDER BY id')
            facts = [json.loads(facts) for *_, facts in lines]
            assert {line[:3] for line in lines} == {("I-1", -1, "delivered")}
            assert sorted((f["channel"], f["notice"], f["attempts"]) for f in facts) == [
                ("desk", "opened", 1), ("desk", "resolved", 1), ("mail", "opened", 1), ("mail", "resolved", 1),
            ]  # fmt: skip
            assert await rig.count("state = 'sent' AND attempts = 1 AND delivered_ms > 0") == 4

    run_virtual(main())


def test_a_notice_that_is_not_taken_is_retried_with_the_same_key_before_the_next_one_is_tried(path: Path) -> None:
    async def main() -> None:
        async with Rig(path, desk=script(RETRY, UNCERTAIN, RETRY)) as rig:
            await rig.write(notice("I-1", 0, "opened"), notice("I-1", 1, "resolved"))
            await rig.settle(60)
            desk = rig.channels["desk"]
            assert desk.keys() == ["I-1:0:desk"] * 4 + ["I-1:1:desk"]
            assert [delivery.attempt for delivery in desk.attempts] == [1, 2, 3, 4, 1]
            lines = await rig.rows("SELECT kind, facts FROM timeline ORDER BY id")
            assert [(kind, json.loads(facts)["attempts"]) for kind, facts in lines] == [
                ("delivered", 4),
                ("delivered", 1),
            ]

    run_virtual(main())


def test_retries_wait_longer_each_time_and_as_long_as_the_receiver_asks(path: Path) -> None:
    async def main() -> None:
        times: list[float] = []
        outcomes = [RETRY, RETRY, Outcome(Verdict.RETRY, "HTTP 429", retry_after_s=20), OK]

        def answer(delivery: Delivery) -> Outcome:
            times.append(clock() / 1000)
            return outcomes[len(times) - 1]

        async with Rig(path, desk=Channel(answer, takes_s=0)) as rig:
            await rig.write(notice("I-1", 0, "opened"))
            await rig.settle(300)
        waits = [round(later - earlier, 1) for earlier, later in pairwise(times)]
        assert waits == [1.0, 2.0, 20.0]

    run_virtual(main())


def test_incidents_are_told_in_parallel_within_the_bound_and_none_waits_for_a_stuck_one(path: Path) -> None:
    async def main() -> None:
        stuck = Channel(lambda delivery: RETRY if delivery.notice.incident == "I-0" else OK)
        async with Rig(path, desk=stuck) as rig:
            await rig.write(*[notice(f"I-{n}", 0, "opened") for n in range(100)])
            await rig.write(*[notice(f"I-{n}", 1, "resolved") for n in range(100)])
            await asyncio.sleep(5)
            assert await rig.count("state = 'sent'") == 198
            assert stuck.at_once_max == 8
            assert "I-0:1:desk" not in set(stuck.keys())

    run_virtual(main())


def test_the_next_incident_of_a_key_waits_until_the_one_before_it_is_told_to_its_end(path: Path) -> None:
    async def main() -> None:
        times_refused = iter([RETRY] * 3)
        slow = Channel(lambda d: next(times_refused, OK) if d.notice.kind == "resolved" else OK)
        async with Rig(path, desk=slow) as rig:
            await rig.write(notice("I-1", 0, "opened", "k"), notice("I-1", 1, "resolved", "k"))
            await rig.write(notice("I-9", 0, "opened", "k"))
            await rig.settle(60)
            assert slow.keys() == ["I-1:0:desk"] + ["I-1:1:desk"] * 4 + ["I-9:0:desk"]

    run_virtual(main())


def test_a_refused_notice_is_given_up_holds_back_what_follows_and_can_be_told_by_hand(path: Path) -> None:
    async def main() -> None:
        async with Rig(path, desk=script(PERMANENT)) as rig:
            await rig.write(notice("I-1", 0, "opened"), notice("I-1", 1, "resolved"))
            await asyncio.sleep(120)
            assert rig.channels["desk"].keys() == ["I-1:0:desk"]
            dead = await rig.rows("SELECT id, state, attempts, last_error FROM outbox ORDER BY id")
            assert [row[1:] for row in dead] == [("dead", 1, "HTTP 422"), ("due", 0, "")]
            ((kind, facts),) = await rig.rows("SELECT kind, facts FROM timeline")
            assert (kind, json.loads(facts)["problem"]) == ("delivery_failed", "HTTP 422")

            revived = await rig.outbox.retry_dead(dead[0][0], actor="zm")
            await rig.settle(10)
            assert (revived.channel, revived.idempotency_key) == ("desk", "I-1:0:desk")
            assert rig.channels["desk"].keys() == ["I-1:0:desk", "I-1:0:desk", "I-1:1:desk"]
            assert await rig.rows("SELECT actor, action FROM audit") == [("zm", "delivery retried")]

    run_virtual(main())


def test_something_new_gives_what_was_given_up_one_more_try(path: Path) -> None:
    async def main() -> None:
        async with Rig(path, desk=script(OK, PERMANENT, PERMANENT)) as rig:
            await rig.write(notice("I-1", 0, "opened", "k"), notice("I-1", 1, "resolved", "k"))
            await asyncio.sleep(100)
            assert await rig.count("state = 'dead'") == 1
            await rig.write(notice("I-9", 0, "opened", "k"))
            await asyncio.sleep(100)
            assert rig.channels["desk"].keys()[1:] == ["I-1:1:desk"] * 2
            await rig.write(notice("I-9", 1, "resolved", "k"))
            await rig.settle(60)
            assert rig.channels["desk"].keys()[3:] == ["I-1:1:desk", "I-9:0:desk", "I-9:1:desk"]

    run_virtual(main())


def test_a_refused_update_holds_nothing_back_and_cannot_be_told_after_what_followed_it(path: Path) -> None:
    async def main() -> None:
        async with Rig(path, desk=script(OK, PERMANENT)) as rig:
            await rig.write(notice("I-1", 0, "opened"), notice("I-1", 1, "updated"), notice("I-1", 2, "resolved"))
            await rig.settle(10)
            assert rig.channels["desk"].keys() == ["I-1:0:desk", "I-1:1:desk", "I-1:2:desk"]
            ((id,),) = await rig.rows("SELECT id FROM outbox WHERE state = 'dead'")
            with pytest.raises(RetryError, match="overtaken"):
                await rig.outbox.retry_dead(id, actor="zm")
            with pytest.raises(RetryError, match="is sent; only one that was given up"):
                await rig.outbox.retry_dead(id - 1, actor="zm")
            with pytest.raises(RetryError, match="there is no notice 99"):
                await rig.outbox.retry_dead(99, actor="zm")

    run_virtual(main())


def test_a_channel_that_is_down_is_probed_by_one_notice_and_caught_up_as_soon_as_it_is_back(path: Path) -> None:
    async def main() -> None:
        desk = Channel(lambda delivery: RETRY)
        async with Rig(path, desk=desk) as rig:
            await rig.write(*[notice(f"I-{n}", 0, "opened") for n in range(500)])
            await asyncio.sleep(400)
            assert 8 <= len(desk.attempts) < 40, "a desk that is down for long is not hammered by 500 notices"
            status = rig.outbox.status()[0]
            assert status.paused_until_ms > 0
            assert status.last_error == "busy"
            before = clock()
            desk.answer = lambda delivery: OK
            await rig.settle(150)
            assert clock() - before <= 125_000
            assert {d.idempotency_key for d in desk.attempts[-500:]} == {f"I-{n}:0:desk" for n in range(500)}

    run_virtual(main())


def test_a_wrong_secret_costs_a_few_notices_and_not_all_that_wait(path: Path) -> None:
    async def main() -> None:
        async with Rig(path, desk=Channel(lambda delivery: PERMANENT)) as rig:
            await rig.write(*[notice(f"I-{n}", 0, "opened") for n in range(500)])
            await asyncio.sleep(100)
            assert await rig.count("state = 'dead'") < 25

    run_virtual(main())


def test_more_waits_than_is_held_in_memory(path: Path) -> None:
    async def main() -> None:
        pace = Pace(lanes_max=10, page_rows=7, parallel_max=3)
        desk = script(*[RETRY] * 4)
        async with Rig(path, desk=desk, pace=pace) as rig:
            for ordinal, kind in enumerate(["opened", "updated", "resolved", "opened", "resolved"]):
                await rig.write(*[notice(f"I-{n}", ordinal, kind) for n in range(40)])
            widest = 0
            while await rig.count("state = 'due'"):
                widest = max(widest, rig.outbox.status()[0].waiting)
                await asyncio.sleep(0.05)
            assert 3 <= widest <= 10
            assert desk.at_once_max <= 3
            assert len(desk.took) == 200

    run_virtual(main())


def test_a_notice_whose_outcome_was_not_durable_is_told_again_after_a_crash(path: Path) -> None:
    async def main() -> None:
        rig = Rig(path, desk=Channel(takes_s=2.0))
        await rig.open()
        await rig.write(notice("I-1", 0, "opened"), notice("I-1", 1, "resolved"))
        await asyncio.sleep(1)
        await rig.crash()
        await rig.open()
        await rig.settle(60)
        await rig.close()
        assert rig.channels["desk"].keys() == ["I-1:0:desk", "I-1:0:desk", "I-1:1:desk"]

    run_virtual(main())


def test_an_outcome_known_at_the_end_of_the_process_is_kept(path: Path) -> None:
    async def main() -> None:
        rig = Rig(path, desk=Channel(takes_s=0.0))
        await rig.open()
        await rig.write(notice("I-1", 0, "opened"))
        await rig.channels["desk"].has_taken.wait()
        await rig.close()
        await rig.open()
        await asyncio.sleep(60)
        await rig.close()
        assert rig.channels["desk"].keys() == ["I-1:0:desk"]

    run_virtual(main())


def test_a_row_that_cannot_be_read_and_a_connector_that_breaks_stop_nobody_else(path: Path) -> None:
    async def main() -> None:
        def answer(delivery: Delivery) -> Outcome:
            if delivery.notice.incident == "I-2" and delivery.attempt == 1:
                raise RuntimeError("a bug")
            return OK

        async with Rig(path, desk=Channel(answer)) as rig:
            await rig.close()
            await rig.open()
            insert = (
                'INSERT INTO outbox (channel, "key", incident, ordinal, kind, idempotency_key, created_ms, body)'
                " VALUES ('desk', 'k', 'I-1', 0, 'opened', 'I-1:0:desk', 1, '{')"
            )
            await rig.pipeline.administer(lambda connection: connection.execute_fetchall(insert))
            await rig.write(notice("I-2", 0, "opened"), notice("I-3", 0, "opened"))
            await rig.settle(60)
            states = dict(await rig.rows("SELECT idempotency_key, state FROM outbox"))
            assert states == {"I-1:0:desk": "dead", "I-2:0:desk": "sent", "I-3:0:desk": "sent"}

    run_virtual(main())


def test_notices_of_a_channel_that_is_gone_stay_and_are_spoken_of(path: Path) -> None:
    async def main() -> None:
        async with Rig(path, desk=Channel(lambda delivery: RETRY)) as rig:
            await rig.write(notice("I-1", 0, "opened"))
        with capture_logs() as logs:
            async with Rig(path, mail=Channel()) as rig:
                await asyncio.sleep(1)
                assert await rig.count("state = 'due' AND channel = 'desk'") == 1
        assert [(line["channel"], line["count"]) for line in logs if "not configured" in line["event"]] == [("desk", 1)]

    run_virtual(main())
