"""What the README and the guide say is so: links, commands, keys, metrics, files; examples are read by the real readers."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import msgspec
import pytest

from tocsin_agent.cli import cli as agent_cli
from tocsin_agent.config import AgentSettings
from tocsin_collector import config, metrics, registry_file, rules_file
from tocsin_collector.cli.commands import cli as operator_cli
from tocsin_collector.cli.server import cli as collector_cli
from tocsin_collector.web.api import openapi
from tocsin_collector.web.routes import OPERATIONS
from tocsin_proto import settings

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "guide"
LANGUAGES = ("en", "zh")
PAGES = sorted(path.name for path in (GUIDE / "en").glob("*.md"))
TEXTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})
COMMANDS = {"tocsin": operator_cli, "tocsin-agent": agent_cli, "tocsin-collector": collector_cli}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURE_BYTES_MAX = 150_000


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(path.read_text()) if kind == language]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as its host makes them: small letters, no punctuation, a dash for a space."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", path.read_text())):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def test_both_languages_have_the_same_pages_and_the_same_examples() -> None:
    assert [path.name for path in sorted((GUIDE / "zh").glob("*.md"))] == PAGES
    for name in PAGES:
        english, chinese = (GUIDE / language / name for language in LANGUAGES)
        for kind in ("toml", "json"):
            assert blocks(english, kind) == blocks(chinese, kind), f"{name}: {kind}"
    for english, chinese in [(ROOT / "README.md", ROOT / "README.zh-CN.md")]:
        assert [bare(text) for text in blocks(english, "sh")] == [bare(text) for text in blocks(chinese, "sh")]


def bare(script: str) -> list[str]:
    """A script without its comments, which are in the page's language."""
    return [line.split("#")[0].rstrip() for line in script.splitlines()]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_that_is_written_is_a_command_with_these_options(path: Path) -> None:
    for line in commands_in(path):
        name, *arguments = line
        command: click.Command = COMMANDS[name]
        while isinstance(command, click.Group) and arguments and arguments[0] in command.commands:
            command = command.commands[arguments.pop(0)]
        context = click.Context(command)
        known = {option for parameter in command.get_params(context) for option in parameter.opts}
        if name == "tocsin" and command.name == "demo":
            continue  # its options are those of its own command
        assert not isinstance(command, click.Group) or command.invoke_without_command or not arguments, line
        assert {word for word in arguments if word.startswith("-") and word != "-"} <= known, line


def commands_in(path: Path) -> Iterator[list[str]]:
    """Command lines of ours: in scripts, after "$" in sessions, and in running text between backticks."""
    text = path.read_text()
    lines = [line for block in blocks(path, "sh") for line in block.splitlines()]
    lines += [
        line.removeprefix("$ ") for block in blocks(path, "text") for line in block.splitlines() if line[:2] == "$ "
    ]
    lines += re.findall(r"`(tocsin[^`\n]*)`", BLOCK.sub("", text))
    for line in (line for line in lines if line.startswith("tocsin")):
        words = shlex.split(line.split(" > ")[0], comments=True)
        if words and words[0] in COMMANDS:
            yield words


def keys_of(struct: type) -> Iterator[str]:
    """The keys of a table, those of tables inside it with their path. A list of tables is named, not entered."""
    for field in msgspec.structs.fields(struct):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from (f"{field.encode_name}.{key}" for key in keys_of(field.type))
        else:
            yield field.encode_name


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_key_of_every_file_stands_in_the_guide(language: str) -> None:
    page = (GUIDE / language / "configuration.md").read_text()
    parts = {part.split("\n", 1)[0]: part for part in page.split("\n## ")}
    tables: list[tuple[str, type]] = [
        ("collector.toml", config.CollectorConfig),
        ("collector.toml", config.Channel),
        ("registry/*.toml", registry_file.SiteTable),
        ("registry/*.toml", registry_file.SnmpTable),
        ("registry/*.toml", registry_file.DeviceTable),
        ("agent.toml", AgentSettings),
        ("agent.toml", get_args(AgentSettings.__annotations__["snmp"])[0]),
    ]
    for part, table in tables:
        for key in keys_of(table):
            assert f"`{key}`" in parts[part], f"{part}: {key}"
    rules = (GUIDE / language / "rules.md").read_text()
    for table in (rules_file.RuleTable, rules_file.LevelTable):
        for key in keys_of(table):
            assert re.search(rf"`{key}\b", rules), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_built_in_rule_and_every_operation_stands_in_the_guide(language: str) -> None:
    rules = (GUIDE / language / "rules.md").read_text()
    for rule in rules_file.read(ROOT / "none"):
        assert f"`{rule.id}`" in rules, rule.id
    page = (GUIDE / language / "api.md").read_text()
    for operation in OPERATIONS:
        last = operation.path.rsplit("/", 1)[-1]
        assert f"`{operation.path}`" in page or f".../{last}`" in page, operation.path
    assert f"`{openapi.PREFIX}`" in page


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_metrics_worth_an_alarm_are_metrics(language: str) -> None:
    named = set(re.findall(r"`(tocsin_[a-z_]+)`", (GUIDE / language / "operating.md").read_text()))
    figures = metrics.Figures("1", "3", 0.0, 0.0, channels=(metrics.ChannelFigures("desk", 0, 0, 0, 0),))
    shown = metrics.text(lambda: figures)
    assert named
    for name in named - {"tocsin_engine_up"}:  # the web process's own
        assert f"\n{name}" in shown, name


def test_the_examples_are_read_by_the_real_readers(tmp_path: Path) -> None:
    assert rules_file.parse(blocks(GUIDE / "en" / "rules.md", "toml")[0], "rules.md")
    registry, own_device = blocks(GUIDE / "en" / "snmp.md", "toml")
    (tmp_path / "plant.toml").write_text(registry)
    assert [device.id for device in registry_file.read(tmp_path).registry.devices] == ["sw-hall-3"]
    assert settings.parse(AgentSettings, own_device, "snmp.md").value.snmp[0].id == "sw-hall-3"
    (channel,) = config.parse(blocks(GUIDE / "en" / "api.md", "toml")[0], "api.md").value.channel
    assert channel.id == "desk"


def test_every_module_that_the_map_names_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for part in page.split("\n### ")[1:]:
        folder, _, text = part.partition("\n")
        for module in re.findall(r"^\| `([\w.]+\.py)` \|", text, re.MULTILINE):
            assert (ROOT / folder / module).is_file(), f"{folder}/{module}"


def test_every_file_that_the_drawing_and_the_table_name_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text().split("\n## The map")[0]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in set(re.findall(r"\w[\w/]*\.(?:py|sql|proto)\b", page)):
        assert any(f"/{path}".endswith(f"/{name}") for path in tracked), name


def test_the_pictures_are_small_enough_to_load() -> None:
    pictures = list((ROOT / "docs" / "img").glob("*.png"))
    assert {path.name for path in pictures} == {"overview.en.png", "overview.zh_CN.png"}
    assert all(path.stat().st_size <= PICTURE_BYTES_MAX for path in pictures)
