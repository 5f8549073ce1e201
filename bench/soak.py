"""`python -m bench.soak`: the tests marked `soak` with their full counts, every benchmark in full, and bench/SOAK.md of it all.

Ends with 1 when a test failed, when a benchmark lost or doubled anything, or could not be run; a slow figure fails nothing.
"""

import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.__main__ import BENCHMARKS, run
from bench.machine import commit, description, talk

HERE = Path(__file__).parent
OUTCOMES = ("passed", "failed", "error", "errors", "skipped")
NEVER = ("lost", "duplicates")  # figures of a benchmark that must be 0


def main() -> int:
    began = time.monotonic()
    counts, took_s, is_sound = tests(sys.argv[1:])
    benches: dict[str, dict[str, Any]] = {}
    for name in BENCHMARKS:
        try:
            benches[name] = run(name, quick=False)
        except Exception as error:  # the others are still worth their time
            benches[name] = {"failed": f"{type(error).__name__}: {error}"}
        is_sound = is_sound and "failed" not in benches[name] and not any(benches[name].get(one) for one in NEVER)
    text = report(counts, took_s, benches, time.monotonic() - began, is_sound)
    (HERE / "SOAK.md").write_text(text)
    talk(text)
    return 0 if is_sound else 1


def tests(arguments: list[str]) -> tuple[dict[str, int], float, bool]:
    """Counts by outcome, seconds, and whether all that ran passed and something ran."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "soak", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=HERE.parent,
    )
    talk(done.stdout)
    last = done.stdout.strip().rpartition("\n")[2]
    counts = {outcome: int(count) for count, outcome in re.findall(r"(\d+) (\w+)", last) if outcome in OUTCOMES}
    return counts, time.monotonic() - began, done.returncode == 0 and counts.get("passed", 0) > 0


def report(
    counts: dict[str, int], took_s: float, benches: dict[str, dict[str, Any]], total_s: float, is_sound: bool
) -> str:
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "none ran"
    lines = [
        "# The last soak",
        "",
        f"Written by `make soak` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC at commit {commit()}, on {description()}.",
        f"{'Sound' if is_sound else 'NOT sound'}; it took {total_s / 60:.0f} min.",
        "",
        f"Tests marked `soak`: {said}, in {took_s / 60:.0f} min.",
    ]
    for name, figures in benches.items():
        lines += ["", f"## {name}", "", "| figure | value |", "|---|---|"]
        lines += [f"| {figure} | {value} |" for figure, value in figures.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
