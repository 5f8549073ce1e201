"""From raw columns to measurements: what a profile's rows mean. Pure; the asking is `reader`'s.

Invariant: a value that is not known - missing, not a number, a division by zero, a negative counter - is not yielded.
"""

from collections.abc import Iterable, Iterator, Mapping

from tocsin_agent.probes import Measurement
from tocsin_agent.snmp.profile import KINDS, Metric, Table
from tocsin_agent.snmp.values import Oid, Value, dotted, number, text
from tocsin_agent.snmp.walk import Rows
from tocsin_proto.limits import STATE_MAX, STATE_MIN
from tocsin_proto.records import Series, SeriesKind

TICKS_WRAP = 2**32  # sysUpTime and its like: 1/100 s, 497 days
COUNTER_MAX = 2**64 - 1

Row = Mapping[str, Value]
Labels = tuple[tuple[str, str], ...]


class SeriesBook:
    """The Series objects of one device: built once, the same object every poll; what is gone is forgotten."""

    def __init__(self, resource: str, interval_ms: int) -> None:
        self._resource = resource
        self._interval_ms = interval_ms
        self._known: dict[tuple[str, SeriesKind, Labels], Series] = {}
        self._used: dict[tuple[str, SeriesKind, Labels], Series] = {}

    def of(self, metric: Metric, kind: SeriesKind, labels: Labels) -> Series:
        key = (metric.metric, kind, labels)
        series = self._known.get(key)
        if series is None:
            states = metric.state_names
            series = Series(self._resource, metric.metric, metric.unit, kind, labels, self._interval_ms, states)
            self._known[key] = series
        self._used[key] = series
        return series

    def forget_unused(self) -> None:
        """After a complete poll: names that come and go must not fill the memory."""
        if len(self._known) > 2 * len(self._used) + 100:
            self._known = self._used
        self._used = {}


class Ticks:
    """A TimeTicks counter as seconds that go on beyond the wrap. A restart of the device starts it again."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._last_s = 0.0
        self._wraps = 0

    def seconds(self, raw: int, now_s: float) -> float:
        """`now_s`: any monotonic clock. What a restart of this program forgets is how often the device had wrapped."""
        if self._last is not None and raw < self._last:
            elapsed = (now_s - self._last_s) * 100
            expected = self._last + elapsed
            off = (raw - expected + TICKS_WRAP / 2) % TICKS_WRAP - TICKS_WRAP / 2
            wrapped = expected >= TICKS_WRAP - 500 and abs(off) <= max(500.0, 0.1 * elapsed)
            self._wraps = self._wraps + 1 if wrapped else 0
        self._last, self._last_s = raw, now_s
        return (raw + self._wraps * TICKS_WRAP) / 100


def row_measurements(metrics: Iterable[Metric], row: Row, labels: Labels, book: SeriesBook) -> Iterator[Measurement]:
    for metric in metrics:
        found = evaluate(metric, row)
        if found is not None:
            kind, value = found
            own = tuple(sorted((*labels, *metric.labels.items()))) if metric.labels else labels
            yield Measurement(book.of(metric, kind, own), value)


def table_measurements(table: Table, columns: Mapping[str, Rows], book: SeriesBook) -> Iterator[Measurement]:
    rows = _rows(table, columns)
    for (_, row), labels in zip(rows, _labels(table, rows), strict=True):
        yield from row_measurements(table.metric, row, labels, book)
    for metric in table.metric:
        values = [found[1] for _, row in rows if (found := evaluate(metric, row)) is not None]
        if metric.mean_as and values:
            series = book.of(metric, KINDS[metric.kind], tuple(sorted(metric.mean_as.items())))
            yield Measurement(series, sum(values) / len(values))


def evaluate(metric: Metric, row: Row) -> tuple[SeriesKind, int | float] | None:
    """(source * source.scale - minus) * times / over * scale, by the first source that has a number."""
    for override in metric.override:
        value = row.get(metric.column)
        if row.get(override.column) == override.equals and value is not None and value != override.unless:
            return KINDS[metric.kind], override.value
    kind, found = _first(metric, row)
    if found is None:
        return None
    if kind.is_counter:
        # Counters stay whole: floats would lose the low bits of 64-bit ones.
        return (kind, found) if isinstance(found, int) and 0 <= found <= COUNTER_MAX else None
    if kind is SeriesKind.STATE:
        return (kind, found) if isinstance(found, int) and STATE_MIN <= found <= STATE_MAX else None
    for name, apply in ((metric.minus, _minus), (metric.times, _times), (metric.over, _over)):
        if name:
            operand = number(row.get(name))
            result = None if operand is None else apply(found, operand)
            if result is None:
                return None
            found = result
    return kind, found if metric.scale == 1.0 else found * metric.scale


def _first(metric: Metric, row: Row) -> tuple[SeriesKind, int | float | None]:
    if metric.greatest_of:
        numbers = [found for name in metric.greatest_of if (found := number(row.get(name))) is not None]
        return KINDS[metric.kind], max(numbers, default=None)
    stands: int | float | None = None
    for source in metric.sources:
        value = number(row.get(source.column))
        if value is not None:
            kind = KINDS[source.kind or metric.kind]
            scaled = value if source.scale == 1.0 else value * source.scale
            if scaled or not metric.zero_is_absent:
                return kind, scaled
            stands = 0
    return KINDS[metric.kind], stands


def _minus(value: float, operand: float) -> float | None:
    return value - operand


def _times(value: float, operand: float) -> float | None:
    return value * operand


def _over(value: float, operand: float) -> float | None:
    return value / operand if operand > 0 else None


def _rows(table: Table, columns: Mapping[str, Rows]) -> list[tuple[Oid, dict[str, Value]]]:
    """By index, in order; each with the columns it has; without the rows that `where` leaves out."""
    by_index: dict[Oid, dict[str, Value]] = {}
    for name, rows in columns.items():
        for index, value in rows.items():
            by_index.setdefault(index, {})[name] = value
    for name in table.unsigned:
        for row in by_index.values():
            signed = row.get(name)
            if isinstance(signed, int) and signed < 0:
                row[name] = signed + 2**32
    return [(index, by_index[index]) for index in sorted(by_index) if _wanted(table, by_index[index])]


def _wanted(table: Table, row: Row) -> bool:
    return all(text(row.get(column)) in wanted for column, wanted in table.where.items()) and not any(
        text(row.get(column)) in unwanted for column, unwanted in table.where_not.items()
    )


def _labels(table: Table, rows: list[tuple[Oid, dict[str, Value]]]) -> list[Labels]:
    """One set of labels per row, all different: rows that would be the same one get their index as well."""
    found: list[Labels] = []
    for ordinal, (index, row) in enumerate(rows):
        labels: dict[str, str] = {}
        for label, sources in table.labels.items():
            named = next(filter(None, (_label(table, source, index, ordinal, row) for source in sources)), "")
            if named:
                labels[label] = named
        found.append(tuple(sorted(labels.items())))
    count: dict[Labels, int] = {}
    for each in found:
        count[each] = count.get(each, 0) + 1
    return [
        each if count[each] == 1 else tuple(sorted((*each, ("index", dotted(index)))))
        for each, (index, _) in zip(found, rows, strict=True)
    ]


def _label(table: Table, source: str, index: Oid, ordinal: int, row: Row) -> str:
    if source == "#index":
        return dotted(index)
    if source == "#ordinal":
        return str(ordinal)
    named = text(row.get(source))
    for end in table.label_until:
        named = named.split(end, 1)[0]
    return named.strip()
