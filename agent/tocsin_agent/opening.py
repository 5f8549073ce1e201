"""What a spool finds in its folder when it opens: who holds it, how it was left, what is still to be delivered.

Not the spool itself (`spool`). Invariant: what these say of a folder errs to the unclean side, so that in doubt a new
id is taken and no number is given twice.
"""

import sys
from io import FileIO
from pathlib import Path
from typing import Final

import structlog

from tocsin_agent.durable import sync_folder
from tocsin_agent.generation import Generation
from tocsin_agent.sidefiles import MARKER, Marker, read_marker
from tocsin_proto.records import Gap

GENERATIONS_MAX: Final = 4  # older than the present one

log = structlog.get_logger()


class SpoolBusyError(Exception):
    """Another agent has this spool open: two of them would give one number to two frames."""


def taken(folder: Path) -> Marker | None:
    """The marker, which is gone from the disk then: from here on any end but `close` is an unclean one."""
    marker = read_marker(folder)
    try:
        (folder / MARKER).unlink(missing_ok=True)
    except OSError as exc:
        log.warning("spool folder cannot be written", folder=str(folder), error=str(exc))
        return None
    sync_folder(folder)
    return marker


def kept(old: list[Generation]) -> tuple[list[Generation], list[Gap]]:
    """The generations that are still to be delivered, and what was given up to stay within the bound."""
    waiting = [one for one in old if not one.drained]
    gaps = [gap for gap in (one.conclude() for one in old) if gap is not None]
    for one in waiting[:-GENERATIONS_MAX]:
        from_ms, to_ms = one.span_ms() or (0, 0)
        gaps.append(Gap(0, 0, from_ms, to_ms, "too many unclean starts", frames=one.count()))
    for one in old:
        if one not in waiting[-GENERATIONS_MAX:]:
            one.remove()
    return waiting[-GENERATIONS_MAX:], gaps


def goes_on(newest: Generation, marker: Marker) -> bool:
    """Whether the folder is what the marker says; otherwise numbers might be given twice."""
    return not newest.damaged and newest.last_kept == marker.last_kept


def locked(folder: Path) -> FileIO | None:
    """None where the folder cannot be written, or the platform has no such lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = FileIO(folder / "lock", "w")
    except OSError as exc:
        log.warning("spool folder cannot be written", folder=str(folder), error=str(exc))
        return None
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            file.close()
            raise SpoolBusyError(
                f"{folder}: another agent has this spool open; stop it, or give this one its own"
            ) from exc
    return file
