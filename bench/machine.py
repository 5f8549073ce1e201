"""What the benchmarks ask of the machine: processor time and memory of a process and its children, and what machine it is.

Linux only (/proc), as the figures are. Not a profiler.
"""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cpu_s(pid: int) -> float:
    """Seconds of processor time of the process, threads that have ended too, and of the children that it has waited for."""
    # The name in brackets may hold anything; the figures come after the last bracket.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ended_children_s = (int(fields[13]) + int(fields[14])) / _TICKS
    return time.clock_gettime(_process_clock(pid)) + ended_children_s


def _process_clock(pid: int) -> int:
    """The id of another process's processor clock, as clock_getcpuclockid(3) makes it: to the nanosecond, not to the tick."""
    return (~pid << 3) | 2


def tree(pid: int) -> list[int]:
    """The process and all that descend from it now."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def rss_mib(pid: int) -> float:
    return _kib(pid, "VmRSS") / 1024


def rss_peak_mib(pid: int) -> float:
    return _kib(pid, "VmHWM") / 1024


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def description() -> str:
    """ "2 cores of Xeon ..., Python 3.11.7, Linux 6.1"."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, Linux {kernel}"


def _kib(pid: int, name: str) -> int:
    (line,) = [line for line in _lines(f"/proc/{pid}/status") if line.startswith(f"{name}:")]
    return int(line.split()[1])


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
