"""What stays of frames that cannot be kept: their events, their gaps, and a gap for what went.

Pure; not the decision of when to drop (`generation`). Invariant: every sequence number of the input is either that of
a remaining frame or inside a gap of one, and a remaining frame keeps its number: the collector, which may hold the
whole frame already, then drops the remainder as a repeat.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from tocsin_agent.segments import Entry, Kind
from tocsin_proto.codec import WireError, decode_frame, encode_frame
from tocsin_proto.records import Clock, Frame, Gap

GAPS_MAX: Final = 64  # in one frame; more are told as one


class Remains(NamedTuple):
    entries: list[Entry]
    frames_lost: int
    events_lost: int


def remains(entries: Iterable[Entry], reason: str, keep: Kind) -> Remains:
    """`keep`: EVENTS drops the samples, GAPS the events as well. `entries` rise in seq; so does the result."""
    kept: list[Entry] = []
    owed: list[Gap] = []
    frames_lost = events_lost = 0
    behind: int | None = None
    last: Frame | None = None
    for entry in entries:
        behind = entry.follows if behind is None else behind
        if last is not None and entry.follows > last.seq:  # records between were lost to damage, and nobody said so yet
            owed.append(hole(last.seq, entry, last.clock.wall_ms))
        frame, readable = _decoded(entry)
        events = frame.events if keep == Kind.EVENTS else ()
        lost = entry.kind == Kind.FULL or not readable or len(events) < len(frame.events)
        owed = joined([*owed, *frame.gaps, *([gap_of(frame, reason)] if lost else [])])
        frames_lost += entry.kind == Kind.FULL
        events_lost += len(frame.events) - len(events)
        last = Frame(frame.seq, behind, frame.clock, events=events, gaps=tuple(owed))
        if events:
            whole = entry_of(last, Kind.EVENTS)
            # Full of events to the last byte: then the gap rides on the next one.
            kept.append(whole or _sound(msgspec.structs.replace(last, gaps=()), Kind.EVENTS))
            owed = owed if whole is None else []
            behind = frame.seq
    if last is not None and owed and kept and kept[-1].seq == last.seq:
        # No later frame to carry the gap: the account comes before the events.
        events_lost += len(last.events)
        behind = kept.pop().follows
    if last is not None and owed:
        tail = _sound(Frame(last.seq, behind or 0, last.clock, gaps=tuple(owed)), Kind.GAPS)
        kept.append(tail)
    return Remains(kept, frames_lost, events_lost)


def joined(gaps: Sequence[Gap]) -> list[Gap]:
    """Adjacent gaps of one reason as one, and never more than GAPS_MAX."""
    out: list[Gap] = []
    for gap in gaps:
        if out and out[-1].reason == gap.reason and _touch(out[-1], gap):
            gap = _span([out.pop(), gap], gap.reason)
        out.append(gap)
    return out if len(out) <= GAPS_MAX else [_span(out, "several")]


def hole(behind: int, entry: Entry, from_ms: int, reason: str = "corrupt") -> Gap:
    """What is missing between the record `behind`, kept at `from_ms`, and `entry`."""
    lost = entry.seq - 1 - behind
    return Gap(behind + 1, entry.seq - 1, min(from_ms, entry.time_ms), entry.time_ms, reason, frames=lost)


def gap_of(frame: Frame, reason: str) -> Gap:
    """The gap that the loss of this one frame leaves."""
    times = [frame.clock.wall_ms, *(section.time_ms for section in frame.sections)]
    return Gap(frame.seq, frame.seq, min(times), max(times), reason, frames=1)


def entry_of(frame: Frame, kind: Kind) -> Entry | None:
    """None: this frame breaks the wire's contract, or is too large."""
    try:
        raw = encode_frame(frame)
    except WireError:
        return None
    return Entry(frame.seq, frame.follows, frame.clock.wall_ms, kind, raw)


def _touch(before: Gap, gap: Gap) -> bool:
    return before.last_seq + 1 == gap.first_seq if gap.first_seq else not before.first_seq


def _span(gaps: Sequence[Gap], reason: str) -> Gap:
    numbered = [gap for gap in gaps if gap.first_seq]
    return Gap(
        first_seq=min((gap.first_seq for gap in numbered), default=0),
        last_seq=max((gap.last_seq for gap in numbered), default=0),
        from_ms=min(gap.from_ms for gap in gaps),
        to_ms=max(gap.to_ms for gap in gaps),
        reason=reason,
        frames=sum(gap.frames for gap in gaps),
    )


def _sound(frame: Frame, kind: Kind) -> Entry:
    entry = entry_of(frame, kind)
    assert entry is not None, "part of a sound frame, or at most GAPS_MAX gaps, is sound"
    return entry


def _decoded(entry: Entry) -> tuple[Frame, bool]:
    """False: written by another version; all that is known is its number and its time."""
    try:
        return decode_frame(entry.raw), True
    except WireError:
        return Frame(entry.seq, entry.follows, Clock(entry.time_ms, 0, 0)), False
