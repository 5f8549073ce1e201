"""Who may speak: the enrolled agents in memory, and the one judgement of a peer's certificate.

The table `agent` is the truth; this is a copy that is read again after every change. Not the authority, which only signs.

Invariant: an identity comes from a certificate of our own CA with exactly one URI of ours in it, for an agent that is
enrolled, not revoked, and has shown no newer certificate (law 9).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tocsin_collector.ingest.authority import spki
from tocsin_collector.ingest.tokens import audit
from tocsin_collector.store.base import Statements

AGENTS_MAX = 20_000


class Agent(msgspec.Struct, frozen=True):
    """One row of `agent`. `serial` and `expires_ms` are those of the newest certificate that it has shown."""

    name: str
    uuid: str
    hostname: str
    site: str
    machine: str
    serial: str
    expires_ms: int
    enrolled_ms: int
    revoked_ms: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer whose certificate was accepted."""

    name: str
    uuid: str
    serial: str
    expires_ms: int
    public_key: bytes  # SubjectPublicKeyInfo, DER


class Refused(Exception):
    """A peer whose certificate was not accepted. `code` is the name of a gRPC status, `who` what is known of the peer."""

    def __init__(self, code: str, reason: str, who: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.who = who


class Roster:
    def __init__(self, trust_domain: str) -> None:
        self._prefix = f"spiffe://{trust_domain}/agent/"
        self._by_uuid: dict[str, Agent] = {}

    def replace(self, agents: Iterable[Agent]) -> None:
        """Take the table as it is now."""
        self._by_uuid = {agent.uuid: agent for agent in agents}

    def shown(self, peer: Peer, version: str) -> bool:
        """Note what the agent has shown; True when the table (`seen`) does not say so yet."""
        agent = self._by_uuid.get(peer.uuid)
        if agent is None or (agent.serial, agent.version) == (peer.serial, version):
            return False
        self._by_uuid[peer.uuid] = msgspec.structs.replace(
            agent, serial=peer.serial, expires_ms=peer.expires_ms, version=version
        )
        return True

    def agents(self) -> tuple[Agent, ...]:
        return tuple(sorted(self._by_uuid.values(), key=lambda agent: agent.name))

    def by_uuid(self, uuid: str) -> Agent | None:
        return self._by_uuid.get(uuid)

    def identify(self, auth: Mapping[str, Iterable[bytes]], now_ms: int) -> Peer:
        """The agent behind gRPC's `auth_context`. Raises Refused.

        TLS has verified chain, time and purpose already; what can be judged here is judged again, so that a listener
        that was set up wrongly lets nobody in.
        """
        names = [name.decode("utf-8", "replace") for name in auth.get("x509_subject_alternative_name", ())]
        chain = b"".join(auth.get("x509_pem_cert", ()))
        if not chain:
            raise Refused("UNAUTHENTICATED", "no client certificate; enrol this agent first")
        if len(names) != 1 or not names[0].startswith(self._prefix):
            raise Refused("UNAUTHENTICATED", "the certificate names no agent of this collector", ", ".join(names))
        uuid = names[0].removeprefix(self._prefix)
        certificate = _leaf(chain, uuid)
        expires_ms = int(certificate.not_valid_after_utc.timestamp()) * 1000
        if expires_ms <= now_ms:
            raise Refused("UNAUTHENTICATED", "the certificate has expired; enrol again with a new token", uuid)
        agent = self._by_uuid.get(uuid)
        if agent is None:
            raise Refused("UNAUTHENTICATED", "not enrolled here, or enrolled again since; enrol with a new token", uuid)
        if agent.revoked_ms:
            raise Refused("PERMISSION_DENIED", "revoked; enrol with a new token", agent.name)
        if expires_ms < agent.expires_ms:
            raise Refused("PERMISSION_DENIED", "the certificate was replaced by a newer one that is in use", agent.name)
        serial = f"{certificate.serial_number:x}"
        return Peer(agent.name, uuid, serial, expires_ms, spki(certificate.public_key()))


def _leaf(chain: bytes, uuid: str) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound) as exc:
        raise Refused("UNAUTHENTICATED", "not a certificate as this collector issues them", uuid) from exc
    if is_ca or list(usage) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        raise Refused("UNAUTHENTICATED", "the certificate is not one for an agent", uuid)
    return certificate


# ------------------------------------------------------------------------------------------------------- operations


async def load(connection: Statements) -> list[Agent]:
    return await select(connection, "ORDER BY name")


async def select(connection: Statements, where: str, *parameters: str) -> list[Agent]:
    columns = ", ".join(Agent.__struct_fields__)
    rows = await connection.execute_fetchall(f"SELECT {columns} FROM agent {where}", parameters)  # noqa: S608
    return [Agent(*row) for row in rows]


async def count(connection: Statements) -> int:
    rows = await connection.execute_fetchall("SELECT count(*) FROM agent")
    return sum(int(number) for (number,) in rows)


async def write(connection: Statements, agent: Agent) -> None:
    """The agent as it is from now on, under its name: whoever had the name before is gone."""
    columns = Agent.__struct_fields__
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
    await connection.execute(
        f"INSERT INTO agent ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
        f" ON CONFLICT (name) DO UPDATE SET {changes}",
        msgspec.structs.astuple(agent),
    )


async def seen(connection: Statements, peer: Peer, version: str) -> None:
    """The agent has shown this certificate: older ones are not accepted any more."""
    await connection.execute(
        "UPDATE agent SET serial = ?, expires_ms = ?, version = ? WHERE uuid = ? AND expires_ms <= ?",
        (peer.serial, peer.expires_ms, version, peer.uuid, peer.expires_ms),
    )


async def revoke(connection: Statements, name: str, *, actor: str, now_ms: int) -> bool:
    """False when there is no such agent. Doing it again changes nothing."""
    found = await select(connection, "WHERE name = ?", name)
    if not found:
        return False
    if not found[0].revoked_ms:
        await connection.execute("UPDATE agent SET revoked_ms = ? WHERE name = ?", (now_ms, name))
        await audit(connection, now_ms, actor, "agent revoked", {"agent": name, "uuid": found[0].uuid})
    return True
