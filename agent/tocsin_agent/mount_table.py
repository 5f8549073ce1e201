"""Which filesystems are read only, by the kernel's own table: `/proc/self/mountinfo`.

Not the sizes (`mounts.py`). `statvfs` answers for the mount as this process sees it, and a hardened service sees every mount
read only. Invariant: what counts is the superblock, which is the same for everyone on the machine: it is read only when it
was mounted so, or when the kernel made it so after an error.
"""

import re
from pathlib import Path
from typing import Final

MOUNTINFO: Final = Path("/proc/self/mountinfo")
# Since Linux 6.15 ext4 stays "rw" by its flags when it stops writing after an error, and says so in this word.
READ_ONLY: Final = frozenset({"ro", "emergency_ro"})


def read_only(table: Path = MOUNTINFO) -> dict[str, bool]:
    """By mount point; where several mounts lie on one another, the topmost. Empty where there is no such table."""
    try:
        text = table.read_text("utf-8", "surrogateescape")
    except OSError:
        return {}
    found: dict[str, bool] = {}
    for line in text.split("\n"):
        # proc(5): "36 35 98:0 /root /mount/point options [optional fields] - type source superblock-options"
        mount, separator, superblock = line.partition(" - ")
        fields, options = mount.split(" "), superblock.split(" ")
        if separator and len(fields) > 5 and len(options) > 2:
            found[_unescaped(fields[4])] = not READ_ONLY.isdisjoint(options[2].split(","))
    return found


def _unescaped(path: str) -> str:
    r"""Space, tab, newline and backslash stand as \040, \011, \012 and \134."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
