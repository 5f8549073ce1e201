"""The house stands as drawn: who may import whom, which registries list what lies beside them, what the core must not touch."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
AGENT = ROOT / "agent" / "tocsin_agent"
COLLECTOR = ROOT / "collector" / "tocsin_collector"
PROTO = ROOT / "proto" / "tocsin_proto"

IMPURE = {
    "asyncio", "socket", "sqlite3", "aiosqlite", "grpc", "time", "random", "os", "pathlib", "subprocess", "threading",
    "secrets", "uuid", "structlog", "logging",
}  # fmt: skip


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "/v1/" not in path.as_posix())


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports anywhere, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", modules(PROTO), ids=lambda p: p.stem)
def test_the_wire_imports_neither_side(path: Path) -> None:
    assert not top(imports(path)) & {"tocsin_agent", "tocsin_collector", "numpy"}


@pytest.mark.parametrize("path", modules(AGENT), ids=lambda p: p.stem)
def test_the_agent_never_imports_the_collector_or_numpy(path: Path) -> None:
    assert not top(imports(path)) & {"tocsin_collector", "numpy", "aiosqlite", "starlette"}


@pytest.mark.parametrize("path", modules(COLLECTOR), ids=lambda p: p.relative_to(COLLECTOR).as_posix())
def test_the_collector_never_imports_the_agent(path: Path) -> None:
    assert "tocsin_agent" not in top(imports(path))


@pytest.mark.parametrize("path", modules(COLLECTOR / "core"), ids=lambda p: p.stem)
def test_the_core_is_pure(path: Path) -> None:
    names = imports(path)
    assert not top(names) & IMPURE
    shells = {n for n in names if n.startswith("tocsin_collector.") and not n.startswith("tocsin_collector.core")}
    assert not shells
    assert not re.search(r"\b(open|print|input)\(", path.read_text())


def test_only_the_codec_and_the_services_touch_generated_code() -> None:
    allowed = {"translate.py", "codec.py", "enrolment.py", "renewal.py", "identity.py", "door.py"}
    for path in [*modules(AGENT), *modules(COLLECTOR), *modules(PROTO)]:
        if any(name.startswith("tocsin_proto.v1") for name in imports(path)):
            assert path.name in allowed, path


def test_importing_any_module_of_the_wire_does_nothing_and_pulls_no_grpc_server() -> None:
    code = "import sys, tocsin_proto.codec, tocsin_proto.records; print('numpy' in sys.modules, 'grpc' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


LINES_MAX = 460

REGISTRIES = [
    ("tocsin_agent.probes", "PROBES", AGENT / "probes"),
    ("tocsin_collector.desk.base", "CONNECTORS", COLLECTOR / "desk"),
    ("tocsin_collector.web.pages", "PAGES", COLLECTOR / "web" / "pages"),
]


@pytest.mark.parametrize(("module", "table", "folder"), REGISTRIES, ids=lambda value: str(value).rsplit("/", 1)[-1])
def test_every_registry_names_only_modules_that_lie_beside_it(module: str, table: str, folder: Path) -> None:
    listed = getattr(importlib.import_module(module), table)
    entries = listed.values() if isinstance(listed, dict) else listed
    named = {stem for entry in entries for stem in _stems(entry)}
    files = {path.stem for path in folder.glob("*.py")}
    assert named, f"{table} is empty"
    assert named <= files, named - files
    helpers = {"__init__", "base", "shared"}
    unlisted = {stem for stem in files - named - helpers if table in ("PAGES",)}
    assert not unlisted, f"{table} does not list {unlisted}"


def _stems(entry: object) -> set[str]:
    """The module a registry entry points to: "package.module:Class", a class, or a record with a module or handler."""
    if isinstance(entry, str):
        return {entry.split(":")[0].rsplit(".", 1)[-1]}
    for name in ("module", "handler", "endpoint"):
        value = getattr(entry, name, None)
        if value is not None:
            return _stems(value)
    return {str(getattr(entry, "__module__", "")).rsplit(".", 1)[-1]}


def test_no_file_names_a_machine_a_registry_or_how_it_was_made() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    banned = re.compile(
        "|".join(("/" + "work/", "/root" + "/", "pypi" + r"\.org", "deb\\.debian" + r"\.org", "npmjs" + r"\."))
    )
    for name in tracked:
        path = ROOT / name
        if path.suffix in (".png", ".mo", ".woff2") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        found = banned.search(text)
        assert found is None, f"{name}: {found.group(0) if found else ''}"


def test_modules_stay_small_enough_to_read() -> None:
    """Past this there is a second noun inside."""
    long = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in [*modules(AGENT), *modules(COLLECTOR), *modules(PROTO)]
        if len(path.read_text().splitlines()) > LINES_MAX
    }
    assert not long
