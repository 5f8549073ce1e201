"""The SNMP probe against simulated devices: what it measures, and what it says when the device gives nothing."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from tests.support.snmp_agents import BULK, GET, Question, number, object_id, pdu_type
from tests.support.udp import udp_server

from tocsin_agent.probes import Measurement, ProbeError
from tocsin_agent.probes.snmp import SnmpProbe, SnmpSettings
from tocsin_agent.snmp.errors import SnmpResult
from tocsin_collector.demo.devices import Device, controller, server, switch
from tocsin_proto.records import Event, SeriesKind
from tocsin_proto.units import Duration

# Long enough for both ends in one loop on a loaded machine; only polls of silent devices wait for it.
FAST = Duration("200ms")


class Poll:
    """One round of a probe, sorted by what it said."""

    def __init__(self) -> None:
        self.all: list[Measurement] = []
        self.events: list[Event] = []
        self.error = ""

    def of(self, metric: str) -> dict[str, float]:
        """First label value -> value."""
        return {",".join(value for _, value in m.series.labels): m.value for m in self.all if m.series.metric == metric}

    @property
    def metrics(self) -> set[str]:
        return {m.series.metric for m in self.all}


async def poll(probe: SnmpProbe) -> Poll:
    result = Poll()
    try:
        async for said in probe.collect():
            if isinstance(said, Measurement):
                result.all.append(said)
            else:
                result.events.append(said)
    except ProbeError as error:
        result.error = str(error)
    return result


def probe_of(port: int, *, name: str = "dev", community: str = "public", **options) -> SnmpProbe:
    settings = SnmpSettings(credential="plant", port=port, timeout=FAST, interval=Duration("10s"), **options)
    return SnmpProbe(name, "127.0.0.1", settings, {"plant": community}.__getitem__)


def watch(device: Device, use: Callable[[SnmpProbe], Awaitable[None]], **options) -> None:
    async def run() -> None:
        probe = probe_of(await device.start(), name=device.name, **options)
        try:
            await use(probe)
        finally:
            await probe.close()
            device.stop()

    asyncio.run(run())


def test_a_switch_is_reachable_first_and_then_its_ports_are_measured():
    async def story(probe: SnmpProbe) -> None:
        seen = await poll(probe)
        assert seen.all[0].series.metric == "device.reachable"
        assert seen.all[0].value == 1
        assert all(m.series.resource == "sw-1" for m in seen.all)
        assert seen.of("if.oper_status") == {f"port{n}": 1 for n in range(1, 5)}
        assert seen.of("if.speed_bps")["port1"] == 1e9
        counters = [m for m in seen.all if m.series.metric == "if.in_bytes"]
        assert {m.series.kind for m in counters} == {SeriesKind.COUNTER64}
        assert all(isinstance(m.value, int) for m in counters)
        assert seen.of("snmp.result") == {"": SnmpResult.OK}
        assert seen.error == ""
        assert probe.identity["model"] == "TS-4"
        assert probe.identity["firmware"] == "2.4.1"
        assert probe.identity["name"] == "sw-1"
        assert probe.identity["profile"] == "generic"

    watch(switch("sw-1", ports=4), story)


def test_a_port_that_goes_down_is_down_and_one_that_was_switched_off_is_shut():
    device = switch("sw-1", ports=3)

    async def story(probe: SnmpProbe) -> None:
        await poll(probe)
        device.set_port(2, up=False)
        device.shut_port(3, shut=True)
        assert (await poll(probe)).of("if.oper_status") == {"port1": 1, "port2": 2, "port3": 8}
        device.set_port(2, up=True)
        device.shut_port(3, shut=False)
        assert (await poll(probe)).of("if.oper_status") == {"port1": 1, "port2": 1, "port3": 1}

    watch(device, story)


def test_a_servers_filesystems_memory_and_processors_are_measured():
    device = server("mes-db", {"/": 0.4, "/data": 0.7})

    async def story(probe: SnmpProbe) -> None:
        seen = await poll(probe)
        assert seen.of("disk.used_ratio") == pytest.approx({"/": 0.4, "/data": 0.7}, abs=1e-6)
        assert seen.of("memory.used_ratio") == pytest.approx({"": 0.55}, abs=1e-4)
        assert set(seen.of("cpu.used_ratio")) == {"0", "1", "all"}
        assert seen.of("system.uptime_seconds")[""] >= 90 * 86400, "the host's uptime, not the agent's"
        device.set_disk("/data", 0.93)
        assert (await poll(probe)).of("disk.used_ratio")["/data"] == pytest.approx(0.93, abs=1e-6)

    watch(device, story)


def test_series_are_the_same_objects_at_every_poll():
    async def story(probe: SnmpProbe) -> None:
        first, second = await poll(probe), await poll(probe)
        assert [id(m.series) for m in first.all] == [id(m.series) for m in second.all]

    watch(switch("sw-1"), story)


def test_what_a_device_does_not_have_is_not_asked_for_at_every_poll():
    device = controller("plc-1")
    now_s = 0.0

    async def run() -> None:
        nonlocal now_s
        settings = SnmpSettings(credential="x", port=await device.start(), timeout=FAST)
        probe = SnmpProbe("plc-1", "127.0.0.1", settings, lambda _: "public", monotonic=lambda: now_s)
        counts = []
        for moment_s in (0.0, 30.0, 60.0, 601.0, 631.0):
            now_s = moment_s
            before = device.requests
            await poll(probe)
            counts.append(device.requests - before)
        await probe.close()
        device.stop()
        assert counts[1] == counts[2] == counts[4]
        assert counts[3] > counts[1], "after ten minutes it is looked for again"
        assert counts[1] <= 4

    asyncio.run(run())


def test_a_silent_device_costs_one_small_get_until_it_answers_again():
    device = switch("sw-1", ports=2)

    async def story(probe: SnmpProbe) -> None:
        assert (await poll(probe)).of("device.reachable") == {"": 1}
        device.answering = False
        before = device.requests
        down = await poll(probe)
        assert [(m.series.metric, m.value) for m in down.all] == [
            ("device.reachable", 0),
            ("snmp.result", SnmpResult.NO_ANSWER),
        ]
        assert device.requests - before == 2, "one retry before it counts as unreachable"
        assert probe.silent
        assert [event.name for event in down.events] == ["snmp.problem"]
        assert "wrong community" in down.events[0].text
        assert down.error == "", "an unreachable device is a finding, not a failure of the probe"
        for _ in range(3):
            before = device.requests
            still = await poll(probe)
            assert still.of("device.reachable") == {"": 0}
            assert still.events == [], "the same cause is told once"
            assert device.requests - before == 1
        device.answering = True
        back = await poll(probe)
        assert back.of("device.reachable") == {"": 1}
        assert set(back.of("if.oper_status")) == {"port1", "port2"}, "the whole poll, in the same round"
        assert [event.name for event in back.events] == ["snmp.recovered"]
        assert not probe.silent
        assert probe.details == ()

    watch(device, story)


def test_a_wrong_community_is_unreachable_and_the_cause_says_that_it_may_be_that():
    async def story(probe: SnmpProbe) -> None:
        seen = await poll(probe)
        assert seen.of("device.reachable") == {"": 0}
        (detail,) = probe.details
        assert detail.result is SnmpResult.NO_ANSWER
        assert "wrong community" in detail.text
        assert "s3cret" not in f"{detail.text} {seen.events} {probe!r}"

    watch(switch("sw-1"), story, community="s3cret")


def test_a_corrected_credential_is_taken_up_without_a_restart():
    secrets = {"plant": "wrong"}
    device = switch("sw-1", ports=1)

    async def run() -> None:
        settings = SnmpSettings(credential="plant", port=await device.start(), timeout=FAST, retries=0)
        probe = SnmpProbe("sw-1", "127.0.0.1", settings, secrets.__getitem__)
        assert (await poll(probe)).of("device.reachable") == {"": 0}
        secrets["plant"] = "public"
        assert (await poll(probe)).of("device.reachable") == {"": 1}
        await probe.close()
        device.stop()

    asyncio.run(run())


def test_a_credential_that_is_not_there_says_nothing_about_the_device():
    async def run() -> Poll:
        settings = SnmpSettings(credential="plant", port=1, timeout=FAST)
        return await poll(SnmpProbe("sw-1", "127.0.0.1", settings, {}.__getitem__))

    seen = asyncio.run(run())
    assert seen.all == []
    assert seen.error.startswith("sw-1: credential 'plant' cannot be read: ")


def test_a_name_that_does_not_resolve_is_not_unreachable():
    async def run() -> Poll:
        settings = SnmpSettings(credential="x", timeout=FAST)
        return await poll(SnmpProbe("sw-1", "no such host..invalid", settings, lambda _: "public"))

    seen = asyncio.run(run())
    assert seen.of("device.reachable") == {}
    assert seen.of("snmp.result") == {"": SnmpResult.BAD_ADDRESS}
    assert "sw-1" in seen.error


def test_a_device_that_answers_errors_is_reachable_and_the_result_says_which():
    async def run() -> Poll:
        async with udp_server(lambda datagram: [Question(datagram).answer([], status=16)]) as agent:
            probe = probe_of(agent.port)
            try:
                return await poll(probe)
            finally:
                await probe.close()

    seen = asyncio.run(run())
    assert seen.of("device.reachable") == {"": 1}
    assert seen.of("snmp.result") == {"": SnmpResult.NOT_AUTHORISED}


def test_garbage_is_unreachable_with_a_result_of_its_own():
    async def run() -> Poll:
        async with udp_server(lambda _: [b"SSH-2.0-OpenSSH_9.2\r\n"]) as agent:
            probe = probe_of(agent.port, retries=0)
            try:
                return await poll(probe)
            finally:
                await probe.close()

    seen = asyncio.run(run())
    assert seen.of("device.reachable") == {"": 0}
    assert seen.of("snmp.result") == {"": SnmpResult.GARBAGE}


def test_a_table_that_never_ends_is_named_and_rarely_tried_and_the_rest_is_read():
    """GETs are answered; every GETBULK and GETNEXT gets the same OID again."""
    walks = 0

    def answer(datagram: bytes) -> list[bytes]:
        nonlocal walks
        question = Question(datagram)
        if question.kind == GET:
            values = [
                (name, object_id((1, 3, 6, 1, 4, 1, 58888)) if name[:-1] == (1, 3, 6, 1, 2, 1, 1, 2) else number(4711))
                for name in question.names
            ]
            return [question.answer(values)]
        walks += question.kind == BULK
        stuck = [((*name[:10], 0) if len(name) >= 10 else (*name, 0), number(1)) for name in question.names]
        return [question.answer(stuck * 2)]

    now_s = 0.0

    async def run() -> None:
        nonlocal now_s
        async with udp_server(answer) as agent:
            settings = SnmpSettings(credential="x", port=agent.port, timeout=FAST, interval=Duration("10s"))
            probe = SnmpProbe("dev", "127.0.0.1", settings, lambda _: "public", monotonic=lambda: now_s)
            seen = await poll(probe)
            assert seen.of("device.reachable") == {"": 1}
            assert seen.of("snmp.result") == {"": SnmpResult.ENDLESS_WALK}
            assert seen.of("system.uptime_seconds") == {"": 4711}
            assert "interfaces" in seen.error
            assert {detail.group for detail in probe.details} >= {"interfaces"}
            assert any("same OID again" in detail.text for detail in probe.details)
            assert {event.name for event in seen.events} == {"snmp.problem"}
            before = walks
            now_s = 10.0
            again = await poll(probe)
            assert walks == before, "backed off"
            assert again.of("snmp.result") == {"": SnmpResult.ENDLESS_WALK}, "and still not well"
            assert again.events == []
            now_s = 10_000.0
            await poll(probe)
            assert walks > before
            await probe.close()

    asyncio.run(run())


def test_a_device_without_sysuptime_is_reachable_by_any_answer():
    device = Device("odd", {})

    async def story(probe: SnmpProbe) -> None:
        seen = await poll(probe)
        assert seen.of("device.reachable") == {"": 1}
        assert seen.of("snmp.result") == {"": SnmpResult.OK}

    watch(device, story)


def test_another_device_at_the_same_address_is_noticed():
    one, other = switch("a", ports=1), server("b", {"/": 0.5})

    async def run() -> None:
        port = await one.start()
        probe = probe_of(port)
        assert (await poll(probe)).of("disk.used_ratio") == {}
        one.stop()
        await asyncio.sleep(0)  # the loop closes the socket
        await other.start(port=port)
        assert (await poll(probe)).of("disk.used_ratio") == pytest.approx({"/": 0.5}, abs=1e-6)
        assert probe.identity["name"] == "b"
        await probe.close()
        other.stop()

    asyncio.run(run())


def test_version_1_devices_are_polled_without_64_bit_counters():
    device = switch("old", ports=2)

    async def story(probe: SnmpProbe) -> None:
        seen = await poll(probe)
        assert seen.of("if.oper_status") == {"port1": 1, "port2": 1}
        assert seen.of("snmp.result") == {"": SnmpResult.OK}
        counters = [m.series.kind for m in seen.all if m.series.metric == "if.in_bytes"]
        assert counters == [SeriesKind.COUNTER32] * 2, "v1 has no 64-bit counters"

    watch(device, story, version="1")


def test_a_profile_that_is_named_is_used_and_an_unknown_one_is_refused_at_once():
    async def story(probe: SnmpProbe) -> None:
        assert (await poll(probe)).metrics == {"device.reachable", "system.uptime_seconds", "snmp.result"}

    watch(switch("sw-1"), story, profile="base")
    with pytest.raises(ValueError, match="no SNMP profile 'bass'"):
        probe_of(161, profile="bass")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"credential": "x", "version": "3"}, "SNMPv3 is not there yet"),
        ({"credential": "x", "version": "4"}, "Invalid enum value"),
        ({}, "missing required field `credential`"),
        ({"credential": "x", "port": 70000}, "<= 65535"),
        ({"credential": "x", "timeout": "0s"}, "more than 0"),
        ({"credential": "x", "interval": "10ms"}, "at least"),
        ({"credential": "x", "community": "public"}, "unknown field `community`"),
    ],
)
def test_wrong_settings_say_what_would_be_right(written: dict[str, object], says: str):
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(written, SnmpSettings, dec_hook=lambda type_, value: type_.parse(value))
    assert says in str(caught.value)


def test_pysnmp_is_imported_with_the_first_poll_only():
    code = (
        "import sys; from tocsin_agent.probes.snmp import SnmpProbe, SnmpSettings;"
        "SnmpProbe('d', 'h', SnmpSettings(credential='x'), str);"
        "assert not {m.split('.')[0] for m in sys.modules} & {'pysnmp', 'pyasn1', 'cryptography', 'numpy'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_datagram_of_a_whole_life_of_a_probe_writes():
    device = server("mes-db")
    seen: set[int] = set()
    answer = device.answer

    def recorded(datagram: bytes) -> list[bytes]:
        seen.add(pdu_type(datagram))
        reply = answer(datagram)
        return [] if reply is None else [reply]

    async def run() -> None:
        async with udp_server(recorded) as agent:
            probe = probe_of(agent.port)
            for answering in (True, False, True, True):
                device.answering = answering
                await poll(probe)
            await probe.close()

    asyncio.run(run())
    assert seen == {GET, BULK}
