"""What a message may say: every rule of the wire that needs no state, once, for both directions.

Not the translation to bytes (`codec`) and not admission by sequence number (the collector's intake).
Invariant: a record that passed its check encodes, and what was decoded has passed the same check.
"""

from operator import lt

from tocsin_proto import records as r
from tocsin_proto.columns import unpack_u32
from tocsin_proto.layouts import check_layout
from tocsin_proto.limits import (
    ADDRESS_CHARS_MAX,
    CAPABILITIES_MAX,
    DEVICES_MAX,
    EVENTS_MAX,
    GAPS_MAX,
    INT_MAX,
    LAYOUTS_MAX,
    REFUSED_MAX,
    SECTIONS_MAX,
    SETTINGS_BYTES_MAX,
    SPOOL_ID_BYTES,
    TIME_MS_MAX,
    TIME_MS_MIN,
    U32_MAX,
    WireError,
    count_32,
    count_63,
    few,
    moment,
    name_text,
    named,
    text_within,
    time_error,
)

# -------------------------------------------------------------------------------------------- agent to collector


def check_frame(frame: r.Frame, path: str = "frame") -> None:
    """All of a Frame that can be judged without its layouts. The common case touches no loop over samples."""
    if not 0 < frame.seq <= INT_MAX:
        raise WireError(f"{path}.seq", f"{frame.seq}, expected 1 to 2^63 - 1")
    if not 0 <= frame.follows < frame.seq:
        raise WireError(f"{path}.follows", f"{frame.follows}, expected less than seq {frame.seq}")
    check_clock(frame.clock, path)
    for n, section in enumerate(few(frame.sections, SECTIONS_MAX, path, "sections")):
        _section(section, path, n)
    if frame.layouts or frame.events or frame.gaps:
        _rarer_parts(frame, path)
    if frame.heartbeat is not None:
        for name in frame.heartbeat.__struct_fields__:
            count_63(getattr(frame.heartbeat, name), f"{path}.heartbeat.{name}")


def _rarer_parts(frame: r.Frame, path: str) -> None:
    for n, layout in enumerate(few(frame.layouts, LAYOUTS_MAX, path, "layouts")):
        check_layout(layout, f"{path}.layouts[{n}]")
    for n, event in enumerate(few(frame.events, EVENTS_MAX, path, "events")):
        _event(event, f"{path}.events[{n}]")
    for n, gap in enumerate(few(frame.gaps, GAPS_MAX, path, "gaps")):
        _gap(gap, f"{path}.gaps[{n}]")


def check_clock(clock: r.Clock, path: str) -> None:
    if not TIME_MS_MIN <= clock.wall_ms <= TIME_MS_MAX:
        raise time_error(clock.wall_ms, f"{path}.clock.wall_ms")
    if not 0 <= clock.mono_ms <= TIME_MS_MAX:
        raise WireError(f"{path}.clock.mono_ms", f"{clock.mono_ms}, expected 0 to {TIME_MS_MAX} ms")
    if not 0 <= clock.boot < 2**64:
        raise WireError(f"{path}.clock.boot", f"{clock.boot}, expected an unsigned 64-bit number")


def _section(section: r.Section, path: str, n: int) -> None:
    values, counters = len(section.values), len(section.counters)
    indices, offsets = len(section.indices), len(section.offsets_ms)
    samples = (values + counters) >> 3
    # One test for the sound case; which rule was broken is found only when one was.
    if (
        (values | counters) & 7
        or not 0 < samples <= r.LAYOUT_SERIES_MAX
        or (indices and indices != 4 * samples)
        or (offsets and offsets != 4 * samples)
        or not 0 < section.layout <= INT_MAX
        or not TIME_MS_MIN <= section.time_ms <= TIME_MS_MAX
    ):
        raise _broken(section, samples, f"{path}.sections[{n}]")
    if indices:
        numbers = unpack_u32(section.indices)
        if not all(map(lt, numbers, numbers[1:])):
            raise WireError(f"{path}.sections[{n}].indices", "not strictly increasing")


def _broken(section: r.Section, samples: int, path: str) -> WireError:
    if not 0 < section.layout <= INT_MAX:
        return WireError(f"{path}.layout", f"{section.layout:#x}, expected a layout id (1 to 2^63 - 1)")
    if not TIME_MS_MIN <= section.time_ms <= TIME_MS_MAX:
        return time_error(section.time_ms, f"{path}.time_ms")
    for name, column in (("values", section.values), ("counters", section.counters)):
        if len(column) % 8:
            return WireError(f"{path}.{name}", f"{len(column)} bytes, expected a multiple of 8")
    if not 0 < samples <= r.LAYOUT_SERIES_MAX:
        return WireError(path, f"{samples} samples, expected 1 to {r.LAYOUT_SERIES_MAX}")
    name, column = "indices", section.indices
    if not column or len(column) == 4 * samples:
        name, column = "offsets_ms", section.offsets_ms
    return WireError(f"{path}.{name}", f"{len(column)} bytes, expected {4 * samples} (4 per sample)")


def _event(event: r.Event, path: str) -> None:
    name_text(event.resource, f"{path}.resource")
    named(event.source, f"{path}.source")
    named(event.name, f"{path}.name")
    moment(event.time_ms, f"{path}.time_ms")
    text_within(event.text, f"{path}.text")
    last = ""
    for n, (name, value) in enumerate(event.fields):
        named(name, f"{path}.fields[{n}] name")
        text_within(value, f"{path}.fields[{n}] value")
        # Equal names stay: a trap may carry one variable twice, and an event is not lost for it.
        if name < last:
            raise WireError(f"{path}.fields[{n}]", f'"{name}" after "{last}", expected fields sorted by name')
        last = name


def _gap(gap: r.Gap, path: str) -> None:
    count_63(gap.first_seq, f"{path}.first_seq")
    count_63(gap.last_seq, f"{path}.last_seq")
    if not gap.first_seq <= gap.last_seq or (gap.last_seq and not gap.first_seq):
        raise WireError(path, f"seq {gap.first_seq} to {gap.last_seq}, expected first <= last, or 0 and 0")
    moment(gap.from_ms, f"{path}.from_ms")
    moment(gap.to_ms, f"{path}.to_ms")
    text_within(gap.reason, f"{path}.reason")
    count_63(gap.frames, f"{path}.frames")


def check_hello(hello: r.Hello, path: str = "hello") -> None:
    if not 0 < hello.protocol_min <= hello.protocol_max <= U32_MAX:
        raise WireError(
            f"{path}.protocol_min", f"{hello.protocol_min} to {hello.protocol_max}, expected 1 <= min <= max"
        )
    name_text(hello.version, f"{path}.version")
    if len(hello.spool_id) != SPOOL_ID_BYTES:
        raise WireError(f"{path}.spool_id", f"{len(hello.spool_id)} bytes, expected {SPOOL_ID_BYTES}")
    count_63(hello.last_seq, f"{path}.last_seq")
    if not 0 < hello.first_unacked <= hello.last_seq + 1:
        raise WireError(f"{path}.first_unacked", f"{hello.first_unacked}, expected 1 to last_seq + 1")
    check_clock(hello.clock, path)
    for n, name in enumerate(few(hello.capabilities, CAPABILITIES_MAX, path, "capabilities")):
        named(name, f"{path}.capabilities[{n}]")
    name_text(hello.assignment_etag, f"{path}.assignment_etag")
    name_text(hello.hostname, f"{path}.hostname")


def check_pulse(pulse: r.Pulse, path: str = "pulse") -> None:
    check_clock(pulse.clock, path)
    count_63(pulse.backlog_bytes, f"{path}.backlog_bytes")
    count_63(pulse.last_seq, f"{path}.last_seq")


def check_assignment_report(report: r.AssignmentReport, path: str = "assignment") -> None:
    name_text(report.etag, f"{path}.etag")
    for n, reason in enumerate(few(report.refused, REFUSED_MAX, path, "refused")):
        text_within(reason, f"{path}.refused[{n}]")


def check_probe_answer(answer: r.ProbeAnswer, path: str = "probe_answer") -> None:
    count_63(answer.request, f"{path}.request")
    text_within(answer.detail, f"{path}.detail")


# -------------------------------------------------------------------------------------------- collector to agent


def check_welcome(welcome: r.Welcome, path: str = "welcome") -> None:
    if not 0 < welcome.protocol <= U32_MAX:
        raise WireError(f"{path}.protocol", f"{welcome.protocol}, expected 1 or more")
    if not 0 < welcome.resume_from <= INT_MAX:
        raise WireError(f"{path}.resume_from", f"{welcome.resume_from}, expected 1 to 2^63 - 1")
    count_32(welcome.credit_bytes, f"{path}.credit_bytes")
    count_32(welcome.frame_bytes_max, f"{path}.frame_bytes_max")
    moment(welcome.time_ms, f"{path}.time_ms")
    name_text(welcome.assignment_etag, f"{path}.assignment_etag")
    name_text(welcome.agent, f"{path}.agent")


def check_ack(ack: r.Ack, path: str = "ack") -> None:
    count_63(ack.seq, f"{path}.seq")


def check_nack(nack: r.Nack, path: str = "nack") -> None:
    count_63(nack.expected, f"{path}.expected")


def check_reject(reject: r.Reject, path: str = "reject") -> None:
    count_63(reject.seq, f"{path}.seq")
    named(reject.code, f"{path}.code")
    text_within(reject.detail, f"{path}.detail")


def check_assignment(assignment: r.Assignment, path: str = "assignment") -> None:
    name_text(assignment.etag, f"{path}.etag")
    for n, device in enumerate(few(assignment.devices, DEVICES_MAX, path, "devices")):
        at = f"{path}.devices[{n}]"
        named(device.id, f"{at}.id")
        text_within(device.address, f"{at}.address", ADDRESS_CHARS_MAX)
        named(device.kind, f"{at}.kind")
        if len(device.settings) > SETTINGS_BYTES_MAX:
            raise WireError(f"{at}.settings", f"{len(device.settings)} bytes, at most {SETTINGS_BYTES_MAX}")


def check_drain(drain: r.Drain, path: str = "drain") -> None:
    count_32(drain.reconnect_after_ms, f"{path}.reconnect_after_ms")


def check_revoked(revoked: r.Revoked, path: str = "revoked") -> None:
    text_within(revoked.reason, f"{path}.reason")


def check_credit(credit: r.Credit, path: str = "credit") -> None:
    count_32(credit.bytes, f"{path}.bytes")


def check_probe_request(request: r.ProbeRequest, path: str = "probe_request") -> None:
    count_63(request.request, f"{path}.request")
    name_text(request.resource, f"{path}.resource")
