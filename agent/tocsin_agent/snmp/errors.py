"""Why an SNMP request gave nothing. Each kind is its own result (`snmp.result`), so that people see the cause.

Not for missing objects: noSuchObject, noSuchInstance and endOfMibView are values (`values.Missing`).
"""

from enum import IntEnum
from typing import ClassVar


class SnmpResult(IntEnum):
    """States of the series `snmp.result`."""

    OK = 1
    NO_ANSWER = 2
    REFUSED = 3
    GARBAGE = 4
    ERROR_STATUS = 5
    ENDLESS_WALK = 6
    NOT_AUTHORISED = 7
    BAD_ADDRESS = 8


RESULT_STATES = tuple((int(result), result.name.lower().replace("_", " ")) for result in SnmpResult)

ERROR_STATUS = {
    1: "tooBig",
    2: "noSuchName",
    3: "badValue",
    4: "readOnly",
    5: "genErr",
    6: "noAccess",
    13: "resourceUnavailable",
    16: "authorizationError",
}


class SnmpError(Exception):
    result: ClassVar[SnmpResult]


class SnmpTimeout(SnmpError):
    """Silence. SNMP v1 and v2c drop a wrong community silently, so it looks like a dead device."""

    result = SnmpResult.NO_ANSWER

    def __init__(self, tries: int, seconds: float) -> None:
        super().__init__(
            f"no answer to {tries} {'try' if tries == 1 else 'tries'} in {seconds:g} s: device down, wrong community, "
            "or filtered (SNMP v1 and v2c cannot tell these apart)"
        )


class SnmpRefused(SnmpError):
    """The host answers that nothing listens there (ICMP), so the network is fine and the SNMP service is not."""

    result = SnmpResult.REFUSED


class SnmpNoHost(SnmpError):
    """A router or the neighbour table says that there is no such host: evidence as good as silence."""

    result = SnmpResult.NO_ANSWER


class SnmpGarbage(SnmpError):
    """Datagrams came, none was a valid answer."""

    result = SnmpResult.GARBAGE


class SnmpAddress(SnmpError):
    """The name does not resolve or this machine has no network: nothing is known about the device."""

    result = SnmpResult.BAD_ADDRESS


class SnmpErrorStatus(SnmpError):
    """The agent answered with an error-status. `index` is 1-based, 0: none named."""

    result = SnmpResult.ERROR_STATUS

    def __init__(self, status: int, index: int = 0, what: str = "") -> None:
        self.status = status
        self.index = index
        self.name = ERROR_STATUS.get(status, f"error-status {status}")
        super().__init__(f"the device answered {self.name}" + (f" for {what}" if what else ""))


class SnmpAuth(SnmpErrorStatus):
    """The device says that this credential may not read: only some agents say so, most stay silent."""

    result = SnmpResult.NOT_AUTHORISED


class SnmpWalkEndless(SnmpError):
    """A walk that our guards ended: the reason says which."""

    result = SnmpResult.ENDLESS_WALK

    def __init__(self, reason: str, at: str) -> None:
        self.reason = reason
        super().__init__(f"walk ended by guard: {reason} at {at}")


def error_status(status: int, index: int, what: str = "") -> SnmpErrorStatus:
    """authorizationError (16) and noAccess (6) are about the credential, the rest about the request."""
    kind = SnmpAuth if status in (6, 16) else SnmpErrorStatus
    return kind(status, index, what)
