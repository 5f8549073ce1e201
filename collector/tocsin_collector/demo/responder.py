"""A small SNMP v1/v2c agent over a table of objects: GET, GETNEXT, GETBULK. For the demo and for tests.

Not a device (`devices` says which objects there are). Invariant: nothing can be written - a SET is dropped like any
PDU that is not one of the three - and a wrong community gets no answer, as on real devices.
"""

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Oid = tuple[int, ...]
Kind = Literal["integer", "counter32", "counter64", "gauge32", "ticks", "octets", "oid", "address"]
Plain = int | bytes | Oid

ANSWER_BYTES_MAX = 1472  # one Ethernet frame; more is tooBig, or for GETBULK: fewer rows
REPETITIONS_MAX = 100


@dataclass(frozen=True, slots=True)
class Cell:
    """One object: its SNMP type and its value at a moment (seconds since the device started)."""

    kind: Kind
    at: Callable[[float], Plain]


def fixed(kind: Kind, value: Plain) -> Cell:
    return Cell(kind, lambda _: value)


class Agent:
    """Answers datagrams from a table of cells. The table may change between datagrams."""

    def __init__(self, cells: Mapping[Oid, Cell], community: bytes) -> None:
        self._cells = dict(cells)
        self._order = sorted(self._cells)
        self._community = community

    def put(self, name: Oid, cell: Cell) -> None:
        if name not in self._cells:
            bisect.insort(self._order, name)
        self._cells[name] = cell

    def cell(self, name: Oid) -> Cell:
        return self._cells[name]

    def answer(self, datagram: bytes, now_s: float) -> bytes | None:
        """None: no answer (garbage, wrong community, a PDU that is not a question)."""
        library = _library()
        parsed = _parse(library, datagram)
        if parsed is None:
            return None
        version, message, pdu = parsed
        api = library.apis[version]
        if bytes(api.apiMessage.get_community(message)) != self._community:
            return None
        names = [tuple(name) for name, _ in api.apiPDU.get_varbinds(pdu)]
        if pdu.tagSet == api.GetRequestPDU.tagSet:
            found = [self._get(name, version) for name in names]
        elif pdu.tagSet == api.GetNextRequestPDU.tagSet:
            found = [self._next(name, version) for name in names]
        elif version == 1 and pdu.tagSet == api.GetBulkRequestPDU.tagSet:
            return self._bulk(library, message, pdu, names, now_s)
        else:
            return None
        if version == 0:
            # v1 has no exceptions: the first object that is not there is the answer.
            missing = next((i for i, (_, cell) in enumerate(found, 1) if not isinstance(cell, Cell)), 0)
            if missing:
                return _reply(library, version, message, pdu, [(name, "null") for name in names], now_s, 2, missing)
        reply = _reply(library, version, message, pdu, found, now_s)
        if len(reply) > ANSWER_BYTES_MAX:
            return _reply(library, version, message, pdu, [], now_s, 1)
        return reply

    def _get(self, name: Oid, version: int) -> "_Found":
        cell = self._cells.get(name)
        return name, "noSuchInstance" if cell is None or _hidden(cell, version) else cell

    def _next(self, name: Oid, version: int = 1) -> "_Found":
        for place in range(bisect.bisect_right(self._order, name), len(self._order)):
            cell = self._cells[self._order[place]]
            if not _hidden(cell, version):
                return self._order[place], cell
        return name, "endOfMibView"

    def _bulk(self, library: "_Library", message: Any, pdu: Any, names: list[Oid], now_s: float) -> bytes:
        api = library.apis[1]
        once = max(0, int(api.apiBulkPDU.get_non_repeaters(pdu)))
        repetitions = min(REPETITIONS_MAX, max(0, int(api.apiBulkPDU.get_max_repetitions(pdu))))
        found = [self._next(name) for name in names[:once]]
        row = names[once:]
        for _ in range(repetitions if row else 0):
            nexts = [self._next(name) for name in row]
            found += nexts
            row = [name for name, _ in nexts]
            if all(cell == "endOfMibView" for _, cell in nexts):
                break
        while True:
            reply = _reply(library, 1, message, pdu, found, now_s)
            if len(reply) <= ANSWER_BYTES_MAX:
                return reply
            if len(found) <= 1:
                return _reply(library, 1, message, pdu, [], now_s, 1)
            # As real agents do: as many varbinds as fit.
            found = found[: max(1, min(len(found) - 1, len(found) * ANSWER_BYTES_MAX // len(reply)))]


_Found = tuple[Oid, Cell | str]


def _hidden(cell: Cell, version: int) -> bool:
    return version == 0 and cell.kind == "counter64"  # v1 has no 64-bit counters: it passes over them (RFC 3584, 4.2)


@dataclass(frozen=True, slots=True)
class _Library:
    apis: tuple[Any, Any]  # by version number: v1, v2c
    encode: Any
    decode: Any
    version_of: Any
    errors: tuple[type[Exception], ...]
    types: dict[str, Any]


def _parse(library: _Library, datagram: bytes) -> tuple[int, Any, Any] | None:
    try:
        version = int(library.version_of(datagram))
        if version not in (0, 1):
            return None
        api = library.apis[version]
        message, _ = library.decode(datagram, asn1Spec=api.Message())
        return version, message, api.apiMessage.get_pdu(message)
    except library.errors:
        return None


def _reply(
    library: _Library,
    version: int,
    message: Any,
    pdu: Any,
    found: list[_Found],
    now_s: float,
    error_status: int = 0,
    error_index: int = 0,
) -> bytes:
    api = library.apis[version]
    answer = api.GetResponsePDU()
    api.apiPDU.set_defaults(answer)
    api.apiPDU.set_request_id(answer, api.apiPDU.get_request_id(pdu))
    api.apiPDU.set_error_status(answer, error_status)
    api.apiPDU.set_error_index(answer, error_index)
    api.apiPDU.set_varbinds(answer, [(name, _value(library, cell, now_s)) for name, cell in found])
    whole = api.Message()
    api.apiMessage.set_defaults(whole)
    api.apiMessage.set_community(whole, api.apiMessage.get_community(message))
    api.apiMessage.set_pdu(whole, answer)
    encoded: bytes = library.encode(whole)
    return encoded


def _value(library: _Library, cell: Cell | str, now_s: float) -> Any:
    if isinstance(cell, str):
        return library.types[cell]("")
    value = cell.at(now_s)
    if isinstance(value, int) and cell.kind != "integer":
        value %= 2**64 if cell.kind == "counter64" else 2**32
    return library.types[cell.kind](value)


@cache
def _library() -> _Library:
    from pyasn1.codec.ber import decoder, encoder
    from pyasn1.error import PyAsn1Error
    from pysnmp.proto.api import v1, v2c, verdec
    from pysnmp.proto.error import ProtocolError

    types = {
        "integer": v2c.Integer32,
        "counter32": v2c.Counter32,
        "counter64": v2c.Counter64,
        "gauge32": v2c.Gauge32,
        "ticks": v2c.TimeTicks,
        "octets": v2c.OctetString,
        "oid": v2c.ObjectIdentifier,
        "address": v2c.IpAddress,
        "null": v2c.Null,
        "noSuchInstance": v2c.NoSuchInstance,
        "endOfMibView": v2c.EndOfMibView,
    }
    errors = (PyAsn1Error, ProtocolError, ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError)
    return _Library((v1, v2c), encoder.encode, decoder.decode, verdec.decode_message_version, errors, types)
