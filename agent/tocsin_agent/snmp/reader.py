"""One poll of one device by its profile: which objects to ask for now, and what to leave out.

Not the meaning of values (`meaning`), not whether the device lives (`probes.snmp`). Invariant: a group that fails or
is absent never keeps the others from being read; it is tried again later, more rarely each time, at least every 10 min.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping

from tocsin_agent.probes import Measurement
from tocsin_agent.snmp.client import SnmpClient
from tocsin_agent.snmp.errors import SnmpError, SnmpTimeout
from tocsin_agent.snmp.meaning import SeriesBook, Ticks, row_measurements, table_measurements
from tocsin_agent.snmp.profile import Metric, Profile, Scalars, Table
from tocsin_agent.snmp.values import Missing, Oid, Value, number, oid, text
from tocsin_agent.snmp.walk import Rows, WalkLimits

LOOK_AGAIN_S = 600.0
SILENT_GROUPS_MAX = 2  # per poll: a device that stopped answering must not cost a timeout for every table
IDENTITY_ROWS_MAX = 64


class ProfileReader:
    """Reads a device again and again. `problems`: group -> what went wrong when it was last tried."""

    def __init__(self, client: SnmpClient, profile: Profile, resource: str, interval_ms: int) -> None:
        self.profile = profile
        self.problems: dict[str, SnmpError] = {}
        self._client = client
        self._book = SeriesBook(resource, interval_ms)
        self._interval_s = interval_ms / 1000
        # Below the deadline of a whole poll (the interval, at least 30 s): the slow table is named and backs off,
        # instead of the poll being cut off at the same place every time.
        self._walk_s_max = 0.6 * max(30.0, self._interval_s)
        self._plans = [_Plan(group) for group in profile.groups]

    async def read(self, now_s: float) -> AsyncGenerator[Measurement, None]:
        """`now_s`: monotonic seconds. Never raises SnmpError: see `problems`."""
        silent = 0
        walked: dict[Oid, Rows] = {}  # tables of a profile may share columns: each is walked once a poll
        for plan in self._plans:
            if now_s < plan.not_before_s:
                continue
            if silent >= SILENT_GROUPS_MAX:
                break
            name = plan.group.name
            try:
                measurements = await self._read_group(plan, now_s, walked)
            except SnmpError as error:
                silent += isinstance(error, SnmpTimeout)
                plan.failures += 1
                plan.not_before_s = now_s + min(LOOK_AGAIN_S, self._interval_s * 2 ** min(plan.failures, 16))
                self.problems[name] = error
            else:
                plan.failures = 0
                self.problems.pop(name, None)
                for measurement in measurements:
                    yield measurement
        self._book.forget_unused()

    async def identity(self) -> dict[str, str]:
        """Name, model, serial ...: what has a text. What fails is left out: identity is never a reason to stop."""
        found: dict[str, str] = {}
        plain = {oid(s) for sources in self.profile.identity.values() for s in sources if not s.endswith(".*")}
        answers = await self._client.get(sorted(plain))
        for key, sources in self.profile.identity.items():
            for source in sources:
                if source.endswith(".*"):
                    named = await self._first_text(oid(source.removesuffix(".*")))
                else:
                    named = text(answers.get(oid(source)))
                if named:
                    found[key] = named
                    break
        return found

    async def _first_text(self, root: Oid) -> str:
        try:
            rows = await self._client.walk(root, limits=WalkLimits(rows_max=IDENTITY_ROWS_MAX, requests_max=16))
        except SnmpError:
            return ""
        return next(filter(None, (text(value) for value in rows.values())), "")

    async def _read_group(self, plan: "_Plan", now_s: float, walked: dict[Oid, Rows]) -> list[Measurement]:
        plan.begin(now_s)
        if isinstance(plan.group, Scalars):
            row = await self._get(plan)
            plan.learn_scalars(row)
            seconds = plan.ticks_as_seconds(row, now_s)
            return list(row_measurements(plan.group.metric, row | seconds, (), self._book))
        missing = [found for name in plan.active if (found := plan.oids[name]) not in walked]
        if missing:
            limits = WalkLimits(rows_max=plan.group.rows_max, seconds_max=self._walk_s_max)
            walked |= await self._client.columns(missing, limits=limits)
        columns = {name: walked[plan.oids[name]] for name in plan.active}
        plan.learn_table(columns)
        return list(table_measurements(plan.group, columns, self._book))

    async def _get(self, plan: "_Plan") -> dict[str, Value]:
        answers = await self._client.get([plan.oids[name] for name in plan.active])
        row = {name: answers[plan.oids[name]] for name in plan.active}
        return {name: value for name, value in row.items() if not isinstance(value, Missing)}


class _Plan:
    """What of one group is worth asking for. Every 10 minutes everything is, and what proved empty is left out until then."""

    def __init__(self, group: Scalars | Table) -> None:
        self.group = group
        self.oids = {name: oid(dotted) for name, dotted in group.columns.items()}
        self.active = list(self.oids)
        self.failures = 0
        self.not_before_s = float("-inf")
        self._look_again_s = float("-inf")
        self._learns = True
        self._now_s = 0.0
        self._ticks = {name: Ticks() for name in group.ticks} if isinstance(group, Scalars) else {}

    def begin(self, now_s: float) -> None:
        self._now_s = now_s
        self._learns = now_s >= self._look_again_s
        if self._learns:
            self.active = list(self.oids)

    def learn_scalars(self, row: Mapping[str, Value]) -> None:
        if self._learns:
            self._keep(row)

    def learn_table(self, columns: Mapping[str, Rows]) -> None:
        """Columns without rows, and fallbacks that no row needs, are not asked for again until the next look."""
        if not self._learns:
            return
        group = self.group
        assert isinstance(group, Table)
        every = set().union(*columns.values()) if columns else set()
        needed: set[str] = {*group.where, *group.where_not}
        for sources in group.labels.values():
            needed |= _until_covered(sources, columns, every)
        for metric in group.metric:
            needed |= set(metric.inputs) | _sources(metric, columns, every)
        self._keep(name for name in columns if columns[name] and name in needed)

    def ticks_as_seconds(self, row: Mapping[str, Value], now_s: float) -> dict[str, Value]:
        seconds: dict[str, Value] = {}
        for name, ticks in self._ticks.items():
            raw = number(row.get(name))
            if raw is not None:
                seconds[name] = ticks.seconds(int(raw), now_s)
        return seconds

    def _keep(self, names: Iterable[str]) -> None:
        kept = set(names)
        self.active = [name for name in self.active if name in kept]
        self._look_again_s = self._now_s + LOOK_AGAIN_S
        if not self.active:
            self.not_before_s = self._look_again_s


def _sources(metric: Metric, columns: Mapping[str, Rows], every: set[Oid]) -> set[str]:
    names = [source.column for source in metric.sources]
    return set(names) if metric.zero_is_absent else _until_covered(names, columns, every)


def _until_covered(names: Iterable[str], columns: Mapping[str, Rows], every: set[Oid]) -> set[str]:
    """The first columns that together have something for every row."""
    needed: set[str] = set()
    uncovered = set(every)
    for name in names:
        if not uncovered:
            break
        rows = columns.get(name)
        if rows:
            needed.add(name)
            uncovered -= {index for index, value in rows.items() if value != b""}
    return needed
