"""Datagrams of SNMP v1 and v2c: requests out, responses in, by pysnmp's message classes and pyasn1's BER.

Not sockets, not retries. Invariant: the only PDUs that can be built here are GET, GETNEXT and GETBULK (law 8), and
whatever arrives gives a Response or `UndecodableError`, nothing else. pysnmp is imported with the first request.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from tocsin_agent.snmp.values import Missing, Oid, Value

DATAGRAM_BYTES_MAX = 65_535
VARBINDS_MAX = 4096  # in one response; a valid one of 64 KiB holds fewer


class Request(Enum):
    GET = "get"
    NEXT = "next"
    BULK = "bulk"


class Version(Enum):
    V1 = 0
    V2C = 1


class UndecodableError(ValueError):
    """Not an SNMP response for us; the text says why."""


@dataclass(frozen=True, slots=True)
class Response:
    request_id: int
    error_status: int
    error_index: int
    varbinds: tuple[tuple[Oid, Value], ...]


@dataclass(frozen=True, slots=True)
class _Library:
    v1: Any
    v2c: Any
    encode: Any
    decode: Any
    error: type[Exception]
    values: dict[Any, Any]  # tag set -> reader


def encode_request(
    version: Version, community: bytes, kind: Request, request_id: int, oids: Sequence[Oid], repetitions: int = 0
) -> bytes:
    """`repetitions` is max-repetitions of a GETBULK. v1 has no GETBULK: asking for it is our own mistake."""
    assert kind is not Request.BULK or version is Version.V2C, "GETBULK needs v2c"
    library = _library()
    api = library.v1 if version is Version.V1 else library.v2c
    match kind:
        case Request.GET:
            pdu = api.GetRequestPDU()
        case Request.NEXT:
            pdu = api.GetNextRequestPDU()
        case Request.BULK:
            pdu = api.GetBulkRequestPDU()
    if kind is Request.BULK:
        api.apiBulkPDU.set_defaults(pdu)
        api.apiBulkPDU.set_non_repeaters(pdu, 0)
        api.apiBulkPDU.set_max_repetitions(pdu, repetitions)
        api.apiBulkPDU.set_varbinds(pdu, [(name, api.null) for name in oids])
    else:
        api.apiPDU.set_defaults(pdu)
        api.apiPDU.set_varbinds(pdu, [(name, api.null) for name in oids])
    api.apiPDU.set_request_id(pdu, request_id)
    message = api.Message()
    api.apiMessage.set_defaults(message)
    api.apiMessage.set_community(message, community)
    api.apiMessage.set_pdu(message, pdu)
    encoded: bytes = library.encode(message)
    return encoded


def decode_response(version: Version, community: bytes, datagram: bytes) -> Response:
    library = _library()
    api = library.v1 if version is Version.V1 else library.v2c
    try:
        message, _ = library.decode(datagram, asn1Spec=_spec(version))
        if int(api.apiMessage.get_version(message)) != version.value:
            raise UndecodableError("answer in another SNMP version")
        if bytes(api.apiMessage.get_community(message)) != community:
            raise UndecodableError("answer with another community")
        pdu = api.apiMessage.get_pdu(message)
        if pdu.tagSet != api.GetResponsePDU.tagSet:
            raise UndecodableError("not a response PDU")
        names = api.apiPDU.get_varbinds(pdu)
        if len(names) > VARBINDS_MAX:
            raise UndecodableError(f"more than {VARBINDS_MAX} varbinds")
        return Response(
            request_id=int(api.apiPDU.get_request_id(pdu)),
            error_status=int(api.apiPDU.get_error_status(pdu)),
            error_index=int(pdu[2]),  # as sent: agents name an index and leave the varbinds out
            varbinds=tuple((tuple(name), _value(library, value)) for name, value in names),
        )
    except UndecodableError:
        raise
    except library.error as error:
        raise UndecodableError(f"not BER of an SNMP message: {_first_line(error)}") from error
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        # The BER library meets hostile input with these as well; a device must not be able to stop the agent.
        raise UndecodableError(f"not an SNMP message: {type(error).__name__}: {_first_line(error)}") from error


def opaque(data: bytes) -> Value:
    """Net-SNMP's numbers inside Opaque (tags 9f78 float, 9f79 double, 9f7a int64, 9f76 counter64), else the bytes."""
    if len(data) >= 3 and data[0] == 0x9F and data[2] == len(data) - 3:
        body = data[3:]
        if data[1] == 0x78 and len(body) == 4:
            return float(struct.unpack(">f", body)[0])
        if data[1] == 0x79 and len(body) == 8:
            return float(struct.unpack(">d", body)[0])
        if data[1] in (0x76, 0x7B) and 1 <= len(body) <= 9:
            return int.from_bytes(body, "big")
        if data[1] == 0x7A and 1 <= len(body) <= 8:
            return int.from_bytes(body, "big", signed=True)
    return data


def _value(library: _Library, value: Any) -> Value:
    reader = library.values.get(value.tagSet)
    if reader is None:
        raise UndecodableError(f"unknown value type {type(value).__name__}")
    read: Value = reader(value)
    return read


def _first_line(error: Exception) -> str:
    # pyasn1 puts whole substrates into its messages: the log wants the sentence only.
    return (str(error).splitlines() or [""])[0][:80] or type(error).__name__


@cache
def _library() -> _Library:
    from pyasn1.codec.ber import decoder, encoder
    from pyasn1.error import PyAsn1Error
    from pysnmp.proto.api import v1, v2c

    numbers = (v2c.Integer32, v2c.Counter32, v2c.Gauge32, v2c.TimeTicks, v2c.Counter64)
    values: dict[Any, Any] = {kind.tagSet: int for kind in numbers}
    values[v2c.OctetString.tagSet] = bytes
    values[v2c.IpAddress.tagSet] = bytes
    values[v2c.Opaque.tagSet] = lambda value: opaque(bytes(value))
    values[v2c.ObjectIdentifier.tagSet] = tuple
    values[v2c.NoSuchObject.tagSet] = lambda _: Missing.OBJECT
    values[v2c.NoSuchInstance.tagSet] = lambda _: Missing.INSTANCE
    values[v2c.EndOfMibView.tagSet] = lambda _: Missing.END
    values[v2c.Null.tagSet] = lambda _: Missing.NULL
    return _Library(v1, v2c, encoder.encode, decoder.decode, PyAsn1Error, values)


@cache
def _spec(version: Version) -> Any:
    library = _library()
    return (library.v1 if version is Version.V1 else library.v2c).Message()
