"""The simulated devices: their protocol as Net-SNMP's tools see it, their switches, and their life as a process."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.support.snmpd import program

from tocsin_agent.snmp.client import Target, UdpSnmpClient
from tocsin_agent.snmp.codec import Request, Version, decode_response, encode_request
from tocsin_agent.snmp.values import Missing, oid
from tocsin_collector.demo.devices import BUILDERS, controller, obey, server, switch
from tocsin_collector.demo.responder import ANSWER_BYTES_MAX, Agent, fixed

SYS_NAME = oid("1.3.6.1.2.1.1.5.0")
IF_OPER = oid("1.3.6.1.2.1.2.2.1.8")
HR_USED = oid("1.3.6.1.2.1.25.2.3.1.6")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def value(device, name, kind: Request = Request.GET):
    answer = device.answer(encode_request(Version.V2C, b"public", kind, 1, [name]))
    assert answer is not None
    return decode_response(Version.V2C, b"public", answer).varbinds[0][1]


def test_counters_and_uptime_follow_the_clock_and_nothing_else():
    clock = Clock()
    device = switch("sw-1", ports=2, monotonic=clock)
    in_octets = oid("1.3.6.1.2.1.31.1.1.1.6.2")
    uptime = oid("1.3.6.1.2.1.1.3.0")
    assert value(device, uptime) == 0
    assert value(device, in_octets) == 0
    clock.now_s += 10
    assert value(device, uptime) == 1000
    assert value(device, in_octets) == 20_000
    clock.now_s += 10
    assert value(device, in_octets) == 40_000


def test_32_bit_counters_wrap():
    clock = Clock()
    device = server("s", monotonic=clock)
    clock.now_s += 20_000
    assert value(device, oid("1.3.6.1.2.1.2.2.1.10.1")) == 20_000 * 250_000 % 2**32
    assert value(device, oid("1.3.6.1.2.1.31.1.1.1.6.1")) == 20_000 * 250_000


def test_a_wrong_community_garbage_and_a_silent_device_get_no_answer():
    device = switch("sw-1")
    question = encode_request(Version.V2C, b"public", Request.GET, 1, [SYS_NAME])
    assert device.answer(question) is not None
    assert device.answer(encode_request(Version.V2C, b"private", Request.GET, 1, [SYS_NAME])) is None
    assert device.answer(b"\x30\x03\x02\x01\x01") is None
    assert device.answer(b"") is None
    device.answering = False
    assert device.answer(question) is None


def test_a_write_gets_no_answer_and_changes_nothing():
    device = switch("sw-1")
    question = bytearray(encode_request(Version.V2C, b"public", Request.GET, 1, [SYS_NAME]))
    question[question.index(0xA0)] = 0xA3  # the tag of a SetRequest
    assert device.answer(bytes(question)) is None
    assert value(device, SYS_NAME) == b"sw-1"


def test_answers_stay_in_one_frame_and_what_cannot_is_too_big():
    names = [(1, 3, 6, 1, 4, 1, 58888, n) for n in range(40)]
    agent = Agent({name: fixed("octets", b"x" * 100) for name in names}, b"c")
    bulk = agent.answer(encode_request(Version.V2C, b"c", Request.BULK, 1, [(1, 3)], 40), 0)
    assert bulk is not None
    assert len(bulk) <= ANSWER_BYTES_MAX
    assert 5 < len(decode_response(Version.V2C, b"c", bulk).varbinds) < 40
    whole = agent.answer(encode_request(Version.V2C, b"c", Request.GET, 1, names), 0)
    assert whole is not None
    assert decode_response(Version.V2C, b"c", whole).error_status == 1


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_kind_of_device_is_walked_by_our_client_to_its_end(kind: str):
    async def run() -> dict[tuple[int, ...], object]:
        device = BUILDERS[kind]("dev")
        client = UdpSnmpClient(Target("127.0.0.1", await device.start(), Version.V2C, b"public", 1.0, 2))
        try:
            return dict(await client.walk((1, 3, 6, 1)))
        finally:
            client.close()
            device.stop()

    rows = asyncio.run(run())
    assert len(rows) > 20
    assert not any(isinstance(found, Missing) for found in rows.values())


def test_orders_are_obeyed_and_wrong_ones_say_what_would_be_right():
    devices = {"sw-1": switch("sw-1", ports=4), "mes-db": server("mes-db"), "plc-1": controller("plc-1")}
    assert obey(devices, '{"device":"sw-1","port":3,"up":false}') == {
        "done": {"device": "sw-1", "port": 3, "up": False}
    }
    assert value(devices["sw-1"], (*IF_OPER, 3)) == 2
    obey(devices, '{"device":"mes-db","disk":"/data","ratio":0.93}')
    used = value(devices["mes-db"], (*HR_USED, 2))
    size = value(devices["mes-db"], (*HR_USED[:-1], 5, 2))
    assert used / size == pytest.approx(0.93, abs=1e-6)
    obey(devices, '{"device":"sw-1","answering":false}')
    assert not devices["sw-1"].answering
    for wrong in (
        "not json",
        "[]",
        '{"device":"nobody","up":true}',
        '{"device":"sw-1","port":99,"up":false}',
        '{"device":"sw-1","port":1,"uo":false}',
        '{"device":"mes-db","disk":"/nowhere","ratio":0.5}',
        '{"device":"mes-db","disk":"/data","ratio":93}',
    ):
        assert "error" in obey(devices, wrong), wrong
    obey(devices, '{"device":"sw-1","answering":true}')
    assert value(devices["sw-1"], (*IF_OPER, 1)) == 1, "what was refused changed nothing"


@contextmanager
def process(*specs: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    running = subprocess.Popen(
        [sys.executable, "-m", "tocsin_collector.demo.devices", *specs],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TOCSIN_DEMO_COMMUNITY": "plant"},
    )
    try:
        assert running.stdout is not None
        yield running, json.loads(running.stdout.readline())
    finally:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.close()
        code = running.wait(10)
        running.stdout.close()
        assert code == 0, "it ends by itself when stdin closes"


def test_the_process_says_its_ports_obeys_its_stdin_and_ends_with_it():
    with process("switch:core", "server:db") as (running, ports):
        assert list(ports) == ["core", "db"]
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write('{"device":"core","port":2,"up":false}\n')
        running.stdin.flush()
        assert json.loads(running.stdout.readline()) == {"done": {"device": "core", "port": 2, "up": False}}

        async def oper() -> dict[tuple[int, ...], object]:
            client = UdpSnmpClient(Target("127.0.0.1", ports["core"], Version.V2C, b"plant", 1.0, 2))
            try:
                return dict(await client.walk(IF_OPER))
            finally:
                client.close()

        assert asyncio.run(oper()) == {(n,): 2 if n == 2 else 1 for n in range(1, 9)}


def test_an_unknown_kind_of_device_is_a_usage_error():
    command = [sys.executable, "-m", "tocsin_collector.demo.devices", "toaster:t1"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20)
    assert done.returncode == 2
    assert done.stderr == "'toaster:t1': write KIND:NAME, kinds are switch, server, controller\n"


@pytest.mark.debian
def test_net_snmps_own_walk_sees_what_the_table_holds():
    bulkwalk, walk = program("snmpbulkwalk", "snmp"), program("snmpwalk", "snmp")
    environ = {**os.environ, "MIBS": ""}
    with process("switch:core") as (_, ports):
        address = f"127.0.0.1:{ports['core']}"
        by_bulk = subprocess.run(
            [bulkwalk, "-v2c", "-cplant", "-On", "-OQ", address, "1.3.6.1.2.1.2"],
            capture_output=True,
            text=True,
            env=environ,
            check=True,
            timeout=20,
        ).stdout
        by_next = subprocess.run(
            [walk, "-v1", "-cplant", "-On", "-OQ", address, "1.3.6.1.2.1.2"],
            capture_output=True,
            text=True,
            env=environ,
            check=True,
            timeout=20,
        ).stdout
    lines = by_bulk.splitlines()
    assert ".1.3.6.1.2.1.2.2.1.2.3 = GigabitEthernet 0/3" in [line.replace('"', "") for line in lines]
    assert len(lines) == 14 * 8
    assert [line.split(" = ")[0] for line in by_next.splitlines()] == [line.split(" = ")[0] for line in lines]
