"""From nothing to the first sample stored: what a newcomer waits for after `tocsin demo`.

The demo's own stage on a fresh state folder: init, collector with its pages, simulated devices, enrolment by the real path,
agent; until the API shows a sample.
"""

import time
from typing import Any

from bench.machine import talk
from tocsin_collector.demo.stage import Stage


def run(*, quick: bool) -> dict[str, Any]:
    found: list[float] = []
    steps: dict[str, float] = {}
    for _ in range(1 if quick else 5):
        took_s, steps = once()
        talk(f"first sample after {took_s:.2f} s; began: {steps}")
        found.append(took_s)
    found.sort()
    return {"first_sample_s": round(found[len(found) // 2], 2), "starts": len(found), "steps_s": steps}


def once() -> tuple[float, dict[str, float]]:
    """Seconds to the first sample, and when each step began."""
    steps: dict[str, float] = {}
    began = time.monotonic()

    def on_step(step: str) -> None:
        steps[step] = round(time.monotonic() - began, 2)

    with Stage(on_step=on_step) as stage:
        stage.start()
        return stage.first_sample_s, steps
