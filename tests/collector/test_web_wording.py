"""Words: translations whole, sentences safe, figures readable, the headline true."""

import ast
import math
import tomllib
from datetime import UTC
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import messages

from tocsin_collector import core, wording
from tocsin_collector.core.model import Incident, IncidentState, Severity, Step
from tocsin_collector.desk import due
from tocsin_collector.i18n import LANGUAGES, fields, fill, language, negotiate
from tocsin_collector.store import truth
from tocsin_collector.web.auth import Brake
from tocsin_collector.web.headline import headline

EN, ZH = language("en"), language("zh_CN")


def test_every_text_is_translated_with_the_same_placeholders_and_compiled() -> None:
    assert messages.check() == []


def test_the_check_sees_a_missing_translation_and_a_changed_placeholder() -> None:
    catalogue = messages.merged("zh_CN", messages.wanted())
    catalogue["{who} is down"].string = ("{wer} 中断",)
    catalogue["Overview"].string = ""
    found = messages.problems("zh_CN", catalogue)
    assert sorted(problem.split(":")[1].strip() for problem in found) == ["not translated", "other placeholders"]


def test_texts_of_templates_python_and_rules_are_all_collected() -> None:
    texts = {message.id for message in messages.wanted()}
    assert "Open incidents" in texts  # a template
    assert ("{who} is down", "{who} are down") in texts  # Python, with a plural
    rules = Path(core.__file__).parent.parent / "rules"
    for file in rules.glob("*.toml"):
        for rule in tomllib.loads(file.read_text(encoding="utf-8"))["rule"]:
            assert not rule.get("says") or rule["says"] in texts, rule["id"]


def test_every_kind_of_decision_step_in_the_core_has_a_sentence() -> None:
    """Kinds stand as literals in `_step(KIND)` and `Step(at, KIND)`, or are put together in the three ways named first."""
    found = {f"{kind}d_by" for kind in ("acknowledge", "resolve", "close")}
    found |= {f"{kind}_{what}" for kind in ("above", "below", "state", "no_data") for what in ("raised", "cleared")}
    found |= {"no_parent_explains", "parent_answers", "closed", "closed_for_new"}
    found |= {due.DELIVERED, due.FAILED}  # the desk writes these
    found |= {truth.UNREADABLE}  # and the store this
    for file in Path(core.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                place = {"_step": 0, "Step": 1}.get(name)
                if place is not None and len(node.args) > place:
                    found |= set(_literals(node.args[place]))
    assert len(found) > 20
    assert found <= set(wording.STEPS)
    assert all(kind in found for kind in wording.STEPS), set(wording.STEPS) - found


def _literals(node: ast.expr) -> list[str]:
    if isinstance(node, ast.IfExp):
        return _literals(node.body) + _literals(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def test_an_unknown_step_shows_its_kind_and_facts() -> None:
    assert wording.steps(EN, Step(1, "storm_seen", {"devices": 7})) == "storm_seen: devices 7"


def test_a_rule_s_sentence_reads_names_only() -> None:
    facts = {"value": 0.923, "mount": "/", "device": "db"}
    assert (
        wording.sentence(EN, "{mount} on {device} is {value} full", facts, "disk.used_ratio") == "/ on db is 92.3% full"
    )
    hostile = "{device.__class__} {0} {device!r} {nobody} {{mount}}"
    assert wording.sentence(EN, hostile, facts) == "{device.__class__} {0} {device!r} {nobody} {mount}"
    assert wording.sentence(EN, "{device}", {"device": "{mount}", "mount": "x"}) == "{mount}"  # filled once


@given(st.text(max_size=60), st.dictionaries(st.text(max_size=5), st.integers() | st.floats() | st.text(max_size=9)))
def test_no_template_and_no_facts_can_break_a_sentence(template: str, facts: dict[str, int | float | str]) -> None:
    assert isinstance(wording.sentence(ZH, template or "x", facts, "if.in_bytes"), str)
    assert fields(fill(template, lambda name, how: None)) is not None


@given(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(["1", "By", "By/s", "bit/s", "s", "Cel", "%", "V", ""]),
)
def test_any_value_in_any_unit_has_a_short_form(value: float, unit: str) -> None:
    shown = wording.measured(EN, value, unit, "x.used_ratio")
    assert 0 < len(shown) <= 24


@pytest.mark.parametrize(
    ("value", "unit", "metric", "shown"),
    [
        (0.5, "1", "cpu.used_ratio", "50%"),
        (0.9234, "1", "cpu.used_ratio", "92.3%"),
        (3.0, "1", "process.count", "3"),
        (1023.9, "By", "", "1 KiB"),
        (1024**3, "By", "", "1 GiB"),
        (1_500_000, "By/s", "", "1.43 MiB/s"),
        (10**9, "bit/s", "", "1 Gbit/s"),
        (0.0421, "s", "", "42.1 ms"),
        (93784, "s", "", "1 d 2 h"),
        (41.5, "Cel", "", "41.5 °C"),
        (math.nan, "1", "cpu.used_ratio", "NaN"),
        (0, "By", "", "0 B"),
        (-1536, "By", "", "-1.5 KiB"),
    ],
)
def test_figures_carry_their_unit(value: float, unit: str, metric: str, shown: str) -> None:
    assert wording.measured(EN, value, unit, metric) == shown


@pytest.mark.parametrize(
    ("ms", "english", "chinese"),
    [
        (400, "400 ms", "400 毫秒"),
        (38_000, "38 s", "38 秒"),
        (59_999, "1 min", "1 分钟"),
        (252_000, "4 min 12 s", "4 分 12 秒"),
        (3_600_000, "1 h 00 min", "1 小时 00 分"),
        (273_600_000, "3 d 4 h", "3 天 4 小时"),
    ],
)
def test_durations_have_two_parts_at_most(ms: int, english: str, chinese: str) -> None:
    assert (wording.duration(EN, ms), wording.duration(ZH, ms)) == (english, chinese)


def test_availability_is_never_rounded_up_to_all() -> None:
    assert wording.availability(0.9999999) == "99.999%"
    assert wording.availability(1.0) == "100.000%"


def test_a_stamp_beyond_all_calendars_is_still_shown() -> None:
    assert wording.moment(10**18, UTC) == str(10**18)
    assert wording.moment(0, UTC) == "-"


@pytest.mark.parametrize(
    ("states", "english"),
    [
        ({}, "Nothing is watched yet. Enrol the first agent; it takes about a minute."),
        ({"up": ["a"]}, "a is up."),
        ({"up": ["a", "b"]}, "All 2 devices are up."),
        ({"down": ["sw-hall-3"], "up": ["a", "b", "c", "d"]}, "sw-hall-3 is down; 4 of 5 devices are up."),
        ({"down": ["a", "b"], "up": ["c"]}, "a and b are down; 1 of 3 devices is up."),
        (
            {"down": ["a", "b", "c"], "degraded": ["d"], "up": ["e", "f"]},
            "3 devices are down, d is degraded; 2 of 6 devices are up.",
        ),
        ({"unknown": ["a"]}, "nothing is known of a."),
        (
            {"down": ["sw"], "behind": ["x"], "up": ["y", "z"]},
            "sw is down with 1 device behind it; 2 of 4 devices are up.",
        ),
    ],
)
def test_the_headline_counts_what_is_there(states: dict[str, list[str]], english: str) -> None:
    assert headline(EN, states) == english
    assert headline(ZH, states).endswith("。")


@pytest.mark.parametrize(
    ("wishes", "code"),
    [
        (("zh-CN,zh;q=0.9,en;q=0.8",), "zh_CN"),
        (("fr, en;q=0.1, zh;q=0.5",), "zh_CN"),
        (("zh_CN.UTF-8",), "zh_CN"),
        (("C.UTF-8", None, "en_GB"), "en"),
        ((";q=x" * 500,), "en"),
    ],
)
def test_the_best_language_we_speak_is_chosen(wishes: tuple[str | None, ...], code: str) -> None:
    assert negotiate(*wishes) == code
    assert set(LANGUAGES) == {"en", "zh_CN"}


def test_an_incident_without_a_template_still_says_what_and_where() -> None:
    bare = Incident("I-1", "k", "disk-full", "db", Severity.MAJOR, IncidentState.OPEN, 1, 1, 1)
    assert wording.says(EN, bare) == "disk-full on db"
    assert wording.says(ZH, bare) == "db 上的 disk-full"


def test_the_brake_forgets_after_its_window_and_holds_a_bounded_number_of_keys() -> None:
    brake = Brake(tries_max=2, window_ms=1000, keys_max=3)
    brake.failed("a", 0)
    assert brake.wait_ms("a", 0) == 0
    brake.failed("a", 10)
    assert brake.wait_ms("a", 20) == 980
    assert brake.wait_ms("b", 20) == 0
    assert brake.wait_ms("a", 1000) == 0
    for key in "bcdefg":
        brake.failed(key, 1000)
    assert len(brake._failures) == 3
