"""Files and folders that survive a power loss, or go away as a whole.

Not the spool's segments, which are appended to. Invariant: after `write_atomic` the file is the old or the new one, whole,
whenever the machine stops.
"""

import contextlib
import os
from pathlib import Path


def write_atomic(path: Path, body: bytes) -> None:
    """For its owner alone (0600). OSError: the file is as it was before."""
    fresh = path.with_name(path.name + ".tmp")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(handle)
    fresh.replace(path)


def sync_folder(folder: Path) -> None:
    """Makes names durable; where folders cannot be synced (Windows) this does nothing."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def remove_folder(folder: Path) -> None:
    """A folder of files, as far as it goes: whoever opens it next must bear with what stays behind."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                path.unlink()
        folder.rmdir()
