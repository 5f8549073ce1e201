"""One seed, from an empty folder to the verdict."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.sim import invariants
from tests.sim.world import Flaws, World

MEMORY = Path("/dev/shm")  # a crash here is of a process, not of a disk: nothing is gained by a real one


class Broken(AssertionError):
    """A law was broken. Says by which seed, and what happened last."""


def play(seed: int, *, flaws: Flaws | None = None, speak: Callable[[str], None] | None = None) -> World:
    """Play the seed and judge it. Broken names the seed and the last events."""
    with tempfile.TemporaryDirectory(prefix="sim", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        world = World(seed, Path(folder), flaws=flaws, speak=speak)
        try:
            world.play()
            invariants.check(world)
        except Exception as exc:
            raise Broken(
                f"{type(exc).__name__}: {exc}\n{world.weather}\nthe last events of seed {seed}:\n{world.agenda.story()}\n"
                f"to play it again: python -m tests.sim {seed}"
            ) from exc
        finally:
            if world.collector.is_up:
                world.collector.crash()
            for agent in world.agents.values():
                if agent.is_up:
                    agent.spool.abandon()
    return world
