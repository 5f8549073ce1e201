"""Channels that come, go and are renamed: each hears of an incident from its opening to its end, or not at all."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.support.desk_rig import RETRY, START_MS, Channel, Rig, notice
from tests.support.plant import entry, incident
from tests.support.virtual_time import run_virtual

from tocsin_collector.core.model import IncidentChanged, IncidentState, Notice
from tocsin_collector.desk import outbox
from tocsin_collector.store import inline, told
from tocsin_collector.store.base import Statements, Transaction
from tocsin_collector.store.inline import run_inline
from tocsin_collector.store.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tocsin.db"


class Plant:
    """A store whose channels change from one opening to the next, and one incident after the other on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def open(self, *channels: str) -> None:
        self.store = run_inline(SqliteStore.open(self.path, connect=inline.connect, channels=channels))
        self.catch_up(channels)

    def close(self) -> None:
        run_inline(self.store.close())

    def catch_up(self, channels: Sequence[str]) -> int:
        async def operation(connection: Statements) -> int:
            return await told.catch_up(connection, channels, START_MS)

        (answer,) = run_inline(self.store.commit(Transaction(operations=[operation])))
        assert answer.error is None, answer.error
        return int(answer.value)

    def say(self, id: str, ordinal: int, kind: str) -> None:
        """As the core does: the incident as it is, and the notice of it."""
        self.offset += 1
        state = IncidentState.RESOLVED if kind == "resolved" else IncidentState.OPEN
        one = incident(
            id, f"key/{id}", state, was_told=kind != "resolved", notices=ordinal + 1,
            resolved_ms=START_MS if kind == "resolved" else 0,
        )  # fmt: skip
        run_inline(
            self.store.commit(entry(self.offset, IncidentChanged(one), Notice(id, ordinal, kind, START_MS, one)))
        )

    def written(self, channel: str) -> list[tuple[str, int, str]]:
        async def work(connection: Statements) -> list[tuple[str, int, str]]:
            sql = "SELECT incident, ordinal, kind FROM outbox WHERE channel = ? ORDER BY id"
            return [tuple(row) for row in await connection.execute_fetchall(sql, (channel,))]  # type: ignore[misc]

        return run_inline(self.store._connection.whole(work))


def test_a_new_channel_hears_of_what_is_open_and_never_of_the_end_of_what_it_did_not_know(path: Path) -> None:
    plant = Plant(path)
    plant.open("desk")
    plant.say("I-1", 0, "opened")
    plant.say("I-2", 0, "opened")
    plant.say("I-1", 1, "resolved")
    plant.close()
    plant.open("desk", "mail")
    assert plant.written("mail") == [("I-2", 0, "opened")]
    assert plant.catch_up(("desk", "mail")) == 0
    plant.say("I-1", 2, "opened")  # opened again: news for both
    plant.say("I-2", 1, "updated")
    plant.say("I-2", 2, "resolved")
    assert plant.written("mail")[1:] == [("I-1", 2, "opened"), ("I-2", 1, "updated"), ("I-2", 2, "resolved")]
    assert len(plant.written("desk")) == 6
    plant.close()


def test_a_channel_that_comes_back_hears_of_the_end_that_it_missed(path: Path) -> None:
    plant = Plant(path)
    plant.open("desk")
    plant.say("I-1", 0, "opened")
    plant.say("I-2", 0, "opened")
    plant.close()
    plant.open("mail")
    plant.say("I-1", 1, "resolved")
    plant.close()
    plant.open("desk")
    assert plant.written("desk") == [("I-1", 0, "opened"), ("I-2", 0, "opened"), ("I-1", 1, "resolved")]
    assert plant.written("mail") == [("I-1", 0, "opened"), ("I-2", 0, "opened"), ("I-1", 1, "resolved")]
    plant.close()


def test_what_was_missed_is_written_in_slices(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "CATCH_UP_ROWS_MAX", 3)
    plant = Plant(path)
    plant.open("desk")
    for n in range(1, 8):
        plant.say(f"I-{n}", 0, "opened")
    assert [plant.catch_up(("desk", "mail")) for _ in range(4)] == [3, 3, 1, 0]
    plant.close()


DEEDS = st.one_of(
    st.tuples(st.just("restart"), st.sets(st.sampled_from(["desk", "mail", "pager"]))),
    st.tuples(st.just("news"), st.sampled_from(["I-1", "I-2"])),
    st.tuples(st.just("update"), st.sampled_from(["I-1", "I-2"])),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(DEEDS, min_size=5, max_size=25))
def test_openings_and_closings_alternate_on_every_channel_and_end_right(
    tmp_path_factory: pytest.TempPathFactory, deeds: list[tuple[str, object]]
) -> None:
    plant = Plant(tmp_path_factory.mktemp("plant") / "tocsin.db")
    plant.open("desk")
    ordinals = {"I-1": 0, "I-2": 0}
    is_open = {"I-1": False, "I-2": False}
    for deed, what in deeds:
        if deed == "restart":
            assert isinstance(what, set)
            plant.close()
            plant.open(*sorted(what))
        elif deed == "news" or is_open[str(what)]:
            id = str(what)
            kind = "updated" if deed == "update" else "resolved" if is_open[id] else "opened"
            is_open[id] = kind != "resolved"
            plant.say(id, ordinals[id], kind)
            ordinals[id] += 1
    plant.close()
    plant.open("desk", "mail", "pager")
    for channel in ("desk", "mail", "pager"):
        for id, is_live in is_open.items():
            turns = [kind for incident, _, kind in plant.written(channel) if incident == id and kind != "updated"]
            assert turns == (["opened", "resolved"] * len(turns))[: len(turns)], (channel, id, turns)
            assert bool(len(turns) % 2) is is_live, (channel, id, turns)
    plant.close()


def test_a_channel_that_is_gone_is_waited_for_for_a_while_and_shown_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "OTHERS_EVERY_S", 10.0)
    monkeypatch.setattr(outbox, "OTHERS_KEPT_MS", 60_000)

    async def main() -> None:
        async with Rig(path, desk=Channel(lambda delivery: RETRY)) as rig:
            await rig.write(notice("I-1", 0, "opened"))
        with capture_logs() as logs:
            async with Rig(path, mail=Channel()) as rig:
                await asyncio.sleep(55)
                assert await rig.count("state = 'due' AND channel = 'desk'") == 1
                (gone,) = [one for one in rig.outbox.status() if one.channel == "desk"]
                assert (gone.waiting, gone.last_error) == (1, "the channel is not configured (any more)")
                await asyncio.sleep(30)
                assert await rig.rows("SELECT state, last_error FROM outbox WHERE channel = 'desk'") == [
                    ("dead", "the channel is not configured (any more)")
                ]
                assert [one.channel for one in rig.outbox.status()] == ["mail"]
                ((kind, facts),) = await rig.rows("SELECT kind, facts FROM timeline")
                assert (kind, "not configured" in facts) == ("delivery_failed", True)
        assert [line["count"] for line in logs if line["event"].startswith("notices given up")] == [1]

    run_virtual(main())
