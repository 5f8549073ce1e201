"""Frames of a simulated agent: encoded once by the real codec, then only numbers in them are replaced.

Every frame is byte for byte what `encode_agent` would have made (checked at the start of every stretch): a loader that
shares two cores with the collector must not spend them on encoding. Numbers keep their length: sequence numbers start at
FIRST_SEQ, where a varint has four bytes and keeps them for two hundred million frames.
"""

from array import array
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from tocsin_proto.codec import encode_agent, layout_id
from tocsin_proto.records import Clock, Frame, Layout, Section, Series, SeriesKind

FIRST_SEQ = 1 << 21
MONO_FROM_MS = 1 << 22
PHASES = 40  # different sets of values, one after the other, and then again
FULL, ROOMY = 0.99, 0.5  # of a filesystem: beyond the critical level of the built-in rule, and far below any
UP, DOWN = 1.0, 2.0  # of an interface
FLAP_EVERY, FLAP_FRAMES = 128, 8  # frames: how often the interface that flaps goes down, and for how long
BOOT = 77


def series(count: int) -> tuple[Series, ...]:
    """`count` series as a host has them: filesystems, processors, interfaces with counters and states. Gauges come first."""
    counters, states = count // 5, count // 10
    gauges = count - counters - states
    made = [
        Series("", "disk.used_ratio", "1", SeriesKind.GAUGE, (("mount", f"/data/{n}"),), 10_000)
        for n in range(gauges // 2)
    ]
    made += [
        Series("", "cpu.used_ratio", "1", SeriesKind.GAUGE, (("cpu", str(n)),), 10_000)
        for n in range(gauges - gauges // 2)
    ]
    made += [
        Series(
            "", "if.oper_status", "1", SeriesKind.STATE, (("interface", f"eth{n}"),), 10_000, ((1, "up"), (2, "down"))
        )
        for n in range(states)
    ]
    made += [
        Series(
            "",
            "if.in_errors" if n % 2 else "if.in_bytes",
            "1",
            SeriesKind.COUNTER64,
            (("interface", f"eth{n}"),),
            10_000,
        )
        for n in range(counters)
    ]
    return tuple(made)


@dataclass(frozen=True, slots=True)
class Workload:
    """samples: in a frame. active: share of the samples that are of a series which crosses a level."""

    samples: int
    active: float

    def phases(self) -> list[list[float]]:
        """Values of the gauges and states, for each phase."""
        gauges = self.samples - self.samples // 5 - self.samples // 10
        return [self._phase(phase, gauges) for phase in range(PHASES)]

    def _phase(self, phase: int, gauges: int) -> list[float]:
        values = [0.30 + 0.001 * ((phase * 7 + n * 13) % 100) for n in range(gauges)]
        # A series that crosses its level in one phase takes part in the next one too, on its way back: two active samples.
        for n in range(round(self.active * self.samples * PHASES / 2)):
            turn, which = divmod(n, PHASES // 2)
            if (which * 2) % PHASES == phase:
                values[turn] = FULL
        return values + [UP] * (self.samples // 10)


class Source:
    """Frames of one agent, from FIRST_SEQ on. Event time is the wall clock, and at least a millisecond later each time."""

    def __init__(self, workload: Workload, now_ms: int) -> None:
        self.samples = workload.samples
        self.seq = FIRST_SEQ - 1
        self._origin_ms = now_ms - MONO_FROM_MS
        self._at_ms = now_ms
        self._flaps = workload.active > 0
        the_series = series(workload.samples)
        self._layout = Layout(layout_id(the_series), the_series)
        self._counters = array("Q", [1_000_000] * (workload.samples // 5))
        self._bodies = [array("d", values) for values in workload.phases()]
        self._state = len(self._bodies[0]) - workload.samples // 10  # where the interface that flaps stands
        self._place(self._frame(FIRST_SEQ + 2, now_ms))

    def first(self) -> bytes:
        """The frame that declares the layout."""
        self.seq += 1
        return encode_agent(replace(self._frame(self.seq, self._at_ms), layouts=(self._layout,)))

    def next(self, now_ms: int) -> bytes:
        at_ms = self._at_ms = max(now_ms, self._at_ms + 1)
        seq = self.seq = self.seq + 1
        buffer = self._buffer
        buffer[self._seq_at : self._seq_at + 4] = _varint4(seq)
        buffer[self._follows_at : self._follows_at + 4] = _varint4(seq - 1)
        wall = _varint6(at_ms)
        buffer[self._wall_at : self._wall_at + 6] = wall
        buffer[self._time_at : self._time_at + 6] = wall
        buffer[self._mono_at : self._mono_at + 4] = _varint4(at_ms - self._origin_ms)
        values = self._values(seq)
        buffer[self._values_at : self._values_at + len(values)] = values
        counters = self._counters
        for n in range(0, len(counters), 2):
            counters[n] += 1500
        buffer[self._counters_at : self._counters_at + 8 * len(counters)] = memoryview(counters).cast("B")
        return bytes(buffer)

    def check(self) -> None:
        """The last frame of `next` is what the codec makes of the same record. AssertionError when it is not."""
        assert bytes(self._buffer) == encode_agent(self._frame(self.seq, self._at_ms)), self.seq

    def _values(self, seq: int) -> "memoryview[int]":
        body = self._bodies[seq % PHASES]
        if self._flaps:
            body[self._state] = DOWN if seq % FLAP_EVERY < FLAP_FRAMES else UP
        return memoryview(body).cast("B")

    def _frame(self, seq: int, at_ms: int) -> Frame:
        section = Section(self._layout.id, at_ms, bytes(self._values(seq)), self._counters.tobytes())
        return Frame(seq, seq - 1, Clock(at_ms, at_ms - self._origin_ms, BOOT), (), (section,))

    def _place(self, frame: Frame) -> None:
        """Make the buffer, and find each number in it: where the encoding of a frame differs that differs in it alone."""
        section, clock = frame.sections[0], frame.clock
        encoded = encode_agent(frame)
        self._buffer = bytearray(encoded)

        def at(**change: Any) -> int:
            other = encode_agent(replace(frame, **change))
            assert len(other) == len(encoded)
            return next(n for n, (one, two) in enumerate(zip(encoded, other, strict=True)) if one != two)

        self._seq_at = at(seq=frame.seq + 1)
        self._follows_at = at(follows=frame.follows - 1)
        self._wall_at = at(clock=replace(clock, wall_ms=clock.wall_ms + 1))
        self._mono_at = at(clock=replace(clock, mono_ms=clock.mono_ms + 1))
        self._time_at = at(sections=(replace(section, time_ms=section.time_ms + 1),))
        self._values_at = at(sections=(replace(section, values=_inverted(section.values)),))
        self._counters_at = at(sections=(replace(section, counters=_inverted(section.counters)),))


def _inverted(column: bytes) -> bytes:
    return bytes([byte ^ 255 for byte in column])


def _varint4(number: int) -> bytes:
    """Of 2^21 to 2^28 - 1."""
    return (
        (number & 0x7F | (number & 0x3F80) << 1 | (number & 0x1FC000) << 2 | (number & 0xFE00000) << 3) | 0x808080
    ).to_bytes(4, "little")


def _varint6(number: int) -> bytes:
    """Of 2^35 to 2^42 - 1: milliseconds from 1971 to 2109."""
    spread = 0
    for place in range(6):
        spread |= (number >> 7 * place & 0x7F) << 8 * place
    return (spread | 0x8080808080).to_bytes(6, "little")
