"""A command on a leash: it is told to stop when the process that started it has ended, however that ended.

Not a supervisor: it becomes the command. Invariant: no process of the demo outlives the demo, not even after `kill -9`,
wherever the kernel can promise that (Linux); elsewhere the demo's own end is all there is.

`python -m tocsin_collector.demo.leash PARENT_PID PROGRAM [ARGUMENT ...]`
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress

PR_SET_PDEATHSIG = 1  # prctl(2); it survives the exec


def main() -> None:
    parent, *command = sys.argv[1:]
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Ended before we asked to be told: nobody will tell us now.
    if os.getppid() != int(parent):
        raise SystemExit(1)
    os.execv(command[0], command)  # noqa: S606 - the program named by our own parent, without a shell


if __name__ == "__main__":
    main()
