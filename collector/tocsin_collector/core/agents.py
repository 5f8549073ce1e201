"""What the engine knows of each agent: its clocks, how far its frames have come, where its samples go.

The agent's event time is put right here: a frame carries both clocks of the moment it was made; Hello and Pulse, never
spooled, say where those clocks stand now. So a stamp is right even when the wall clock has jumped in between. The invariant:
the correction only moves when it is off by more than SHIFT_STEP_MS, so that network delay never moves event time. What is
later than expected was held up on the way, unless it stays later by as much.
"""

from tocsin_collector.core.ledger import Tracker
from tocsin_collector.core.model import Record
from tocsin_collector.core.series import LayoutMap
from tocsin_proto.records import Clock

SHIFT_STEP_MS = 1000
LATE_ANCHORS_MIN = 3  # later by as much, so often in a row: a clock was set, it is not the way that is slow
LAYOUTS_MAX = 4096  # per agent; the one unused for longest leaves


class AgentView(Record, frozen=True):
    """For status pages and metrics."""

    name: str
    last_received_ms: int
    is_silent: bool
    catching_up: bool
    shift_ms: int
    watermark_ms: int


class AgentState(Record, frozen=True):
    """An Agent as a snapshot holds it; layouts travel apart."""

    name: str
    boot: int
    mono_offset_ms: int
    wall_offset_ms: int
    is_anchored: bool
    shift_ms: int
    watermark_ms: int
    swept_ms: int
    last_received_ms: int
    last_frame_ms: int
    is_silent: bool
    catching_up: bool
    deferred: tuple[str, ...]
    late_offset_ms: int
    late_anchors: int


class Agent:
    """watermark_ms: event time up to which all it has to say has arrived. deferred: incidents not told yet."""

    __slots__ = (
        "allowed", "boot", "catching_up", "deferred", "is_anchored", "is_silent", "last_frame_ms", "last_received_ms",
        "late_anchors", "late_offset_ms", "layouts", "mono_offset_ms", "name", "shift_ms", "swept_ms", "tracker",
        "wall_offset_ms", "watermark_ms",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.allowed: frozenset[str] = frozenset((name,))
        self.tracker: Tracker | None = None
        self.layouts: dict[int, LayoutMap] = {}
        self.boot = 0
        self.mono_offset_ms = 0
        self.wall_offset_ms = 0
        self.is_anchored = False
        self.late_offset_ms = 0  # what the newest messages say that came late
        self.late_anchors = 0
        self.shift_ms = 0
        self.watermark_ms = 0
        self.swept_ms = 0  # event time of the last look for series that are gone
        self.last_received_ms = 0
        self.last_frame_ms = 0  # journal time; a pulse proves that it lives, not that it measures
        self.is_silent = False
        self.catching_up = False
        self.deferred: dict[str, None] = {}

    def anchor(self, clock: Clock, received_ms: int) -> None:
        """A message that was sent just now says what the agent's clocks show."""
        mono = received_ms - clock.mono_ms
        if self.is_anchored and clock.boot == self.boot and mono >= self.mono_offset_ms:
            mono = self._settled(mono)
        else:
            self.late_anchors = 0
        self.boot, self.mono_offset_ms, self.is_anchored = clock.boot, mono, True
        self.wall_offset_ms = mono + clock.mono_ms - clock.wall_ms

    def _settled(self, mono: int) -> int:
        """A message can only come late, never early: the earliest estimate is the best one, until others agree on a later."""
        if mono - self.mono_offset_ms <= SHIFT_STEP_MS:
            self.late_anchors = 0
            return self.mono_offset_ms
        agrees = self.late_anchors and abs(mono - self.late_offset_ms) <= SHIFT_STEP_MS
        self.late_anchors = self.late_anchors + 1 if agrees else 1
        self.late_offset_ms = min(mono, self.late_offset_ms) if agrees else mono
        if self.late_anchors < LATE_ANCHORS_MIN:
            return self.mono_offset_ms
        self.late_anchors = 0
        return self.late_offset_ms

    def correct(self, clock: Clock) -> int:
        """Milliseconds to add to stamps of a frame that was made at `clock`."""
        if self.is_anchored:
            exact = self.wall_offset_ms
            if clock.boot == self.boot:
                exact = self.mono_offset_ms + clock.mono_ms - clock.wall_ms
            if abs(exact - self.shift_ms) > SHIFT_STEP_MS:
                self.shift_ms = exact if abs(exact) > SHIFT_STEP_MS else 0
        return self.shift_ms

    def step_back(self, now_ms: int) -> None:
        """The collector's clock was set back: nothing known of this agent lies in the future, and its clocks are asked anew."""
        self.watermark_ms, self.swept_ms = min(self.watermark_ms, now_ms), min(self.swept_ms, now_ms)
        self.last_received_ms = min(self.last_received_ms, now_ms)
        self.last_frame_ms = min(self.last_frame_ms, now_ms)
        self.is_anchored, self.shift_ms = False, 0

    def keep(self, layout: int, where: LayoutMap) -> None:
        if len(self.layouts) >= LAYOUTS_MAX:
            del self.layouts[min(self.layouts, key=lambda key: self.layouts[key].last_used)]
        self.layouts[layout] = where

    def view(self) -> AgentView:
        return AgentView(
            self.name, self.last_received_ms, self.is_silent, self.catching_up, self.shift_ms, self.watermark_ms
        )

    def freeze(self) -> AgentState:
        return AgentState(
            self.name, self.boot, self.mono_offset_ms, self.wall_offset_ms, self.is_anchored, self.shift_ms,
            self.watermark_ms, self.swept_ms, self.last_received_ms, self.last_frame_ms, self.is_silent, self.catching_up,
            tuple(self.deferred),
            self.late_offset_ms, self.late_anchors,
        )  # fmt: skip

    @classmethod
    def thaw(cls, state: AgentState) -> "Agent":
        self = cls(state.name)
        for name in AgentState.__struct_fields__:
            setattr(self, name, getattr(state, name))
        self.deferred = dict.fromkeys(state.deferred)
        return self
