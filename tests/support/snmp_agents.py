"""Answers of SNMP agents, good and hostile, built by hand: what real devices and attackers send."""

from collections.abc import Callable, Sequence
from typing import Any

from pyasn1.codec.ber import decoder, encoder
from pysnmp.proto.api import v1, v2c

Oid = tuple[int, ...]
GET, NEXT, RESPONSE, SET, BULK = 0xA0, 0xA1, 0xA2, 0xA3, 0xA5


class Question:
    """A request as the agent sees it."""

    def __init__(self, datagram: bytes) -> None:
        self.api = v1 if datagram[2:5] == b"\x02\x01\x00" else v2c
        self._message, _ = decoder.decode(datagram, asn1Spec=self.api.Message())
        self.pdu = self.api.apiMessage.get_pdu(self._message)
        self.community = bytes(self.api.apiMessage.get_community(self._message))
        self.request_id = int(self.api.apiPDU.get_request_id(self.pdu))
        self.names: list[Oid] = [tuple(name) for name, _ in self.api.apiPDU.get_varbinds(self.pdu)]
        self.kind = {
            self.api.GetRequestPDU.tagSet: GET,
            self.api.GetNextRequestPDU.tagSet: NEXT,
            v2c.GetBulkRequestPDU.tagSet: BULK,
        }[self.pdu.tagSet]
        self.repetitions = int(v2c.apiBulkPDU.get_max_repetitions(self.pdu)) if self.kind == BULK else 0

    def answer(
        self,
        varbinds: Sequence[tuple[Oid, Any]],
        *,
        status: int = 0,
        index: int = 0,
        request_id: int | None = None,
        community: bytes | None = None,
    ) -> bytes:
        pdu = self.api.GetResponsePDU()
        self.api.apiPDU.set_defaults(pdu)
        self.api.apiPDU.set_request_id(pdu, self.request_id if request_id is None else request_id)
        self.api.apiPDU.set_error_status(pdu, status)
        self.api.apiPDU.set_error_index(pdu, index)
        self.api.apiPDU.set_varbinds(pdu, list(varbinds))
        message = self.api.Message()
        self.api.apiMessage.set_defaults(message)
        self.api.apiMessage.set_community(message, self.community if community is None else community)
        self.api.apiMessage.set_pdu(message, pdu)
        encoded: bytes = encoder.encode(message)
        return encoded


def number(value: int) -> Any:
    return v2c.Integer32(value)


def octets(value: bytes) -> Any:
    return v2c.OctetString(value)


def counter64(value: int) -> Any:
    return v2c.Counter64(value)


def opaque(value: bytes) -> Any:
    return v2c.Opaque(value)


def object_id(value: Oid) -> Any:
    return v2c.ObjectIdentifier(value)


def pdu_type(datagram: bytes) -> int:
    """The tag of the PDU in an SNMP v1/v2c message, by hand: version, community, PDU."""
    at = 2 if datagram[1] < 0x80 else 2 + (datagram[1] & 0x7F)
    for _ in range(2):
        at += 2 + datagram[at + 1]
    return datagram[at]


def repeating(next_of: Callable[[Oid, int], Oid]) -> Callable[[bytes], list[bytes]]:
    """An agent that answers GETNEXT and GETBULK with `next_of(asked OID, how many were sent so far)`."""
    sent = 0

    def answer(datagram: bytes) -> list[bytes]:
        nonlocal sent
        question = Question(datagram)
        names = list(question.names)
        varbinds = []
        for _ in range(question.repetitions or 1):
            for column, name in enumerate(names):
                names[column] = next_of(name, sent)
                varbinds.append((names[column], number(sent % 100)))
                sent += 1
        return [question.answer(varbinds)]

    return answer
