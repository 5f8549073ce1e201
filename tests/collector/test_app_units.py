import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tocsin_proto import exits

UNITS = Path(__file__).parents[2] / "systemd"
EXPOSURE_MAX = {"tocsin-collector.service": 1.5, "tocsin-agent.service": 2.5}

has_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def settings_of(name: str) -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNITS / name)
    return unit


@has_systemd
@pytest.mark.parametrize("name", EXPOSURE_MAX)
def test_a_unit_exposes_no_more_than_it_must(name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNITS / name)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    level = re.search(r"exposure level for \S+: ([0-9.]+)", said)
    assert level is not None, said
    assert float(level[1]) <= EXPOSURE_MAX[name], said


@has_systemd
@pytest.mark.parametrize("name", EXPOSURE_MAX)
def test_systemd_understands_every_line_of_a_unit(name: str, tmp_path: Path) -> None:
    # With a program that is there: the real one is not installed where the tests run.
    unit = tmp_path / name
    unit.write_text(re.sub(r"/usr/bin/tocsin-\w+", "/bin/true", (UNITS / name).read_text()))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert name not in done.stderr, done.stderr


@pytest.mark.parametrize("name", EXPOSURE_MAX)
def test_a_unit_is_not_started_again_on_what_another_start_cannot_mend(name: str) -> None:
    service = settings_of(name)["Service"]
    codes = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert exits.EX_CONFIG in codes
    assert codes <= set(exits.PERMANENT)
    assert service["Restart"] == "on-failure"


@pytest.mark.parametrize("name", EXPOSURE_MAX)
def test_a_unit_is_watched_and_ready_only_when_it_says_so(name: str) -> None:
    service = settings_of(name)["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
