"""Enrolment tokens as operations on a real database, and the settling of names as a table."""

from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.ingest_rig import csr_of, new_key

from tocsin_agent.identity import parse_token
from tocsin_collector.core.model import Device, SnmpAccess
from tocsin_collector.ingest import roster, tokens
from tocsin_collector.ingest.authority import Authority
from tocsin_collector.ingest.enrolment import Application, Declined, Enrolled, admit, name_of, settle
from tocsin_collector.ingest.roster import Agent
from tocsin_collector.ingest.tokens import TokenError
from tocsin_collector.store.inline import connect, run_inline
from tocsin_collector.store.sqlite import SqliteStore

T = TypeVar("T")
NOW = 1_790_000_000_000
SECRET = b"k" * 32


class Database:
    """The schema on disk, each operation one call."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tocsin.db"
        run_inline(run_inline(SqliteStore.open(path, connect=connect)).close())
        self.connection = run_inline(connect(path))
        self.authority = Authority.create(folder / "ca", ["localhost"], NOW)
        self.applications = 0

    def close(self) -> None:
        run_inline(self.connection.close())

    def do(self, operation: Callable[..., Awaitable[T]], *arguments: Any, **named: Any) -> T:
        return run_inline(operation(self.connection, *arguments, **named))

    def rows(self, sql: str) -> list[Any]:
        return self.do(lambda connection: connection.execute_fetchall(sql))

    def token(self, secret: bytes = SECRET, **choices: Any) -> tokens.Token:
        return self.do(tokens.create, **({"secret": secret, "actor": "zm", "now_ms": NOW} | choices))

    def apply(
        self, secret: bytes = SECRET, *, now_ms: int = NOW, hostname: str = "edge-1", machine: str = "m1", **more: Any
    ) -> Enrolled | Declined:
        self.applications += 1
        uuid = f"uuid-{self.applications}"
        application = Application(secret, csr_of(new_key()), hostname, machine, "192.0.2.1", uuid, now_ms)
        return self.do(
            partial(
                admit,
                application=application,
                authority=self.authority,
                connected=more.get("connected", ()),
                held=more.get("held", {}).get,
            )
        )


@pytest.fixture
def database(tmp_path: Path) -> Any:
    with closing(Database(tmp_path)) as one:
        yield one


def test_a_token_lets_one_machine_in_and_leaves_no_secret_behind(database: Database) -> None:
    token = database.token(site="shanghai")
    outcome = database.apply()
    assert isinstance(outcome, Enrolled)
    assert (outcome.agent.name, outcome.agent.site, outcome.agent.uuid) == ("edge-1", "shanghai", "uuid-1")
    assert database.do(roster.load) == [outcome.agent]
    second = database.apply(hostname="edge-2", machine="m2")
    assert isinstance(second, Declined)
    assert len(database.do(roster.load)) == 1
    everything = repr([database.rows(f"SELECT * FROM {table}") for table in ("enrolment_token", "agent", "audit")])
    assert repr(SECRET)[2:-1] not in everything
    audit = [action for (action,) in database.rows("SELECT action FROM audit ORDER BY id")]
    assert audit == ["token created", "enrolled", "enrolment refused"]
    assert database.do(tokens.listed)[0].uses_left == 0
    assert token.id in everything


def test_every_kind_of_useless_token_gets_the_same_answer(database: Database) -> None:
    database.token(b"a" * 32, ttl_ms=1000)
    revoked = database.token(b"b" * 32)
    database.do(tokens.revoke, revoked.id, actor="zm", now_ms=NOW)
    database.token(b"c" * 32)
    assert isinstance(database.apply(b"c" * 32), Enrolled)
    answers = [
        database.apply(secret, now_ms=NOW + 1000) for secret in (b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32, b"")
    ]
    assert len({(type(answer), answer.code, answer.reason, answer.counts) for answer in answers}) == 1
    why = database.rows("SELECT detail FROM audit WHERE action = 'enrolment refused'")
    assert ["unknown token" in detail for (detail,) in why] == [False, False, False, True, True]


def test_a_token_ends_to_the_millisecond(database: Database) -> None:
    database.token(ttl_ms=1000)
    assert isinstance(database.apply(now_ms=NOW + 1000), Declined)
    assert isinstance(database.apply(now_ms=NOW + 999), Enrolled)


def test_a_token_for_many_is_used_up_after_as_many(database: Database) -> None:
    database.token(uses=3)
    outcomes = [database.apply(hostname=f"edge-{n}", machine=f"m{n}") for n in range(5)]
    assert [isinstance(outcome, Enrolled) for outcome in outcomes] == [True] * 3 + [False] * 2


def test_a_refused_name_leaves_the_token_usable(database: Database) -> None:
    database.token()
    assert isinstance(database.apply(), Enrolled)
    database.token(b"n" * 32)
    taken = database.apply(b"n" * 32, machine="another machine")
    assert isinstance(taken, Declined)
    assert (taken.code, taken.counts, "revoke that agent first" in taken.reason) == ("ALREADY_EXISTS", False, True)
    assert isinstance(database.apply(b"n" * 32, hostname="edge-2", machine="another machine"), Enrolled)


def test_a_machine_that_enrols_again_keeps_its_name_and_its_old_certificate_dies(database: Database) -> None:
    database.token(site="shanghai")
    database.apply()
    database.token(b"2" * 32)
    outcome = database.apply(b"2" * 32, hostname="renamed", now_ms=NOW + 5)
    assert isinstance(outcome, Enrolled)
    assert (outcome.agent.name, outcome.agent.hostname, outcome.agent.site) == ("edge-1", "renamed", "shanghai")
    assert [(agent.name, agent.uuid) for agent in database.do(roster.load)] == [("edge-1", "uuid-2")]


def test_a_token_that_was_made_badly_is_refused_with_what_would_be_right(database: Database) -> None:
    for choices, problem in (
        ({"ttl_ms": 0}, "between 1 s and 30 days"),
        ({"ttl_ms": 40 * 86_400_000}, "between 1 s and 30 days"),
        ({"uses": 0}, "between 1 and 1000"),
        ({"uses": 2, "device": "edge-1"}, "allow one use"),
        ({"device": "no spaces please"}, "is no id"),
    ):
        with pytest.raises(TokenError, match=problem):
            database.token(**choices)
    with pytest.raises(TokenError, match="no token 'T-none'"):
        database.do(tokens.revoke, "T-none", actor="zm", now_ms=NOW)
    assert database.do(tokens.listed) == []


def test_the_tokens_that_can_be_used_are_bounded_and_dead_ones_are_forgotten(database: Database) -> None:
    database.rows("BEGIN")
    for n in range(tokens.LIVE_MAX):
        database.token(n.to_bytes(32, "big"))
    database.rows("COMMIT")
    with pytest.raises(TokenError, match="revoke some"):
        database.token()
    database.token(now_ms=NOW + tokens.TTL_MS + tokens.KEPT_MS + 1)
    assert len(database.do(tokens.listed)) == 1


def test_revoking_twice_is_recorded_once(database: Database) -> None:
    token = database.token()
    first = database.do(tokens.revoke, token.id, actor="zm", now_ms=NOW + 1)
    assert database.do(tokens.revoke, token.id, actor="zm", now_ms=NOW + 2) == first
    assert first.revoked_ms == NOW + 1
    assert database.rows("SELECT count(*) FROM audit WHERE action = 'token revoked'") == [(1,)]


# -------------------------------------------------------------------------------------------------------------- text


def test_the_agent_reads_the_text_that_the_collector_writes(database: Database) -> None:
    written = tokens.text("collector.example:7444", database.authority.pin, database.authority.ca_pem, SECRET)
    read = parse_token(written)
    assert (read.address, read.pin) == ("collector.example:7444", database.authority.pin)
    assert read.ca_pem.encode() == database.authority.ca_pem
    assert tokens.secret_of(read.secret) == tokens.secret_of(written) == SECRET


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=100), st.text(max_size=100).map(lambda text: tokens.PREFIX + text)))
def test_no_text_breaks_the_reading_of_a_token(text: str) -> None:
    secret = tokens.secret_of(text)
    assert secret is None or len(secret) == 32


@given(st.binary(min_size=32, max_size=32))
def test_every_secret_survives_its_text(secret: bytes) -> None:
    assert tokens.secret_of(tokens.text("h:1", "p", b"c", secret)) == secret


# ------------------------------------------------------------------------------------------------------------- names


def agent(name: str, machine: str, enrolled_ms: int = 0, revoked_ms: int = 0) -> Agent:
    return Agent(name, f"u-{name}", name, "", machine, "", 0, enrolled_ms, revoked_ms)


# (device in the token, host name, machine, agents known, agents connected) -> name, or the code of the refusal
NAMES: dict[str, tuple[str, str, str, list[Agent], set[str], str]] = {
    "a new host is named after itself": ("", "Edge-1", "m1", [], set(), "edge-1"),
    "the token's name wins": ("press-7", "edge-1", "m1", [], set(), "press-7"),
    "a host comes again": ("", "edge-1", "m1", [agent("edge-1", "m1")], set(), "edge-1"),
    "a host comes again while its old agent runs": ("", "edge-1", "m1", [agent("edge-1", "m1")], {"edge-1"}, "edge-1"),
    "a renamed host keeps its name": ("", "new", "m1", [agent("old", "m1")], set(), "old"),
    "the newest of several names is kept": ("", "x", "m1", [agent("b", "m1", 2), agent("a", "m1", 1)], set(), "b"),
    "a clone is told so": ("", "new", "m1", [agent("old", "m1")], {"old"}, "ALREADY_EXISTS"),
    "a clone with a token of its own is let in": ("clone", "new", "m1", [agent("old", "m1")], {"old"}, "clone"),
    "another machine's name is refused": ("", "edge-1", "m2", [agent("edge-1", "m1")], set(), "ALREADY_EXISTS"),
    "also to a token that says it": ("edge-1", "h", "m2", [agent("edge-1", "m1")], set(), "ALREADY_EXISTS"),
    "a revoked name is free": ("", "edge-1", "m2", [agent("edge-1", "m1", 0, 9)], set(), "edge-1"),
    "no machine id is nobody's": ("", "edge-1", "", [agent("edge-1", "")], set(), "ALREADY_EXISTS"),
    "a host name without letters": ("", "...", "m1", [], set(), "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize("what", NAMES)
def test_names_are_settled(what: str) -> None:
    device, hostname, machine, known, connected, expected = NAMES[what]
    try:
        outcome = settle(device, hostname, machine, known, connected, lambda name: None)
    except Declined as declined:
        outcome = declined.code
    assert outcome == expected


OTHER = "PERMISSION_DENIED"
# (what the registry says of the name "edge-1", device in the token, agents known) -> name, or the code of the refusal
HELD: dict[str, tuple[Device, str, list[Agent], str]] = {
    "a token for any host": (Device("edge-1", "s"), "", [], OTHER),
    "a token for any host, from the machine that had the name": (
        Device("edge-1", "s"), "", [agent("edge-1", "m1")], OTHER,
    ),
    "a token for this device": (Device("edge-1", "s"), "edge-1", [], "edge-1"),
    "a token for this device, which another agent watches": (
        Device("edge-1", "s", watched_by="probe-1"), "edge-1", [], OTHER,
    ),
    "a token for this device, which is polled": (
        Device("edge-1", "s", watched_by="edge-1", snmp=SnmpAccess()), "edge-1", [], OTHER,
    ),
    "a token for this device, which it watches itself": (
        Device("edge-1", "s", watched_by="edge-1"), "edge-1", [], "edge-1",
    ),
    "a host by another name, whose machine had this one": (Device("edge-1", "s"), "", [agent("edge-1", "m1")], OTHER),
}  # fmt: skip


@pytest.mark.parametrize("what", HELD)
def test_a_name_of_the_registry_is_given_only_to_a_token_made_for_it(what: str) -> None:
    stanza, device, known, expected = HELD[what]
    hostname = "x" if "another name" in what else "edge-1"
    try:
        outcome = settle(device, hostname, "m1", known, set(), {"edge-1": stanza}.get)
    except Declined as declined:
        outcome = declined.code
    assert outcome == expected


def test_a_machine_refused_for_a_name_of_the_registry_has_not_used_up_its_token(database: Database) -> None:
    database.token()
    stanza = Device("edge-1", "s", watched_by="probe-1", snmp=SnmpAccess())

    refused = database.apply(held={"edge-1": stanza})

    assert isinstance(refused, Declined)
    assert "probe-1 watches" in refused.reason
    assert not refused.counts
    assert database.rows("SELECT uses_left FROM enrolment_token") == [(1,)]
    assert database.rows("SELECT count(*) FROM agent") == [(0,)]
    assert isinstance(database.apply(hostname="edge-2", held={"edge-1": stanza}), Enrolled)


@given(st.text(max_size=300))
def test_every_host_name_becomes_an_id_of_the_registry_or_none(hostname: str) -> None:
    from tocsin_collector.registry_file import ID

    name = name_of(hostname)
    assert name == "" or ID.fullmatch(name)
