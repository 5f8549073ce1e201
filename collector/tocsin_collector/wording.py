"""How figures, moments and incidents are put into words: units, durations, states, sentences, decision steps.

Not the catalogue (`i18n.py`) and not markup: every function returns plain text. Shared by pages, API, the operator's
command and the desk. Invariant: nothing here raises on odd data; what has no better form is shown as it came.
"""

import math
from collections.abc import Mapping
from datetime import datetime, tzinfo

from tocsin_collector.core.model import Incident, Step
from tocsin_collector.i18n import N_, Language, fill

Facts = Mapping[str, str | int | float]

STATES = {
    "up": N_("Up"),
    "degraded": N_("Degraded"),
    "down": N_("Down"),
    "unknown": N_("Unknown"),
    "maintenance": N_("Maintenance"),
    "outside": N_("Outside service time"),
}
WORST_FIRST = ("down", "degraded", "unknown", "maintenance", "outside", "up")
INCIDENT_STATES = {
    "held": N_("Held"),
    "suppressed": N_("Suppressed"),
    "open": N_("Open"),
    "acknowledged": N_("Acknowledged"),
    "resolved": N_("Resolved"),
    "closed": N_("Closed"),
}
SEVERITIES = {"warning": N_("Warning"), "major": N_("Major"), "critical": N_("Critical")}
NOTICE_KINDS = {"opened": N_("opened"), "updated": N_("updated"), "resolved": N_("resolved")}
DELIVERY_STATES = {"due": N_("waiting"), "sent": N_("delivered"), "dead": N_("given up")}
# Words of state series that devices and our own probes use; others are shown as they came.
STATE_WORDS = {
    "up": N_("up"),
    "down": N_("down"),
    "lower layer down": N_("down: the layer below it is down"),
    "dormant": N_("dormant"),
    "not present": N_("not present"),
    "testing": N_("testing"),
    "unknown": N_("unknown"),
    "shut": N_("shut"),
    "active": N_("active"),
    "inactive": N_("inactive"),
    "failed": N_("failed"),
    "reachable": N_("reachable"),
    "unreachable": N_("unreachable"),
}
# Why a component's ledger says what it says, when it is not an incident.
CAUSES = {
    "no evidence": N_("no evidence"),
    "not seen yet": N_("not seen yet"),
    "collector stopped": N_("the collector was stopped"),
}


# ------------------------------------------------------------------------------------------------------------ figures


def number(value: float, digits: int = 3) -> str:
    """About `digits` significant digits, never an exponent for everyday sizes."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "-∞"}.get(value, "NaN")
    if value == 0:
        return "0"
    if abs(value) >= 10**12 or abs(value) < 10**-6:
        return f"{value:.{digits}g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(ratio: float) -> str:
    if not abs(ratio) < 10_000:  # NaN too
        return f"{number(ratio * 100)}%" if math.isfinite(ratio) else number(ratio)
    return f"{ratio * 100:.1f}".removesuffix(".0") + "%"


def availability(ratio: float) -> str:
    """Cut off after three decimals, never rounded up: only what is whole reads 100.000%."""
    return f"{math.floor(ratio * 100_000) / 1000:.3f}%"


def scaled(value: float, unit: str, step: int, prefixes: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return number(value)
    rest, chosen = value, prefixes[0]
    for prefix in prefixes:
        chosen = prefix
        # Compared as it will be printed: 1023.9 would otherwise read "1024".
        if abs(rest) < step - 0.5:
            break
        if prefix != prefixes[-1]:
            rest /= step
    return f"{number(rest)} {chosen}{unit}"


def duration(language: Language, ms: float) -> str:
    """Two parts at most: "38 s", "4 min", "2 h 05 min", "3 d 4 h"."""
    t = language.t
    if not math.isfinite(ms):
        return number(ms)
    if ms < 0:
        return f"-{duration(language, -ms)}"
    if ms < 1000:
        return t("{n} ms", n=round(ms))
    seconds = round(ms / 1000)
    if seconds < 60:
        return t("{n} s", n=seconds)
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return t("{m} min {s} s", m=minutes, s=f"{seconds:02}") if seconds and minutes < 10 else t("{n} min", n=minutes)
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return t("{h} h {m} min", h=hours, m=f"{minutes:02}")
    days, hours = divmod(hours, 24)
    return t("{d} d {h} h", d=days, h=hours) if days < 100 else t("{n} d", n=number(days))


SECONDS_MAX = 1e12  # beyond it a figure is no duration that anybody means


def seconds(language: Language, value: float) -> str:
    """A measured number of seconds: milliseconds below one, a duration above ten."""
    if not math.isfinite(value):
        return number(value)
    if abs(value) < 1:
        return language.t("{n} ms", n=number(value * 1000))
    is_plain = abs(value) < 10 or abs(value) > SECONDS_MAX
    return language.t("{n} s", n=number(value)) if is_plain else duration(language, value * 1000)


_IEC = ("", "Ki", "Mi", "Gi", "Ti", "Pi")
_SI = ("", "k", "M", "G", "T")


def measured(language: Language, value: float, unit: str, metric: str = "") -> str:
    """A value with its unit. Units are UCUM-like; `metric` tells a ratio from a bare count."""
    if unit in ("", "1"):
        return percent(value) if metric.endswith("ratio") else number(value, 4)
    if unit in ("By", "By/s"):
        return scaled(value, "B" + unit[2:], 1024, _IEC)
    if unit in ("bit/s", "bit"):
        return scaled(value, unit, 1000, _SI)
    if unit == "s":
        return seconds(language, value)
    if unit in ("Cel", "°C"):
        return f"{number(value)} °C"
    if unit in ("1/s", "/s"):
        return f"{number(value)}/s"
    if unit == "%":
        return f"{number(value)}%"
    return f"{number(value)} {unit}"


def unit_of(metric: str) -> str:
    """The unit a metric's name promises, where no series is at hand to ask."""
    for suffix, unit in _SUFFIXES.items():
        if metric.endswith(suffix):
            return unit
    return "1"


_SUFFIXES = {"_bytes": "By", "_seconds": "s", "_celsius": "Cel", "_bps": "bit/s", "_ms": "ms", "_per_second": "1/s"}


def moment(ms: int, zone: tzinfo, now_ms: int = 0) -> str:
    """ISO date and time of day in that zone; only the time when it is the day of `now_ms`."""
    if ms <= 0:
        return "-"
    try:
        then = datetime.fromtimestamp(ms / 1000, zone)
        today = datetime.fromtimestamp(now_ms / 1000, zone)
    except (OverflowError, ValueError, OSError):
        return str(ms)
    return then.strftime("%H:%M:%S" if then.date() == today.date() else "%Y-%m-%d %H:%M:%S")


# ---------------------------------------------------------------------------------------------------------- sentences


def sentence(language: Language, template: str, facts: Facts, metric: str = "") -> str:
    """A rule's `says` filled with the finding's facts: "/ on edge-1 is 92.3% full".

    `{value}` and `{limit}` take the metric's unit; `{name:percent}`, `:bytes`, `:duration`, `:rate` force a form.
    """
    unit = str(facts.get("unit", "")) or unit_of(metric)

    def fact(name: str, how: str) -> str | None:
        if name not in facts:
            return None
        value = facts[name]
        if name == "state":
            return language.t(STATE_WORDS.get(str(value), str(value)))
        return value if isinstance(value, str) else _figure(language, name, value, how, unit, metric)

    return fill(language.t(template), fact)


def _figure(language: Language, name: str, value: float, how: str, unit: str, metric: str) -> str:
    if how == "percent":
        return percent(value)
    if how == "bytes":
        return measured(language, value, "By")
    if how == "rate":
        return measured(language, value, "By/s")
    if how == "duration" or name.endswith("_ms"):
        return duration(language, value if name.endswith("_ms") else value * 1000)
    if name in ("value", "limit", "clear", "was", "threshold", "above", "below"):
        return measured(language, value, unit, metric)
    return str(value) if isinstance(value, int) else number(value, 4)


def says(language: Language, incident: Incident) -> str:
    """The incident in one sentence; without a template, its rule and device are the sentence."""
    facts = {"device": incident.device, "host": incident.device, "site": incident.site, **incident.facts}
    template = incident.says or N_("{rule} on {device}")
    return sentence(language, template, {"rule": incident.rule, **facts}, incident.metric)


def steps(language: Language, step: Step, incident: Incident | None = None) -> str:
    """One link of a decision chain as a sentence. A kind this version does not know is shown with its facts."""
    template = STEPS.get(step.kind)
    if template is None:
        facts = ", ".join(f"{name} {value}" for name, value in step.facts.items())
        return f"{step.kind}: {facts}" if facts else step.kind
    about: dict[str, str | int | float] = {"unit": incident.facts.get("unit", "")} if incident else {}
    if incident:
        about["device"] = incident.device
    words = {name: language.t(SEVERITIES[str(v)]) for name, v in step.facts.items() if str(v) in SEVERITIES}
    said = sentence(language, template, {**about, **step.facts, **words}, incident.metric if incident else "")
    text = step.facts.get("text")
    return language.t("{said}: {text}", said=said, text=text) if text else said


def value_of(language: Language, incident: Incident, value: float) -> str:
    """A value of the incident's evidence, in its metric's unit, or as the state it stands for."""
    state = incident.facts.get("state")
    if state is not None and value == incident.facts.get("value"):
        return language.t(STATE_WORDS.get(str(state), str(state)))
    return measured(language, value, str(incident.facts.get("unit", "")) or unit_of(incident.metric), incident.metric)


# The sentence of every Step.kind that core/, the desk and the store write; a test compares the two.
STEPS: dict[str, str] = {
    "delivered": N_("Told {channel}: {notice} (attempt {attempts})"),
    "delivery_failed": N_("Gave up telling {channel}: {notice} (attempt {attempts}): {problem}"),
    "unreadable": N_("Closed: what was stored of it could not be read"),
    "above_raised": N_("{metric} was {value}, above {limit} (rule {rule})"),
    "above_cleared": N_("{metric} was {value}, no longer above {limit}"),
    "below_raised": N_("{metric} was {value}, below {limit} (rule {rule})"),
    "below_cleared": N_("{metric} was {value}, no longer below {limit}"),
    "state_raised": N_("{metric} became {state} (rule {rule})"),
    "state_cleared": N_("{metric} became {state}"),
    "no_data_raised": N_("{metric} had not come for {seconds:duration} (rule {rule})"),
    "no_data_cleared": N_("{metric} came again"),
    "held_for": N_("It held for {seconds:duration}, as the rule asks"),
    "last_heard": N_("{device} was heard for the last time; {seconds:duration} later it was judged silent"),
    "agent_heard": N_("{device} reports again"),
    "rule_gone": N_("The rule {rule} is no longer in force for it"),
    "device_gone": N_("{device} is no longer in the registry"),
    "cleared": N_("The condition has ended"),
    "resolved": N_("Resolved"),
    "ended_unopened": N_("Ended before it was opened"),
    "over_before_told": N_("Over before anybody was told; nobody is told now"),
    "opened": N_("Opened"),
    "reopened": N_("Reopened: it came back shortly after it had ended"),
    "waits_for_parents": N_("Held: waiting for news of {parents}, which may explain it"),
    "explained_by_parent": N_("Held back: {parent} is unreachable and explains it ({incident})"),
    "parent_back": N_("{parent} answers again: held until {device} is heard or its own fault is certain"),
    "no_parent_explains": N_("Nothing it depends on explains it"),
    "parent_answers": N_("A device it depends on answers, so the fault is its own"),
    "severity_changed": N_("Severity changed from {before} to {severity}"),
    "still_there": N_("Opened again: it was resolved by hand and is still there"),
    "acknowledged_by": N_("Acknowledged by {actor}"),
    "resolved_by": N_("Resolved by {actor}"),
    "closed_by": N_("Closed by {actor}"),
    "commented": N_("{actor}"),
    "closed": N_("Closed: nothing more was heard of it"),
    "closed_for_new": N_("Closed: it came back, and a new incident was opened"),
}
