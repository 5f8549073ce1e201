"""The sampler in virtual time: deadlines, isolation, coalescing and heartbeats, with no second spent."""

import asyncio
import math
from itertools import pairwise

from tests.agent.test_agent_framer import Sink, measured
from tests.support.virtual_time import VirtualClocks, run_virtual

from tocsin_agent.probes import Measurement, ProbeError
from tocsin_agent.sampler import Sampler, target
from tocsin_proto.records import Event, Series, SeriesKind


class Spool(Sink):
    backlog_bytes = 4711
    dropped_frames = 3


def series(name: str) -> Series:
    return Series("", name, "1", SeriesKind.GAUGE, (), 10_000)


class Steady:
    def __init__(self, name: str, count: int = 3) -> None:
        self.all = [series(f"{name}.{n}") for n in range(count)]
        self.closed = False

    async def collect(self):
        for n, one in enumerate(self.all):
            yield Measurement(one, n)

    async def close(self) -> None:
        self.closed = True


class Hanging:
    silent = False

    async def collect(self):
        yield Measurement(series("hanging.first"), 1)
        await asyncio.sleep(1e9)


class Raising:
    def __init__(self, error: Exception, rounds: int = 10**9) -> None:
        self.error, self.rounds = error, rounds

    async def collect(self):
        yield Measurement(series("raising.first"), 1)
        self.rounds -= 1
        if self.rounds >= 0:
            raise self.error


class Nonsense:
    async def collect(self):
        yield Measurement(series("nonsense"), math.nan)
        yield Measurement(series("sense"), 1)
        yield Event("", "agent", "said", 1_800_000_000_000)


async def play(probes: dict, seconds: float, interval_ms: int = 10_000):
    spool = Spool()
    beats = []
    sampler = Sampler(spool, VirtualClocks(), beat=lambda: beats.append(asyncio.get_running_loop().time()))
    for key, probe in probes.items():
        sampler.add(target(f"host/{key}", probe, interval_ms, group="host", name=key, first_ms=0))
    running = asyncio.create_task(sampler.run())
    await asyncio.sleep(seconds)
    running.cancel()
    await asyncio.wait({running})
    sampler.flush()
    return sampler, spool, beats


def values(spool: Spool, metric: str, probe: str | None = None) -> list[float]:
    wanted = (("probe", probe),) if probe else ()
    found = measured(spool.frames())
    return [
        value
        for one, value, _ in sorted(found, key=lambda item: item[2])
        if (one.metric, one.labels) == (metric, wanted)
    ]


def test_probes_due_together_share_one_frame_with_one_section_and_the_heartbeat():
    sampler, spool, beats = run_virtual(play({f"p{n}": Steady(f"p{n}") for n in range(8)}, 605))
    frames = spool.frames()
    assert 60 <= len(frames) <= 64
    later = frames[10:-1]
    assert {len(frame.sections) for frame in later} == {1}
    assert {len(frame.layouts) for frame in later[20:]} == {0}
    assert all(frame.heartbeat is not None for frame in later)
    assert later[0].heartbeat.spool_bytes == 4711
    assert {len(frame.sections[0].values) // 8 for frame in later} == {8 * 3 + 8 * 2}
    gaps = [after - before for before, after in pairwise(beats)]
    assert max(gaps) <= 10.1  # the watchdog hangs on it
    assert len(beats) < 60 * 14  # and an idle agent does not spin
    assert sampler.scheduler.overruns == 0


def test_a_heartbeat_comes_every_ten_seconds_also_when_there_is_nothing_to_say():
    _, spool, _ = run_virtual(play({}, 300))
    assert [frame.heartbeat is not None for frame in spool.frames()].count(True) in (30, 31)
    assert not any(frame.sections for frame in spool.frames())


def test_a_probe_that_hangs_or_raises_harms_no_other_and_says_so():
    probes = {
        "hanging": Hanging(),
        "bug": Raising(KeyError("x")),
        "world": Raising(ProbeError("the bus is gone")),
        "timeout": Raising(TimeoutError("own")),
        "nonsense": Nonsense(),
        "steady": Steady("steady"),
    }
    sampler, spool, _ = run_virtual(play(probes, 95))
    assert len(values(spool, "steady.0")) >= 9
    for name in ("hanging", "bug", "world", "timeout", "nonsense"):
        assert set(values(spool, "probe.ok", name)) == {0}, name
    assert set(values(spool, "probe.ok", "steady")) == {1}
    assert len(values(spool, "raising.first")) >= 9  # what came before the error stands
    assert len(values(spool, "sense")) >= 9
    assert values(spool, "nonsense") == []
    assert max(values(spool, "probe.duration_seconds", "hanging")) == 10
    assert sampler.problems["host/hanging"] == "did not end within 10 s"
    assert sampler.problems["host/world"] == "the bus is gone"
    assert sampler.problems["host/timeout"] == "TimeoutError: own"
    assert sampler.problems["host/bug"] == "KeyError: 'x'"
    assert sampler.scheduler.overruns >= 4  # its slot of 10 s is over each time it is cut off
    assert sampler.probe_errors >= 40
    assert [event.name for frame in spool.frames() for event in frame.events].count("said") >= 9


def test_a_probe_that_recovers_is_ok_again():
    sampler, spool, _ = run_virtual(play({"p": Raising(ProbeError("x"), rounds=3)}, 95))
    oks = values(spool, "probe.ok", "p")
    assert oks[:3] == [0, 0, 0]
    assert set(oks[3:]) == {1}
    assert sampler.problems == {}


def test_targets_come_and_go_while_it_runs_and_their_probes_are_closed():
    async def main():
        spool, probe = Spool(), Steady("x")
        sampler = Sampler(spool, VirtualClocks())
        running = asyncio.create_task(sampler.run())
        await asyncio.sleep(5)
        sampler.add(target("snmp/sw-1", probe, 10_000, name="snmp", resource="sw-1"))
        sampler.add(target("snmp/sw-2", Hanging(), 10_000, name="snmp", resource="sw-2"))
        await asyncio.sleep(30)
        asked = asyncio.create_task(sampler.ask("snmp/sw-2"))
        await asyncio.sleep(1)
        sampler.remove("snmp/sw-1")
        sampler.remove("snmp/sw-2")  # in the middle of its round
        assert await asked is None
        await asyncio.sleep(1)
        assert probe.closed
        count = len(values(spool, "x.0"))
        await asyncio.sleep(60)
        assert len(values(spool, "x.0")) == count >= 3
        again = Steady("x")
        sampler.add(target("snmp/sw-1", again, 600_000, name="snmp", resource="sw-1"))
        await asyncio.sleep(30)
        before = len(values(spool, "x.1"))
        assert await sampler.ask("snmp/sw-1") is again  # long before its slot
        await asyncio.sleep(2)
        assert len(values(spool, "x.1")) == before + 1
        running.cancel()
        await asyncio.wait({running})
        assert again.closed

    run_virtual(main())
