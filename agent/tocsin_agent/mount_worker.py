"""Asks the kernel about filesystems, one path a line: a program of its own, so that it can be killed.

A call into a dead network mount never returns and cannot be cancelled from within. This file is started by path in a
bare interpreter and imports nothing of ours: it must stay small (one extra process of some 8 MiB, only on hosts that
have network mounts). It ends when its stdin closes, so no orphan outlives the agent.
"""

import json
import os
import stat
import sys

# total, used and free bytes, inodes, free inodes, mounted read only
Usage = tuple[int, int, int, int, int, bool]


def measure(path: str) -> Usage | None:
    """Sizes of the filesystem mounted at `path` as `df` counts them; None when it is no folder (a bound file).

    Raises OSError as the kernel does. May block for ever.
    """
    if not stat.S_ISDIR(os.stat(path).st_mode):  # noqa: PTH116 - this program stays bare
        return None
    facts = os.statvfs(path)
    unit = facts.f_frsize
    return (
        facts.f_blocks * unit,
        (facts.f_blocks - facts.f_bfree) * unit,
        facts.f_bavail * unit,
        facts.f_files,
        facts.f_ffree,
        bool(facts.f_flag & os.ST_RDONLY),
    )


def main() -> None:
    for line in sys.stdin.buffer:
        answer: dict[str, object]
        try:
            answer = {"usage": measure(json.loads(line))}
        except OSError as error:
            answer = {"errno": error.errno or 0}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
