"""The wire between agents and collector: connections that delay, break, hang, and, when they are wild, lose and shuffle.

Bytes only; what they mean is for the ends. A tame connection is what TLS over TCP gives: ordered and whole until it breaks. A
wild one also loses, repeats and reorders messages within itself: the protocol must survive that too. Each end learns of the
connection's end by itself and at its own time, so that an old connection's messages may arrive behind a new one's.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.sim.agenda import Agenda

AGENT, COLLECTOR = 0, 1
LATENCY_MS = (1, 60)
SLOW_MS = (60, 800)
KEEPALIVE_MS = (8_000, 40_000)  # how long an end may take to notice that the other is cut off


@dataclass
class End:
    received: Callable[[bytes], None]
    closed: Callable[[str], None]
    is_open: bool = True
    due_ms: int = 0  # of the newest message on its way to this end


@dataclass
class Connection:
    agent: str
    is_wild: bool
    ends: list[End] = field(default_factory=list)
    held: list[tuple[int, bytes]] = field(default_factory=list)  # (to, message), waiting for a partition to end

    @property
    def is_alive(self) -> bool:
        return any(end.is_open for end in self.ends)


class Network:
    """accept(agent, connection): the collector's door; gives its End, or None when nobody listens."""

    def __init__(self, agenda: Agenda, rng: random.Random, *, wild: float, slow: float) -> None:
        self.accept: Callable[[str, Connection], End | None] = lambda agent, connection: None
        self.sent = self.lost = self.repeated = 0
        self._agenda = agenda
        self._rng = rng
        self._wild = wild
        self._slow = slow
        self._cut_off: set[str] = set()
        self._connections: dict[str, list[Connection]] = {}

    # ----------------------------------------------------------------------------------------------------- the ends

    def connect(self, agent: str, end: End, connected: Callable[[Connection], None]) -> None:
        """`connected` follows, or the end's `closed`."""
        self._agenda.after(self._latency(), self._establish, agent, end, connected)

    def _establish(self, agent: str, end: End, connected: Callable[[Connection], None]) -> None:
        connection = Connection(agent, self._rng.random() < self._wild)
        other = None if agent in self._cut_off else self.accept(agent, connection)
        if other is None:
            self._agenda.after(self._latency(), end.closed, "UNAVAILABLE")
            return
        connection.ends = [end, other]
        known = [one for one in self._connections.get(agent, ()) if one.is_alive]
        self._connections[agent] = [*known, connection]
        connected(connection)

    def send(self, connection: Connection, to: int, message: bytes) -> None:
        if not connection.ends[1 - to].is_open:
            return
        self.sent += 1
        if connection.agent in self._cut_off:
            connection.held.append((to, message))
        else:
            self._carry(connection, to, message)

    def close(self, connection: Connection, by: int, code: str) -> None:
        """One end is done; the other hears of it, behind what was sent before."""
        connection.ends[by].is_open = False
        other = connection.ends[1 - by]
        if connection.agent not in self._cut_off:
            self._agenda.after(max(other.due_ms - self._agenda.now_ms, 0) + self._latency(), self._end, other, code)

    def vanish(self, connection: Connection) -> None:
        """The collector's process is gone: its kernel says so to the other end, unless nothing gets through."""
        self.close(connection, COLLECTOR, "UNAVAILABLE")

    # ------------------------------------------------------------------------------------------------------- faults

    def cut(self, agent: str) -> None:
        """Break the agent's connections; each end notices in its own time."""
        for connection in self._connections.get(agent, ()):
            for end in connection.ends:
                self._agenda.after(self._rng.choice((0, 5, 300, 9_000)), self._end, end, "UNAVAILABLE")

    def part(self, agent: str) -> None:
        """Nothing gets through to or from the agent, until `heal`."""
        self._cut_off.add(agent)
        for connection in self._connections.get(agent, ()):
            for end in connection.ends:
                self._agenda.after(self._rng.randint(*KEEPALIVE_MS), self._give_up, agent, end)

    def heal(self, agent: str) -> None:
        self._cut_off.discard(agent)
        for connection in self._connections.get(agent, ()):
            held, connection.held = connection.held, []
            for to, message in held:
                self._carry(connection, to, message)
            for by, end in enumerate(connection.ends):
                if not end.is_open and connection.ends[1 - by].is_open:  # the other side is told at last
                    self._agenda.after(self._latency(), self._end, connection.ends[1 - by], "UNAVAILABLE")

    def tame(self) -> None:
        """From here on the network is a good one; what is on its way stays as it is."""
        self._wild = self._slow = 0.0
        for connections in self._connections.values():
            for connection in connections:
                connection.is_wild = False

    def _give_up(self, agent: str, end: End) -> None:
        if agent in self._cut_off:
            self._end(end, "UNAVAILABLE")

    # ------------------------------------------------------------------------------------------------------- leaves

    def _carry(self, connection: Connection, to: int, message: bytes) -> None:
        end, rng, now_ms = connection.ends[to], self._rng, self._agenda.now_ms
        if not connection.is_wild:
            end.due_ms = max(end.due_ms, now_ms + self._latency())
            self._agenda.after(end.due_ms - now_ms, self._arrive, end, message)
            return
        luck = rng.random()
        if luck < 0.04:
            self.lost += 1
            return
        if luck < 0.10:
            self.repeated += 1
            self._agenda.after(rng.randint(0, 900), self._arrive, end, message)
        self._agenda.after(self._latency() if rng.random() < 0.8 else rng.randint(0, 900), self._arrive, end, message)

    @staticmethod
    def _arrive(end: End, message: bytes) -> None:
        if end.is_open:
            end.received(message)

    @staticmethod
    def _end(end: End, code: str) -> None:
        if end.is_open:
            end.is_open = False
            end.closed(code)

    def _latency(self) -> int:
        return self._rng.randint(*(SLOW_MS if self._rng.random() < self._slow else LATENCY_MS))
