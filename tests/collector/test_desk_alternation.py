"""Law 5 at the receiver: per incident key, opens and closes strictly alternate, whatever fails and whenever we crash."""

import asyncio
import itertools
import random
import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.desk_rig import OK, PERMANENT, RETRY, UNCERTAIN, Channel, Rig, notice, slow
from tests.support.virtual_time import run_virtual

from tocsin_collector.core.model import Notice
from tocsin_collector.desk.base import Delivery, Outcome
from tocsin_collector.desk.due import RetryError
from tocsin_collector.desk.schedule import Pace

KEYS = ("disk", "link", "fan")
PACE = Pace(
    retry_ms=200, retry_ms_min=20, retry_ms_max=2_000, pause_ms=500, pause_ms_max=2_000, lanes_max=2, page_rows=3
)

HAPPENS = st.tuples(st.just("happens"), st.sampled_from(KEYS), st.integers(0, 2))
PASSES = st.tuples(st.just("time passes"), st.sampled_from([0.0, 0.01, 0.03, 0.3, 3.0]), st.just(0))
CRASH = st.tuples(st.just("crash"), st.just(""), st.just(0))
BY_HAND = st.tuples(st.just("retry by hand"), st.just(""), st.just(0))
# What happens stands there more often: a story without notices proves nothing.
DEEDS = st.one_of(HAPPENS, HAPPENS, HAPPENS, PASSES, PASSES, CRASH, BY_HAND)


class Story:
    """What the engine would write: per key, incidents that open, change, resolve, reopen or give way to a new one."""

    def __init__(self) -> None:
        self.written: dict[str, list[Notice]] = defaultdict(list)
        self._ids = itertools.count(1)

    def next(self, key: str, choice: int) -> Notice:
        lane = self.written[key]
        last = lane[-1] if lane else None
        if last is None or (last.kind == "resolved" and choice == 0):
            told = notice(f"I-{next(self._ids)}", 0, "opened", key)
        elif last.kind == "resolved":
            told = notice(last.incident, last.ordinal + 1, "opened", key)
        else:
            told = notice(last.incident, last.ordinal + 1, "updated" if choice == 0 else "resolved", key)
        lane.append(told)
        return told


def check(story: Story, took: list[Notice]) -> None:
    """took: what the receiver took, in order, repetitions and all."""
    for key, written in story.written.items():
        places = [written.index(told) for told in took if told.snapshot.key == key]
        newest = -1
        for place in places:
            # Either the next one (over updates that were refused), or the newest once more.
            assert place >= newest, f"{key}: notice {place} was told after {newest}"
            between = written[newest + 1 : place]
            assert all(told.kind == "updated" for told in between), f"{key}: {between} were left out"
            newest = place
        once = dict.fromkeys(places)
        turns = [written[place].kind for place in once if written[place].kind != "updated"]
        assert turns == ["opened", "resolved"] * (len(turns) // 2) + ["opened"] * (len(turns) % 2), (key, turns)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    deeds=st.lists(DEEDS, min_size=12, max_size=40),
    seed=st.integers(0, 1 << 32),
    failing=st.sampled_from([0.0, 0.3, 0.6]),
)
def test_delivered_opens_and_closes_alternate_per_key_and_all_arrive(
    deeds: list[tuple[str, str | float, int]], seed: int, failing: float
) -> None:
    luck, story = random.Random(seed), Story()

    def answer(delivery: Delivery) -> Outcome:
        return luck.choice([RETRY, UNCERTAIN, PERMANENT]) if luck.random() < failing else OK

    async def main(path: Path) -> None:
        desk = Channel(answer)
        rig = Rig(path, pace=PACE, luck=luck.random, connect=slow, desk=desk)
        await rig.open()
        for deed, what, choice in deeds:
            if deed == "happens":
                await rig.write(story.next(str(what), choice))
            elif deed == "time passes":
                await asyncio.sleep(float(what))
            elif deed == "crash":
                await rig.crash()
                await rig.open()
            else:
                await retry_openings_and_closings(rig)
            check(story, desk.took)
        desk.answer = lambda delivery: OK
        await asyncio.sleep(5)
        await retry_openings_and_closings(rig)
        await rig.settle(60)
        await rig.close()
        check(story, desk.took)
        told = {(n.incident, n.ordinal) for n in desk.took}
        for lane in story.written.values():
            assert {(n.incident, n.ordinal) for n in lane if n.kind != "updated"} <= told

    with tempfile.TemporaryDirectory() as folder:
        run_virtual(main(Path(folder) / "tocsin.db"))


async def retry_openings_and_closings(rig: Rig) -> None:
    for (id,) in await rig.rows("SELECT id FROM outbox WHERE state = 'dead' AND kind <> 'updated' ORDER BY id"):
        with suppress(RetryError):  # it was revived meanwhile
            await rig.outbox.retry_dead(id, actor="zm")
