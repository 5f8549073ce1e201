"""On which line of a TOML text each key stands, which `tomllib` does not tell.

Not a parser: the text has been parsed by `tomllib` before and is known to be valid; only positions are found here.
Invariant: every table, key and array item of a valid text is found, so that no message has to point nowhere.
"""

import re
import tomllib
from bisect import bisect_right
from typing import Final

KeyPath = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n,]+|#[^\n]*)*+")
_SPACE: Final = re.compile(r"[ \t]*+")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]++")
# Longest opening first: three quotes are no empty string with a stray quote behind it.
_STRING: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+"""{1,3}'
    r"|'''(?:[^']|'(?!''))*+'''{1,3}"
    r'|"(?:[^"\\]|\\.)*+"'
    r"|'[^']*+'",
    re.DOTALL,
)
_SCALAR: Final = re.compile(r"[^,\]}\n#]++")


def scan(text: str) -> dict[KeyPath, int]:
    """Lines from 1, by path: ("device", 2, "snmp", "version"). `text` is valid TOML with "\\n" or "\\r\\n" line ends."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.elements: dict[KeyPath, int] = {}  # arrays of tables: how many elements so far
        self.breaks = [found.start() for found in re.finditer("\n", text)]

    def document(self) -> None:
        table: KeyPath = ()
        while self.skip(_BLANK) < len(self.text):
            line = self.line()
            if self.text.startswith("[[", self.at):
                table = self.header(2)
            elif self.text[self.at] == "[":
                table = self.header(1)
            else:
                self.assignment(table)
                continue
            self.lines[table] = line

    def header(self, brackets: int) -> KeyPath:
        line = self.line()
        self.at += brackets
        *parents, last = self.keys()
        self.at += brackets
        path: KeyPath = ()
        for key in parents:
            path = self.inside((*path, key), line)
        path = (*path, last)
        if brackets == 1:
            return path
        self.lines.setdefault(path, line)
        self.elements[path] = self.elements.get(path, 0) + 1
        return self.inside(path, line)

    def inside(self, path: KeyPath, line: int) -> KeyPath:
        """The path itself, or its newest element when it is an array of tables."""
        self.lines.setdefault(path, line)
        return (*path, self.elements[path] - 1) if path in self.elements else path

    def assignment(self, table: KeyPath) -> None:
        line = self.line()
        path = table
        for key in self.keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self.at += 1  # the equals sign
        self.skip(_SPACE)
        self.value(path)

    def keys(self) -> list[str]:
        found: list[str] = []
        while True:
            self.skip(_SPACE)
            start = self.at
            if self.text[start] in "\"'":
                self.skip(_STRING)
                found.append(tomllib.loads(f"key = {self.text[start : self.at]}")["key"])
            else:
                self.skip(_BARE)
                found.append(self.text[start : self.at])
            self.skip(_SPACE)
            if self.text[self.at] != ".":
                return found
            self.at += 1

    def value(self, path: KeyPath) -> None:
        opening = self.text[self.at]
        if opening in "\"'":
            self.skip(_STRING)
        elif opening == "[":
            self.at += 1
            index = 0
            while self.text[self.skip(_BLANK)] != "]":
                self.lines[(*path, index)] = self.line()
                self.value((*path, index))
                index += 1
            self.at += 1
        elif opening == "{":
            self.at += 1
            while self.text[self.skip(_BLANK)] != "}":
                self.assignment(path)
            self.at += 1
        else:
            self.skip(_SCALAR)

    def skip(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return self.at

    def line(self) -> int:
        return bisect_right(self.breaks, self.at - 1) + 1
