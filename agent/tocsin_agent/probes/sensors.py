"""Temperatures and fans, each sensor by the name of its chip and its label.

Reading a sensor may ask a slow bus or a hung management controller: it happens in a thread that is left behind when it
does not come back; until it does, the probe fails and says so.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psutil

from tocsin_agent.config import HostSettings
from tocsin_agent.daemon_thread import DaemonCall
from tocsin_agent.probes import INSTANCES_MAX, Column, Family, Measurement, ProbeError

Readings = tuple[dict[str, list[Any]], dict[str, list[Any]]]


class SensorsProbe:
    def __init__(self, host: HostSettings) -> None:
        self._temperature = Family("sensor", [Column("sensor.temperature_celsius", "Cel")], host.interval)
        self._fan = Family("sensor", [Column("sensor.fan_rpm", "1")], host.interval)
        self._deadline_s = host.sensors.deadline / 1000
        self._reading: DaemonCall[Readings] | None = None

    async def collect(self) -> AsyncIterator[Measurement]:
        temperatures, fans = await self._read()
        for name, celsius in _named(temperatures):
            yield Measurement(self._temperature.of(name)[0], celsius)
        for name, rpm in _named(fans):
            yield Measurement(self._fan.of(name)[0], rpm)

    async def _read(self) -> Readings:
        if self._reading is not None and self._reading.is_alive():
            raise ProbeError("the sensors have not answered since an earlier round: a hung bus or controller")
        self._reading = DaemonCall("sensors", lambda: (_read("sensors_temperatures"), _read("sensors_fans")))
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._reading.result
        except TimeoutError:
            raise ProbeError(f"the sensors did not answer within {self._deadline_s:g} s") from None


def _read(function: str) -> dict[str, list[Any]]:
    read = getattr(psutil, function, None)  # not on every system
    return read() if read is not None else {}


def _named(chips: dict[str, list[Any]]) -> list[tuple[str, float]]:
    """(name, reading) of all sensors. Two chips of one name are told apart by their order: "coretemp/Core 0 #2"."""
    found: dict[str, float] = {}
    for chip, sensors in sorted(chips.items()):
        for sensor in sensors:
            base = name = f"{chip}/{sensor.label}" if sensor.label else chip
            count = 1
            while name in found:
                count += 1
                name = f"{base} #{count}"
            if sensor.current is not None:
                found[name] = sensor.current
    return list(found.items())[:INSTANCES_MAX]
