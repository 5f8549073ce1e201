"""A switch that comes back before what stands behind it: whose fault is it now?"""

from tests.collector.core.plant import START_MS, STEP_MS, config

from tocsin_collector.core.engine import Engine
from tocsin_collector.core.model import Effect, Entry, FrameIn, IncidentChanged, IncidentState, Notice, Tick
from tocsin_proto.codec import layout_id, pack_floats
from tocsin_proto.records import Clock, Frame, Layout, Section, Series, SeriesKind

SWITCH, CHILD = "switch-0", "device-0-0"


class Plant:
    """One agent that polls each device when the test says so."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.now_ms = START_MS
        self.effects: list[Effect] = []
        self._offset = 0
        self._seq = 0
        self._step(config(1, 1))

    def polls(self, **reachable: float) -> None:
        """The agent's next frame: device -> 1 or 0, with _ for -."""
        names = [name.replace("_", "-") for name in reachable]
        series = tuple(Series(name, "device.reachable", "1", SeriesKind.STATE) for name in names)
        layout = Layout(layout_id(series), series)
        section = Section(layout.id, self.now_ms, pack_floats(list(reachable.values())))
        clock = Clock(self.now_ms, self.now_ms - START_MS, 1)
        self._seq += 1
        self._step(FrameIn("agent-0", b"s", Frame(self._seq, self._seq - 1, clock, (layout,), (section,))))

    def passes(self, ms: int) -> None:
        """So much time, with its ticks."""
        for _ in range(ms // 1000):
            self.now_ms += 1000
            self._step(Tick())

    def told(self, device: str) -> list[str]:
        return [one.kind for one in self.effects if isinstance(one, Notice) and one.snapshot.device == device]

    def state(self, device: str) -> IncidentState:
        changes = [one.incident for one in self.effects if isinstance(one, IncidentChanged)]
        return next(one.state for one in reversed(changes) if one.device == device)

    def _step(self, what: object) -> None:
        self.effects += self.engine.step(Entry(self._offset, self.now_ms, what))  # type: ignore[arg-type]
        self._offset += 1


def lost() -> Plant:
    """Both were there, then both were gone, and the child is held back."""
    plant = Plant()
    plant.polls(switch_0=1, device_0_0=1)
    plant.passes(STEP_MS)
    plant.polls(switch_0=0, device_0_0=0)
    assert plant.state(CHILD) is IncidentState.SUPPRESSED
    assert plant.told(SWITCH) == ["opened"]
    plant.passes(STEP_MS)
    return plant


def test_a_child_that_is_polled_after_its_parent_has_returned_is_never_told() -> None:
    plant = lost()
    plant.polls(switch_0=1)
    plant.passes(STEP_MS - 1000)
    assert plant.state(CHILD) is IncidentState.HELD
    plant.polls(device_0_0=1)
    plant.passes(60_000)
    assert plant.told(SWITCH) == ["opened", "resolved"]
    assert plant.told(CHILD) == []
    assert plant.state(CHILD) is IncidentState.CLOSED


def test_a_child_that_stays_away_after_its_parent_has_returned_is_told_in_time() -> None:
    plant = lost()
    plant.polls(switch_0=1)
    began_ms = plant.now_ms
    while not plant.told(CHILD) and plant.now_ms - began_ms < 30_000:
        plant.passes(1000)
        plant.polls(switch_0=1, device_0_0=0)
    assert plant.told(CHILD) == ["opened"]
    assert plant.now_ms - began_ms == 15_000, "the hold of 15 s is longer than two polls of 5 s"
