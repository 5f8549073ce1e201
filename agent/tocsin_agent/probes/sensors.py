"""Temperatures and fans, each sensor by the name of its chip and its label.

Reading a sensor may ask a slow bus or a hung management controller: it happens in a thread that is left behind when it
does not come back; until it does, the probe fails and says so.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import psutil

from tocsin_agent.config import HostSettings
from tocsin_agent.probes import INSTANCES_MAX, Column, Family, Measurement, ProbeError

Readings = tuple[dict[str, list[Any]], dict[str, list[Any]]]


class SensorsProbe:
    def __init__(self, host: HostSettings) -> None:
        self._temperature = Family("sensor", [Column("sensor.temperature_celsius", "Cel")], host.interval)
        self._fan = Family("sensor", [Column("sensor.fan_rpm", "1")], host.interval)
        self._deadline_s = host.sensors.deadline / 1000
        self._reader: _Reader | None = None

    async def collect(self) -> AsyncIterator[Measurement]:
        temperatures, fans = await self._read()
        for name, celsius in _named(temperatures):
            yield Measurement(self._temperature.of(name)[0], celsius)
        for name, rpm in _named(fans):
            yield Measurement(self._fan.of(name)[0], rpm)

    async def _read(self) -> Readings:
        if self._reader is not None and self._reader.is_alive():
            raise ProbeError("the sensors have not answered since an earlier round: a hung bus or controller")
        self._reader = _Reader(asyncio.get_running_loop())
        self._reader.start()
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._reader.readings
        except TimeoutError:
            raise ProbeError(f"the sensors did not answer within {self._deadline_s:g} s") from None


class _Reader(threading.Thread):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="sensors", daemon=True)
        self._loop = loop
        self.readings: asyncio.Future[Readings] = loop.create_future()

    def run(self) -> None:
        try:
            outcome: Readings | Exception = (_read("sensors_temperatures"), _read("sensors_fans"))
        except Exception as error:  # at the thread's edge: the probe's round fails with it
            outcome = ProbeError(f"sensors: {error}")
        with contextlib.suppress(RuntimeError):  # the loop may be gone by now
            self._loop.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: Readings | Exception) -> None:
        if self.readings.done():
            return
        if isinstance(outcome, Exception):
            self.readings.set_exception(outcome)
        else:
            self.readings.set_result(outcome)


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
