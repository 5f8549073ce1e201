"""Secrets by name, from files that the operator or systemd put there: never from the command line, never from the wire.

Not encryption at rest: file permissions are the protection. Invariant: a secret leaves this module as a return value
only; errors name the file, never what is in it.
"""

from collections.abc import Sequence
from pathlib import Path

SECRET_BYTES_MAX = 64 * 1024


class Credentials:
    """Looks a name up in folders, in order. Read anew each time: a rotated secret needs no restart."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)

    def __call__(self, name: str) -> str:
        """LookupError when no folder has it, OSError when it cannot be read."""
        if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
            raise LookupError(f"credential {name!r} is no plain file name")
        for folder in self._folders:
            path = folder / name
            if path.is_file():
                return read_secret(path)
        places = " or ".join(str(folder) for folder in self._folders) or "any folder: set credentials.folder"
        raise LookupError(f"credential {name!r} is not in {places}")


def read_secret(path: Path) -> str:
    """The text of a secret's file without its line end. LookupError when it holds no text, OSError as it comes."""
    with path.open("rb") as file:
        raw = file.read(SECRET_BYTES_MAX + 1)
    if len(raw) > SECRET_BYTES_MAX:
        raise LookupError(f"{path} has more than {SECRET_BYTES_MAX} bytes, it should hold one secret")
    try:
        text = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise LookupError(f"{path} is not UTF-8, it should hold one line of text") from None
    if not text:
        raise LookupError(f"{path} is empty, it should hold one line of text")
    return text
