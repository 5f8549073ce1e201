"""Simulated devices on loopback: a switch, a server, a controller that answer SNMP and can be told to fail.

Not the protocol (`responder`). Invariant: what a device answers follows from its start, its clock and its switches
alone, so a story told twice is the same story.

As a process of its own (`python -m tocsin_collector.demo.devices [KIND:NAME ...]`): prints one JSON line
`{name: port}`, obeys JSON lines on stdin, answers each with one JSON line, and ends when stdin closes.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, cast

from tocsin_collector.demo.responder import Agent, Cell, Oid, fixed
from tocsin_proto import exits

SYSTEM: Oid = (1, 3, 6, 1, 2, 1, 1)
IF_TABLE: Oid = (1, 3, 6, 1, 2, 1, 2, 2, 1)
IFX_TABLE: Oid = (1, 3, 6, 1, 2, 1, 31, 1, 1, 1)
HR: Oid = (1, 3, 6, 1, 2, 1, 25)
HR_STORAGE: Oid = (*HR, 2, 3, 1)
ENTITY: Oid = (1, 3, 6, 1, 2, 1, 47, 1, 1, 1, 1)
ENTERPRISE: Oid = (1, 3, 6, 1, 4, 1, 58888, 1)  # of the simulation: no vendor's
UP, DOWN = 1, 2
STORAGE_UNITS = 4096
ENV_COMMUNITY = "TOCSIN_DEMO_COMMUNITY"
DEFAULT_DEVICES = ("switch:sw-1", "server:mes-db", "controller:plc-1")
LINE_BYTES_MAX = 64 * 1024


class Device:
    """One simulated device. Switches: `answering`, `set_port`, `set_disk`."""

    def __init__(
        self,
        name: str,
        oids: Mapping[Oid, Cell],
        *,
        community: str = "public",
        monotonic: Callable[[], float] = time.monotonic,
        disks: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.answering = True
        self.requests = 0
        self._monotonic = monotonic
        self._started_s = monotonic()
        self._agent = Agent(oids, community.encode())
        self._disks = {mount: row for row, mount in enumerate(disks, 1)}
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listens; returns the port (port 0: a free one). Raises OSError when it is taken."""
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Endpoint(self), local_addr=(host, port)
        )
        self._transport = transport
        return self.port

    @property
    def port(self) -> int:
        assert self._transport is not None, "start() first"
        port: int = self._transport.get_extra_info("sockname")[1]
        return port

    def stop(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def answer(self, datagram: bytes) -> bytes | None:
        self.requests += 1
        return self._agent.answer(datagram, self._monotonic() - self._started_s) if self.answering else None

    def set_port(self, number: int, up: bool) -> None:
        """Link up or down; the port stays enabled. KeyError: there is no such port."""
        self._agent.cell((*IF_TABLE, 8, number))
        self._agent.put((*IF_TABLE, 8, number), fixed("integer", UP if up else DOWN))

    def shut_port(self, number: int, shut: bool) -> None:
        """Switched off by an operator, which is no fault, or on again."""
        self._agent.cell((*IF_TABLE, 7, number))
        self._agent.put((*IF_TABLE, 7, number), fixed("integer", DOWN if shut else UP))
        self._agent.put((*IF_TABLE, 8, number), fixed("integer", DOWN if shut else UP))

    def set_disk(self, mount: str, ratio: float) -> None:
        """KeyError: no such filesystem; ValueError: not a ratio."""
        if not 0 <= ratio <= 1:
            raise ValueError(f"{ratio} is not a ratio, write 0 to 1")
        row = self._disks[mount]
        size = self._agent.cell((*HR_STORAGE, 5, row)).at(0)
        assert isinstance(size, int)
        self._agent.put((*HR_STORAGE, 6, row), fixed("integer", round(size * ratio)))


def switch(name: str, ports: int = 8, **options: Any) -> Device:
    """A managed switch: ports 1..n up at 1 Gbit/s with traffic, entity data."""
    cells = _system(name, f"Simulated switch, {ports} ports", 1)
    cells |= _entity(f"TS-{ports}", f"TS-{name}", "2.4.1")
    for number in range(1, ports + 1):
        cells |= _port(number, f"port{number}", f"GigabitEthernet 0/{number}", 1_000_000_000, 1000 * number)
    return Device(name, cells, **options)


def server(
    name: str, disks: Mapping[str, float] | None = None, disk_bytes: int = 500 * 10**9, **options: Any
) -> Device:
    """A computer: filesystems (mount -> used ratio), memory, two processors, one network card."""
    mounts = disks or {"/": 0.41, "/data": 0.72}
    cells = _system(name, "Simulated server", 2)
    cells |= _port(1, "eth0", "eth0", 1_000_000_000, 250_000)
    cells[*HR, 1, 1, 0] = Cell("ticks", lambda now: int(90 * 86_400 * 100 + now * 100))
    for row, (mount, ratio) in enumerate(mounts.items(), 1):
        size = disk_bytes // STORAGE_UNITS
        cells |= _storage(row, 4, mount, size, round(size * ratio))
    memory = 16 * 2**30 // STORAGE_UNITS
    cells |= _storage(len(mounts) + 1, 2, "Physical memory", memory, memory * 55 // 100)
    for cpu in range(2):
        cells[*HR, 3, 3, 1, 2, 196608 + cpu] = _load(20 + 10 * cpu)
    return Device(name, cells, disks=list(mounts), **options)


def controller(name: str, **options: Any) -> Device:
    """A programmable controller's network side: one port, entity data with a firmware version."""
    cells = _system(name, "Simulated controller", 3)
    cells |= _entity("TC-300", f"TC-{name}", "4.7.0")
    cells |= _port(1, "X1", "X1 field network", 100_000_000, 4_000)
    return Device(name, cells, **options)


BUILDERS: dict[str, Callable[..., Device]] = {"switch": switch, "server": server, "controller": controller}


def _system(name: str, description: str, kind: int) -> dict[Oid, Cell]:
    return {
        (*SYSTEM, 1, 0): fixed("octets", description.encode()),
        (*SYSTEM, 2, 0): fixed("oid", (*ENTERPRISE, kind)),
        (*SYSTEM, 3, 0): Cell("ticks", lambda now: int(now * 100)),
        (*SYSTEM, 4, 0): fixed("octets", b"demo"),
        (*SYSTEM, 5, 0): fixed("octets", name.encode()),
        (*SYSTEM, 6, 0): fixed("octets", b"loopback"),
        (1, 3, 6, 1, 6, 3, 10, 2, 1, 2, 0): fixed("integer", 1),
        (1, 3, 6, 1, 6, 3, 10, 2, 1, 3, 0): Cell("integer", int),
    }


def _entity(model: str, serial: str, firmware: str) -> dict[Oid, Cell]:
    texts = {9: firmware, 10: firmware, 11: serial, 13: model}
    return {(*ENTITY, column, 1): fixed("octets", text.encode()) for column, text in texts.items()}


def _port(number: int, name: str, description: str, speed_bps: int, bytes_per_s: int) -> dict[Oid, Cell]:
    traffic = Cell("counter32", lambda now: int(now * bytes_per_s))
    traffic64 = Cell("counter64", lambda now: int(now * bytes_per_s))
    rows: dict[int, Cell] = {
        1: fixed("integer", number),
        2: fixed("octets", description.encode()),
        3: fixed("integer", 6),
        5: fixed("gauge32", min(speed_bps, 2**32 - 1)),
        6: fixed("octets", bytes((2, 0, 0, 0, 0, number))),
        7: fixed("integer", UP),
        8: fixed("integer", UP),
        9: fixed("ticks", 0),
        10: traffic,
        16: traffic,
        **{column: fixed("counter32", 0) for column in (13, 14, 19, 20)},
    }
    extended: dict[int, Cell] = {
        1: fixed("octets", name.encode()),
        6: traffic64,
        10: traffic64,
        15: fixed("gauge32", speed_bps // 1_000_000),
        18: fixed("octets", b""),
    }
    return {(*IF_TABLE, column, number): cell for column, cell in rows.items()} | {
        (*IFX_TABLE, column, number): cell for column, cell in extended.items()
    }


def _storage(row: int, kind: int, text: str, size: int, used: int) -> dict[Oid, Cell]:
    cells: dict[int, Cell] = {
        1: fixed("integer", row),
        2: fixed("oid", (*HR, 2, 1, kind)),
        3: fixed("octets", text.encode()),
        4: fixed("integer", STORAGE_UNITS),
        5: fixed("integer", size),
        6: fixed("integer", used),
    }
    return {(*HR_STORAGE, column, row): cell for column, cell in cells.items()}


def _load(percent: int) -> Cell:
    return Cell("integer", lambda now: percent + int(now) % 7)


class _Endpoint(asyncio.DatagramProtocol):
    def __init__(self, device: Device) -> None:
        self._device = device
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # asyncio's own class does not say so itself

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = self._device.answer(data)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)


def obey(devices: Mapping[str, Device], line: bytes | str) -> dict[str, Any]:
    """One command; the answer is {"done": the command} or {"error": what would be right}."""
    try:
        order = json.loads(line)
        device = devices[order["device"]]
        known = {"device", "answering", "port", "up", "shut", "disk", "ratio"}
        if unknown := set(order) - known:
            return {"error": f"unknown: {', '.join(sorted(unknown))}"}
        if "up" in order:
            device.set_port(int(order["port"]), bool(order["up"]))
        if "shut" in order:
            device.shut_port(int(order["port"]), bool(order["shut"]))
        if "disk" in order:
            device.set_disk(str(order["disk"]), float(order["ratio"]))
        if "answering" in order:
            device.answering = bool(order["answering"])
    except (ValueError, TypeError, KeyError) as error:
        example = '{"device":"sw-1","port":3,"up":false}'
        return {"error": f"{type(error).__name__}: {error}; write for example {example}"}
    return {"done": order}


async def serve(specs: Sequence[str], community: str) -> None:
    """The process: devices, stdin, stdout."""
    if find_spec("pysnmp") is None:
        print("the simulated devices need SNMP: pip install 'tocsin[agent]'", file=sys.stderr)
        raise SystemExit(exits.USAGE)
    devices: dict[str, Device] = {}
    for spec in specs or DEFAULT_DEVICES:
        kind, _, name = spec.partition(":")
        if kind not in BUILDERS or not name:
            print(f"{spec!r}: write KIND:NAME, kinds are {', '.join(BUILDERS)}", file=sys.stderr)
            raise SystemExit(exits.USAGE)
        devices[name] = BUILDERS[kind](name, community=community)
    ports = {name: await device.start() for name, device in devices.items()}
    print(json.dumps(ports), flush=True)
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while line := await reader.readline():
            print(json.dumps(obey(devices, line)), flush=True)
    finally:
        for device in devices.values():
            device.stop()


def main() -> None:
    # The community comes by the environment: arguments are seen by every user of the machine.
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(sys.argv[1:], os.environ.get(ENV_COMMUNITY, "public")))


if __name__ == "__main__":
    main()
