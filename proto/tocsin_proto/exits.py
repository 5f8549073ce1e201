"""Exit codes of the three commands: the same number always means the same thing.

Not the messages that go with them. Invariant: a code, once released, keeps its meaning; units and scripts rely on it.
"""

from typing import Final

OK: Final = 0
PROBLEM: Final = 1  # the check or command ran and found or met a problem
USAGE: Final = 2  # wrong arguments, or an extra that is not installed (click's own code)
WARNINGS: Final = 3  # only warnings, and --strict was asked for
UNREACHABLE: Final = 4  # the collector cannot be reached
REFUSED: Final = 5  # authentication or enrolment was refused; trying again will not help
EX_CONFIG: Final = 78  # the configuration is invalid (sysexits.h); units do not restart on it
INTERRUPTED: Final = 130  # Ctrl-C

# The unit files' RestartPreventExitStatus=: a restart would only meet the same again.
PERMANENT: Final = (EX_CONFIG, REFUSED)
