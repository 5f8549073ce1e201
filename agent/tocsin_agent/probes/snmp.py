"""The SNMP probe: one device, polled by its profile, with a verdict on whether it answers at all.

Not the protocol and not the profiles (`tocsin_agent.snmp`). Invariants: the first measurement of every poll is
`device.reachable`, decided by one small GET; while the device is silent nothing but that GET is sent, at the usual
interval, so that its return is seen at once; what says nothing about the device (a name that does not resolve) never
counts as unreachable.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import structlog

from tocsin_agent.probes import Measurement, ProbeError
from tocsin_agent.snmp.errors import RESULT_STATES, SnmpAddress, SnmpError, SnmpErrorStatus, SnmpResult
from tocsin_agent.snmp.values import Oid, Value
from tocsin_proto.records import Event, Series, SeriesKind
from tocsin_proto.units import Duration

if TYPE_CHECKING:
    from tocsin_agent.snmp.client import SnmpClient
    from tocsin_agent.snmp.profile import Profiles
    from tocsin_agent.snmp.reader import ProfileReader

SYS_OBJECT_ID: Oid = (1, 3, 6, 1, 2, 1, 1, 2, 0)
SYS_UPTIME: Oid = (1, 3, 6, 1, 2, 1, 1, 3, 0)
REACHABLE_STATES = ((0, "unreachable"), (1, "reachable"))
IDENTITY_EVERY_S = 3600.0
TIMEOUT_MS_MAX = 60_000

log = structlog.get_logger(__name__)


class SnmpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A device's `snmp = { ... }`. `credential` names the community; the community itself lives elsewhere."""

    version: Literal["1", "2c", "3"] = "2c"
    credential: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 161
    profile: str | None = None  # None: by the device's sysObjectID
    interval: Duration = Duration("30s")
    timeout: Duration = Duration("2s")  # of one try
    retries: Annotated[int, msgspec.Meta(ge=0, le=10)] = 1

    def __post_init__(self) -> None:
        if self.version == "3":
            raise ValueError('version = "3": SNMPv3 is not there yet, write "2c" or "1"')
        if not 0 < self.timeout <= TIMEOUT_MS_MAX:
            raise ValueError(f'timeout = "{self.timeout}": write more than 0 and at most "60s"')
        if self.interval < 1000:
            raise ValueError(f'interval = "{self.interval}": write at least "1s"')


class Detail(msgspec.Struct, frozen=True):
    """Why the device, or a part of it, gives nothing now."""

    result: SnmpResult
    text: str
    group: str = ""  # of the profile; empty: the device


class SnmpProbe:
    """`silent`, `identity` and `details` are for the scheduler and for `tocsin-agent test`; the rest is measured."""

    def __init__(
        self,
        device_id: str,
        address: str,
        settings: SnmpSettings,
        credentials: Callable[[str], str],
        *,
        profiles: "Profiles | None" = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`credentials`: name -> community, LookupError or OSError when there is none.

        ValueError: unknown profile. ImportError: SNMP is not installed; it is imported with the first poll.
        """
        if find_spec("pysnmp") is None:
            raise ImportError("SNMP is not installed: pip install 'tocsin[agent]'")
        self.device_id = device_id
        self.silent = False
        self.identity: dict[str, str] = {}
        self.details: tuple[Detail, ...] = ()
        self._address = address
        self._settings = settings
        self._credentials = credentials
        self._profiles = profiles
        self._monotonic = monotonic
        self._wall_ms = wall_ms
        self._community = ""
        self._client: SnmpClient | None = None
        self._reader: ProfileReader | None = None
        self._object_id: Value | None = None
        self._identity_due_s = float("-inf")
        interval = int(settings.interval)
        state = SeriesKind.STATE
        self._reachable = Series(device_id, "device.reachable", "1", state, (), interval, REACHABLE_STATES)
        self._result = Series(device_id, "snmp.result", "1", state, (), interval, RESULT_STATES)
        if settings.profile is not None:
            self._check_profile(settings.profile)

    async def collect(self) -> AsyncIterator[Measurement | Event]:
        client = self._ready_client()
        try:
            answers = await client.get([SYS_UPTIME, SYS_OBJECT_ID], tries=1 if self.silent else None)
        except SnmpAddress as error:
            yield Measurement(self._result, error.result)
            raise ProbeError(f"{self.device_id}: {error}") from error
        except SnmpError as error:
            answered = isinstance(error, SnmpErrorStatus)
            self.silent = not answered
            yield Measurement(self._reachable, int(answered))
            yield Measurement(self._result, error.result)
            for event in self._changed((Detail(error.result, str(error)),)):
                yield event
            return
        yield Measurement(self._reachable, 1)
        if self.silent:
            self.silent = False
            self._identity_due_s = float("-inf")  # what comes back may be another device, or have new firmware
        reader = self._ready_reader(client, answers[SYS_OBJECT_ID])
        now_s = self._monotonic()
        async with aclosing(reader.read(now_s)) as measurements:
            async for measurement in measurements:
                yield measurement
        await self._refresh_identity(reader, now_s)
        details = tuple(Detail(error.result, str(error), group) for group, error in reader.problems.items())
        yield Measurement(self._result, details[0].result if details else SnmpResult.OK)
        for event in self._changed(details):
            yield event
        if details:
            raise ProbeError(f"{self.device_id}: {details[0].group}: {details[0].text}")

    async def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
            self._reader = None

    def _ready_client(self) -> "SnmpClient":
        """A new one when there is none, or when the credential of a silent device has changed."""
        if self._client is not None and not self.silent:
            return self._client
        name = self._settings.credential
        try:
            community = self._credentials(name)
        except (LookupError, OSError) as error:
            raise ProbeError(f"{self.device_id}: credential {name!r} cannot be read: {error}") from error
        if self._client is not None and community == self._community:
            return self._client
        from tocsin_agent.snmp.client import Target, UdpSnmpClient
        from tocsin_agent.snmp.codec import Version

        settings = self._settings
        if self._client is not None:
            self._client.close()
        self._reader = None
        self._community = community
        self._client = UdpSnmpClient(
            Target(
                host=self._address,
                port=settings.port,
                version=Version.V1 if settings.version == "1" else Version.V2C,
                community=community.encode(),
                timeout_s=settings.timeout / 1000,
                tries=settings.retries + 1,
            )
        )
        return self._client

    def _ready_reader(self, client: "SnmpClient", object_id: Value) -> "ProfileReader":
        """A new one at the first answer, and when another device answers at this address."""
        if self._reader is not None and object_id == self._object_id:
            return self._reader
        from tocsin_agent.snmp.reader import ProfileReader

        profiles = self._known_profiles()
        if self._settings.profile is not None:
            profile = profiles.named(self._settings.profile)
        else:
            profile = profiles.choose(object_id if isinstance(object_id, tuple) else None)
        log.info("snmp profile chosen", device=self.device_id, profile=profile.name)
        self._object_id = object_id
        self._identity_due_s = float("-inf")
        self._reader = ProfileReader(client, profile, self.device_id, int(self._settings.interval))
        return self._reader

    async def _refresh_identity(self, reader: "ProfileReader", now_s: float) -> None:
        if now_s < self._identity_due_s:
            return
        self._identity_due_s = now_s + IDENTITY_EVERY_S
        try:
            self.identity = {**await reader.identity(), "profile": reader.profile.name}
        except SnmpError as error:
            log.info("snmp identity not read", device=self.device_id, cause=str(error))

    def _changed(self, details: tuple[Detail, ...]) -> list[Event]:
        """Tell a new cause once, and its end once: in the log and as an event of the device."""
        before = {(detail.result, detail.group): detail for detail in self.details}
        after = {(detail.result, detail.group): detail for detail in details}
        self.details = details
        events = []
        for key in after.keys() - before.keys():
            detail = after[key]
            log.warning("snmp gives nothing", device=self.device_id, group=detail.group, cause=detail.text)
            events.append(self._event("snmp.problem", detail, detail.text))
        for key in before.keys() - after.keys():
            log.info("snmp answers again", device=self.device_id, group=before[key].group)
            events.append(self._event("snmp.recovered", before[key], "answers again"))
        return events

    def _event(self, name: str, detail: Detail, text: str) -> Event:
        fields = {"group": detail.group, "result": detail.result.name.lower().replace("_", " ")}
        return Event(
            resource=self.device_id,
            source="agent",
            name=name,
            time_ms=self._wall_ms(),
            fields=tuple((key, value) for key, value in fields.items() if value),
            text=text,
        )

    def _known_profiles(self) -> "Profiles":
        if self._profiles is None:
            from tocsin_agent.snmp.profile import built_in

            self._profiles = built_in()
        return self._profiles

    def _check_profile(self, name: str) -> None:
        try:
            self._known_profiles().named(name)
        except KeyError as error:
            raise ValueError(f"profile = {name!r}: {error.args[0]}") from error
