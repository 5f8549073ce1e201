"""A real network interface whose cable can be pulled: one end of a veth pair. Needs root and Debian's iproute2."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from tests.support.snmpd import program


@dataclass(frozen=True, slots=True)
class Link:
    """`name` is watched. `cut()` takes its carrier away: operationally down, while it stays switched on (no "shut")."""

    name: str
    peer: str

    def cut(self) -> None:
        _ip("link", "set", self.peer, "down")

    def restore(self) -> None:
        _ip("link", "set", self.peer, "up")


@contextmanager
def link(name: str = "") -> Iterator[Link]:
    """An interface that is up. At most 15 characters in `name`; by default one of this process."""
    program("ip", "iproute2")
    if os.geteuid() != 0:
        pytest.skip("needs root to make a network interface")
    name = name or f"tsn{os.getpid()}"
    pair = Link(name, f"{name[:14]}p")
    made = subprocess.run(
        ["ip", "link", "add", pair.name, "type", "veth", "peer", "name", pair.peer], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"cannot make a veth pair here: {made.stderr.strip()}")
    try:
        _ip("link", "set", pair.peer, "up")
        _ip("link", "set", pair.name, "up")
        yield pair
    finally:
        subprocess.run(["ip", "link", "del", pair.name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
