"""`python -m tests.sim SEED`: play one seed and tell what happens."""

import logging
import sys
import time

import structlog
from tests.sim.run import play


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    seed = int(sys.argv[1])
    began = time.perf_counter()
    world = play(seed, speak=print)
    print(world.weather)
    print(
        f"seed {seed} is clean: {world.collector.batcher.entries} entries, {world.collector.past.commits} commits, "
        f"{world.collector.past.restarts} starts, {time.perf_counter() - began:.2f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
