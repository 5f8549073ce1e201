"""Guarded walks: columns of a table, or one subtree, until they end - or until a guard ends them.

Not the wire: `Ask` is one request with its tries. Agents in the field repeat an OID for ever, go round in circles or
never reach an end; no SNMP library stops for that. Invariant: every accepted OID of a column is strictly greater than
the one before it, and rows, requests and wall clock are capped, so every walk ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tocsin_agent.snmp.codec import Request, Response
from tocsin_agent.snmp.errors import SnmpErrorStatus, SnmpTimeout, SnmpWalkEndless, error_status
from tocsin_agent.snmp.values import Missing, Oid, Value, dotted

TOO_BIG = 1
NO_SUCH_NAME = 2
REPETITIONS_MAX = 25
SILENT_BULKS_MAX = 3  # then GETNEXT, with all its tries
VARBINDS_WANTED = 60  # in one answer: about one Ethernet frame, so that nothing depends on IP fragments

Rows = dict[Oid, Value]  # index below the column -> value, in the device's order


@dataclass(frozen=True, slots=True)
class WalkLimits:
    rows_max: int = 10_000  # per column
    requests_max: int = 2_000
    seconds_max: float = 30.0
    columns_max: int = 12  # asked for in one request


class Ask(Protocol):
    async def __call__(
        self, kind: Request, oids: Sequence[Oid], repetitions: int = 0, *, tries: int | None = None
    ) -> Response:
        """One request, `tries` times when silent (None: as configured). Raises SnmpError, never for an error-status."""


class Pace:
    """How many rows this device is asked for at once: halved by tooBig and silence, doubled after a long good run."""

    GOOD_RUN = 100  # answers; a device that loses large ones then costs one timeout per good run

    def __init__(self, repetitions_max: int = REPETITIONS_MAX) -> None:
        self.repetitions = repetitions_max  # 0: GETNEXT only
        self.columns_max: int | None = None  # once the device could not send one row of more
        self._repetitions_max = repetitions_max
        self._good = 0

    def halve(self) -> bool:
        """False when there is nothing left to halve."""
        self._good = 0
        if self.repetitions == 0:
            return False
        self.repetitions //= 2
        return True

    def answered(self) -> None:
        self._good += 1
        if self._good >= self.GOOD_RUN and self.repetitions < self._repetitions_max:
            self._good = 0
            self.repetitions = min(self._repetitions_max, 2 * self.repetitions or 1)


async def walk_columns(
    ask: Ask, columns: Sequence[Oid], limits: WalkLimits, pace: Pace, monotonic: Callable[[], float]
) -> dict[Oid, Rows]:
    """All rows of every column, several columns per request. Raises SnmpError; then nothing of the walk is returned."""
    guard = _Guard(limits, monotonic)
    rows: dict[Oid, Rows] = {column: {} for column in columns}
    width = min(limits.columns_max, pace.columns_max or limits.columns_max)
    pending = [list(columns[start : start + width]) for start in range(0, len(columns), width)]
    while pending:
        group = pending.pop()
        try:
            await _walk_group(ask, group, rows, guard, pace)
        except _TooWideError:
            half = len(group) // 2
            pace.columns_max = half
            for column in group:
                rows[column].clear()
            pending += [group[:half], group[half:]]
    return rows


class _TooWideError(Exception):
    """Even one row of these columns does not fit into the device's answer."""


class _Guard:
    def __init__(self, limits: WalkLimits, monotonic: Callable[[], float]) -> None:
        self._limits = limits
        self._monotonic = monotonic
        self._requests = 0
        self._ends_at = monotonic() + limits.seconds_max

    def before_request(self, at: Oid) -> None:
        self._requests += 1
        if self._requests > self._limits.requests_max:
            raise SnmpWalkEndless(f"more than {self._limits.requests_max} requests", dotted(at))
        if self._monotonic() > self._ends_at:
            raise SnmpWalkEndless(f"longer than {self._limits.seconds_max:g} s", dotted(at))

    def accept(self, name: Oid, last: Oid, column: Oid, rows: Rows) -> None:
        if name <= last:
            if name == last:
                reason = "same OID again"
            elif name[len(column) :] in rows:
                reason = "cycle"
            else:
                reason = "OID decreased"
            raise SnmpWalkEndless(reason, dotted(name))
        if len(rows) >= self._limits.rows_max:
            raise SnmpWalkEndless(f"more than {self._limits.rows_max} rows", dotted(name))


async def _walk_group(ask: Ask, group: list[Oid], rows: dict[Oid, Rows], guard: _Guard, pace: Pace) -> None:
    last = {column: column for column in group}
    active = list(group)
    while active:
        guard.before_request(last[active[0]])
        response = await _page(ask, [last[column] for column in active], pace)
        if response.error_status == NO_SUCH_NAME and 0 < response.error_index <= len(active):
            del active[response.error_index - 1]  # v1 says "end of the MIB" so
            continue
        if response.error_status == NO_SUCH_NAME and len(active) == 1:
            return
        if response.error_status == TOO_BIG:
            if not pace.halve():
                if len(active) == 1:
                    raise error_status(TOO_BIG, 1, dotted(last[active[0]]))
                raise _TooWideError
            continue
        if response.error_status:
            raise error_status(response.error_status, response.error_index, dotted(last[active[0]]))
        if len(response.varbinds) < len(active):
            # Some agents send a part of the first row when it does not fit, instead of tooBig.
            if not response.varbinds and not pace.repetitions and len(active) == 1:
                raise SnmpErrorStatus(0, 0, f"{dotted(last[active[0]])}, an empty answer")
            if pace.halve():
                continue
            if len(active) > 1:
                raise _TooWideError
        active = _take(response, active, last, rows, guard)


async def _page(ask: Ask, oids: list[Oid], pace: Pace) -> Response:
    """A large answer may be lost where a small one passes (no IP fragments): ask for less before giving up."""
    fits = max(1, VARBINDS_WANTED // len(oids))
    for _ in range(SILENT_BULKS_MAX):
        repetitions = min(pace.repetitions, fits)
        if repetitions == 0:
            break
        try:
            response = await ask(Request.BULK, oids, repetitions, tries=1)
        except SnmpTimeout:
            pace.repetitions = repetitions
            pace.halve()
        else:
            pace.answered()
            return response
    return await ask(Request.NEXT, oids)


def _take(
    response: Response, active: list[Oid], last: dict[Oid, Oid], rows: dict[Oid, Rows], guard: _Guard
) -> list[Oid]:
    """Sort the interleaved varbinds into their columns; returns the columns that go on."""
    ended: set[Oid] = set()
    for position, (name, value) in enumerate(response.varbinds):
        column = active[position % len(active)]
        if column in ended:
            continue  # what a GETBULK says beyond the end of a column is filler
        if value is Missing.END or name[: len(column)] != column:
            ended.add(column)
            continue
        guard.accept(name, last[column], column, rows[column])
        last[column] = name
        if not isinstance(value, Missing):
            rows[column][name[len(column) :]] = value
    return [column for column in active if column not in ended]
