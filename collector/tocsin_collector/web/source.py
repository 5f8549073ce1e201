"""What pages and API ask of the store, in their words: the Reader of `store/read.py` opened when first needed.

Not SQL. Invariant: whatever is wrong with the store comes out as SourceError, which is answered with 503
and tried again by the next request: the web process may be up before its collector's store is.
"""

import asyncio
import math
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import structlog

from tocsin_collector import wording
from tocsin_collector.core.model import Config, Incident, SeriesAdded, Step
from tocsin_collector.i18n import Language
from tocsin_collector.store.base import StoreError
from tocsin_collector.store.read import CursorError, Reader, ReadTooLongError
from tocsin_collector.store.rows import Component, Delivery, EnrolmentToken, Page, Session
from tocsin_collector.store.rows import Sums as Row
from tocsin_proto.records import SeriesKind

__all__ = [
    "Component",
    "CursorError",
    "Delivery",
    "EnrolmentToken",
    "Page",
    "Session",
    "Source",
    "SourceError",
    "Sums",
    "Value",
]

T = TypeVar("T")

log = structlog.get_logger("tocsin.web")


class SourceError(Exception):
    """The store cannot answer just now; the message says why."""


class Value(NamedTuple):
    """The newest value of a series; NaN and time 0: none yet. A counter's is its rate."""

    series: SeriesAdded
    time_ms: int
    value: float

    @property
    def unit(self) -> str:
        """Of `value`: the rate of a counter has the unit of the counter a second."""
        unit = self.series.unit
        return ("1/s" if unit in ("", "1") else f"{unit}/s") if SeriesKind(self.series.kind).is_counter else unit

    @property
    def instance(self) -> str:
        return ", ".join(value for _, value in self.series.labels)

    def shown(self, language: Language) -> str:
        if math.isnan(self.value):
            return "-"
        if self.series.states and self.value.is_integer():
            word = dict(self.series.states).get(int(self.value))
            if word is not None:
                return language.t(wording.STATE_WORDS.get(word, word))
        return wording.measured(language, self.value, self.unit, self.series.metric)


class Sums(NamedTuple):
    """The six sums of a component over a period, ms."""

    row: Row

    @property
    def revision(self) -> int:
        return self.row.revision

    @property
    def period_ms(self) -> int:
        return self.row.to_ms - self.row.from_ms

    def by_state(self) -> list[tuple[str, int]]:
        row = self.row
        return [
            ("up", row.up),
            ("degraded", row.degraded),
            ("down", row.down),
            ("unknown", row.unknown),
            ("maintenance", row.maintenance),
            ("outside", row.outside),
        ]

    @property
    def ratio(self) -> float | None:
        """up / (period - unknown - outside - maintenance); None when nothing of it is known."""
        known = self.period_ms - self.row.unknown - self.row.outside - self.row.maintenance
        return self.row.up / known if known > 0 else None

    @property
    def coverage(self) -> float:
        """How much of (period - outside - maintenance) is known."""
        wanted = self.period_ms - self.row.outside - self.row.maintenance
        return (wanted - self.row.unknown) / wanted if wanted > 0 else 1.0


class Source:
    """One read-only connection; questions are short and take turns."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._reader: Reader | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()

    async def config(self) -> Config | None:
        return await self._ask(Reader.config)

    async def components(self, now_ms: int) -> dict[str, Component]:
        return {one.component: one for one in await self._ask(lambda reader: reader.components(now_ms))}

    async def live_incidents(self) -> list[Incident]:
        return await self._ask(Reader.live_incidents)

    async def incidents(self, **wanted: Any) -> Page[Incident]:
        """CursorError: the cursor is none of this list."""
        return await self._ask(lambda reader: reader.incidents(**wanted))

    async def incident(self, id: str) -> Incident | None:
        return await self._ask(lambda reader: reader.incident(id))

    async def children(self, id: str) -> list[Incident]:
        return await self._ask(lambda reader: reader.children(id))

    async def timeline(self, id: str) -> list[Step]:
        return await self._ask(lambda reader: reader.timeline(id))

    async def deliveries(self, id: str) -> list[Delivery]:
        return await self._ask(lambda reader: reader.deliveries(id))

    async def values(self, device: str) -> list[Value]:
        """Every series of the device, by metric and instance, with its newest value."""
        series = await self._ask(lambda reader: reader.series(device))
        latest = {one.series: one for one in await self._ask(lambda reader: reader.latest(device))}
        found = [
            Value(one, latest[one.id].time_ms, latest[one.id].value) if one.id in latest else Value(one, 0, math.nan)
            for one in series
        ]
        return sorted(found, key=lambda value: (value.series.metric, value.series.labels))

    async def sums(self, component: str, from_ms: int, to_ms: int, now_ms: int, revision: int | None = None) -> Sums:
        return Sums(await self._ask(lambda reader: reader.sums(component, from_ms, to_ms, revision, now_ms)))

    async def enrolment_tokens(self) -> list[EnrolmentToken]:
        return await self._ask(Reader.enrolment_tokens)

    async def session(self, hashed: bytes, now_ms: int) -> Session | None:
        return await self._ask(lambda reader: reader.session(hashed, now_ms))

    async def _ask(self, question: Callable[[Reader], Awaitable[T]]) -> T:
        try:
            return await question(await self._opened())
        except ReadTooLongError as error:
            raise SourceError(str(error)) from error
        except (StoreError, sqlite3.Error, OSError) as error:
            # What is broken is opened anew next time: the file may have been replaced under us.
            await self._forget()
            log.warning("the store cannot be read", problem=str(error))
            raise SourceError(f"the store cannot be read: {error}") from error

    async def _opened(self) -> Reader:
        async with self._opening:
            if self._reader is None:
                self._reader = await Reader.open(self._database)
            return self._reader

    async def _forget(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            try:
                await reader.close()
            except (StoreError, sqlite3.Error, OSError):
                return
