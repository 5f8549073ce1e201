"""Every benchmark says, in its quick form, what was promised of it. Slow: run by `make check`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.frames import Source, Workload

ROOT = Path(__file__).parents[2]
PROMISED = {
    "e2e": {
        "samples_per_s", "frames_per_s", "ack_p50_ms", "ack_p99_ms", "server_cpu_us_per_frame", "rss_mib", "mtls", "lost",
        "duplicates", "small_frames_per_s",
    },
    "agent": {"rss_mib", "cpu_pct", "series"},
    "demo_start": {"first_sample_s"},
    "floor": {"frames_per_s", "small_frames_per_s"},
    "core": {"quiet_200_msps", "quiet_5000_msps", "active_200_msps", "oracle_ratio"},
}  # fmt: skip


@pytest.mark.check
@pytest.mark.parametrize("name", PROMISED)
def test_a_benchmark_ends_with_one_line_of_all_it_promised(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", name, "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) >= PROMISED[name]
    if name == "e2e":
        assert (figures["lost"], figures["duplicates"], figures["mtls"]) == (0, 0, True)


@pytest.mark.parametrize("workload", [Workload(200, 0.01), Workload(20, 0.01), Workload(200, 0.0)])
def test_a_frame_of_the_loader_is_what_the_codec_would_have_made(workload: Workload) -> None:
    now_ms = 1_800_000_000_000
    source = Source(workload, now_ms)
    source.first()
    for n in range(300):
        source.next(now_ms + n // 3 * 1_000)
        source.check()
