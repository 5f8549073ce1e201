import re
from pathlib import Path

import pytest

from tocsin_collector import rules_file
from tocsin_collector.core.model import Level, Rule
from tocsin_proto.settings import SettingsError

CASES = Path(__file__).parents[1] / "cases" / "rules"


def line_of(rule: Rule) -> str:
    origin = "built-in" if rule.is_built_in else "own"
    return f'{rule.id} {rule.metric} {origin} {" ".join(map(level_of, rule.levels))} "{rule.says}"\n'


def level_of(level: Level) -> str:
    parts = [
        (f">{level.above}", level.above is not None),
        (f"<{level.below}", level.below is not None),
        (f"={level.is_state}", bool(level.is_state)),
        (f" after {level.after}", bool(level.after)),
        (f" clear<{level.clear_below}", level.clear_below is not None),
        (f" clear>{level.clear_above}", level.clear_above is not None),
        (f" for {level.for_ms}", bool(level.for_ms)),
        (f" keep {level.keep_ms}", bool(level.keep_ms)),
    ]
    return level.severity + "".join(text for text, is_there in parts if is_there)


@pytest.mark.parametrize("folder", sorted(CASES.iterdir()), ids=lambda path: path.name)
def test_rules_case(folder: Path) -> None:
    problems, rules = "", ""
    try:
        rules = "".join(map(line_of, rules_file.read(folder, built_in=folder / "built_in")))
    except SettingsError as error:
        problems = str(error).replace(f"{folder}/", "") + "\n"
    for name, found in (("problems.txt", problems), ("rules.txt", rules)):
        assert found == ((folder / name).read_text() if (folder / name).exists() else "")


BUILT_IN = {rule.id: rule for rule in rules_file.read(Path("/nonexistent"))}


def test_the_built_in_rules_are_sound_and_each_has_a_sentence_of_its_own() -> None:
    says = [rule.says for rule in BUILT_IN.values()]
    assert len(set(says)) == len(says)
    assert all(rule.is_built_in and "{device}" in rule.says for rule in BUILT_IN.values())


def test_only_a_device_that_does_not_answer_is_down_and_waits_for_its_parents() -> None:
    assert [rule.id for rule in BUILT_IN.values() if rule.is_reachability] == ["device-unreachable"]
    assert [rule.id for rule in BUILT_IN.values() if rule.impact == "down"] == ["device-unreachable"]


def test_a_port_that_is_shut_or_was_never_up_is_no_fault() -> None:
    (level,) = BUILT_IN["interface-down"].levels
    states = rules_file.STATES["if.oper_status"]
    assert states["shut"] not in level.is_state
    assert level.after == (states["up"],)


def test_the_words_for_states_are_those_that_the_probes_send() -> None:
    from tocsin_agent.probes import filesystems, services

    assert rules_file.STATES["service.active"] == services.STATES
    sent = {column.metric: {word: number for number, word in column.states} for column in filesystems.COLUMNS}
    for metric in ("disk.read_only", "disk.responding"):
        assert rules_file.STATES[metric] == sent[metric]


def test_the_labels_a_built_in_sentence_names_are_known() -> None:
    known = {*rules_file.FACTS, *rules_file.LABELS}
    for rule in BUILT_IN.values():
        assert {name.partition(":")[0] for name in re.findall(r"{([^}]+)}", rule.says)} <= known, rule.id


def test_rules_of_a_text_are_read_without_the_built_in_ones() -> None:
    text = '[[rule]]\nid = "hot"\nfor_each = "a.b"\nwarning = { above = 1, for = "5m" }'
    (rule,) = rules_file.parse(text, "rules.toml")
    assert rule.levels[0].for_ms == 300_000
