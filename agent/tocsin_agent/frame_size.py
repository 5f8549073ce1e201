"""How large records get on the wire, never guessed too small: what the framer cuts frames by.

Not the encoder. Invariant: a frame whose parts sum to at most FRAME_BUDGET encodes to at most FRAME_BYTES_MAX.
"""

from tocsin_proto.limits import NAME_CHARS_MAX, TEXT_CHARS_MAX
from tocsin_proto.records import FRAME_BYTES_MAX, Event, Series

FIELD_BYTES = 8  # tag and length of one field, and of the message around it
FRAME_BUDGET = FRAME_BYTES_MAX - 8 * 1024  # clock, heartbeat, and the gaps the spool may still add
LAYOUT_BUDGET = 64 * 1024
SERIES_BYTES_MAX = 16 * 1024
EVENT_BYTES_MAX = 64 * 1024
EVENT_FIELDS_MAX = 256


def series_bytes(series: Series) -> int:
    words = [series.resource, series.metric, series.unit]
    words += [word for label in series.labels for word in label]
    words += [f"{number}={name}" for number, name in series.states]
    return sum(len(word.encode()) + FIELD_BYTES for word in words) + 3 * FIELD_BYTES


def event_bytes(event: Event) -> int:
    words = [event.resource, event.source, event.name, event.text]
    words += [word for field in event.fields for word in field]
    return sum(len(word.encode()) + FIELD_BYTES for word in words) + 3 * FIELD_BYTES


def fitted(event: Event) -> Event:
    """The event, cut to what the wire carries: a trap that says too much still says that it came."""
    bare = Event(
        _text(event.resource, NAME_CHARS_MAX),
        _text(event.source, NAME_CHARS_MAX) or "agent",
        _text(event.name, NAME_CHARS_MAX) or "event",
        event.time_ms,
        (),
        _text(event.text, TEXT_CHARS_MAX),
    )
    left, kept = EVENT_BYTES_MAX - event_bytes(bare), []
    for name, value in event.fields[:EVENT_FIELDS_MAX]:
        field = (_text(name, NAME_CHARS_MAX) or "field", _text(value, TEXT_CHARS_MAX))
        left -= sum(len(word.encode()) + FIELD_BYTES for word in field)
        if left < 0:
            break
        kept.append(field)
    return Event(bare.resource, bare.source, bare.name, bare.time_ms, tuple(sorted(kept)), bare.text)


def _text(text: str, chars_max: int) -> str:
    return text[:chars_max].encode("utf-8", "replace").decode()
