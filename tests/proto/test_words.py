"""The commands speak the language of the terminal, click's own words included; logs and JSON keys stay as they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from scripts import messages

from tocsin_agent.identity import EnrolError
from tocsin_proto.words import CLICK, Told, Words, helps, localize

CHINESE = "zh_CN.UTF-8"


def said(module: str, *arguments: object, language: str = CHINESE) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("LANGUAGE", "LANG", "LC_MESSAGES")}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=plain | {"LC_ALL": language, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= char <= "\u9fff" for char in text)


@pytest.mark.parametrize("source", messages.SOURCES, ids=lambda source: source.domain)
def test_every_text_of_a_package_is_translated_and_compiled(source: messages.Source) -> None:
    catalogue = messages.merged("zh_CN", messages.wanted(source), source)
    assert messages.problems("zh_CN", catalogue) == []
    assert messages.stale("zh_CN", catalogue, source) == []
    assert len(catalogue) > 50


def test_help_errors_and_clicks_own_words_are_collected() -> None:
    texts = {message.id for message in messages.wanted(messages.AGENT)}
    assert set(CLICK) <= texts
    assert "Watch and report, until stopped." in texts  # help of a command
    assert "The settings file." in texts  # of an option
    assert "no agent runs on {folder}" in texts  # said with t
    assert "{path}: missing; enrol again with a new token" in texts  # raised, and said where it is caught
    init = "Make settings, certificate authority, store and first administrator. Again: adds what is missing."
    assert init in {message.id for message in messages.wanted()}


def test_a_command_speaks_the_language_of_the_terminal_and_english_where_it_knows_none(tmp_path: Path) -> None:
    done = said("tocsin_agent", "--help")
    assert "用法" in done.stdout
    assert "监视并上报" in done.stdout
    assert "Show this message" not in done.stdout
    done = said("tocsin_agent", "status", "--state", tmp_path)
    assert is_chinese(done.stderr)
    assert str(tmp_path) in done.stderr
    done = said("tocsin_agent", "nonsense")
    assert is_chinese(done.stderr)
    assert done.returncode == 2
    for language in ("C.UTF-8", "xx_YY.UTF-8", "en_GB.UTF-8"):
        assert "Watch and report, until stopped." in said("tocsin_agent", "--help", language=language).stdout


def test_json_keeps_its_keys_in_every_language(tmp_path: Path) -> None:
    answer = json.loads(said("tocsin_agent", "status", "--json", "--state", tmp_path).stdout)
    assert (answer["ok"], answer["data"], answer["error"]["code"]) == (False, None, 1)


def test_an_exception_for_people_is_english_in_the_log_and_keeps_braces_of_the_world() -> None:
    error = EnrolError("{path}: missing; enrol again with a new token", path="/x/{y}", refused=True)
    assert str(error) == "/x/{y}: missing; enrol again with a new token"
    assert error.refused
    assert str(Told("a {brace} without facts")) == "a {brace} without facts"


def test_making_words_reads_nothing_and_a_missing_catalogue_is_english(tmp_path: Path) -> None:
    words = Words("no-such-domain", tmp_path / "nowhere")
    assert words.t("as it {is}", **{"is": "was"}) == "as it was"
    assert words.t("") == ""
    assert words.of(ValueError("as it {is}")) == "as it {is}"


def test_the_help_of_every_command_and_option_below_a_group_is_found() -> None:
    @click.group()
    def top() -> None:
        """Top."""

    @top.group()
    def inner() -> None:
        """Inner."""

    @inner.command()
    @click.option("--flag", help="Flag.")
    @click.option("--mute")
    def leaf(flag: str, mute: str) -> None:
        """Leaf.

        Second paragraph.
        """

    assert [(one.help or "").split("\n")[0] for one in helps(top)] == ["Top.", "Inner.", "Leaf.", "Flag."]
    localize(top, Words("no-such-domain", Path("nowhere")))
    assert leaf.help == "Leaf.\n\nSecond paragraph."
