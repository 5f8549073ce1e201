"""Walks of real devices (snmprec files), served by the demo's responder. They lie beside the repository, if at all."""

from pathlib import Path

import pytest

from tocsin_collector.demo.responder import Cell, Kind, Oid, Plain, fixed

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "snmprec"
KINDS: dict[str, Kind] = {
    "2": "integer",
    "4": "octets",
    "6": "oid",
    "64": "address",
    "65": "counter32",
    "66": "gauge32",
    "67": "ticks",
    "70": "counter64",
}


def capture_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.snmprec")) if FOLDER.is_dir() else []


def capture(name: str) -> dict[Oid, Cell]:
    """Lines are `OID|type|value`; a type that ends in x has its value in hex. Skips the test where there is none."""
    path = FOLDER / f"{name}.snmprec"
    if not path.exists():
        pytest.skip(f"needs the capture {name}.snmprec beside the repository")
    cells: dict[Oid, Cell] = {}
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        parts = line.split("|", 2)
        if len(parts) != 3 or "x" in parts[0]:
            continue  # some addresses in OIDs are made anonymous: 10.xx.xx.100
        tag, written = parts[1], parts[2]
        kind = KINDS.get(tag.rstrip("x"))
        if kind is None:
            continue  # Null and Opaque: not served
        data = bytes.fromhex(written) if tag.endswith("x") else written.encode("utf-8", "surrogateescape")
        cells[_oid(parts[0])] = fixed(kind, _plain(kind, data, hexed=tag.endswith("x")))
    return cells


def _plain(kind: Kind, data: bytes, *, hexed: bool) -> Plain:
    if kind == "octets":
        return data
    if kind == "oid":
        return _oid(data.decode())
    if kind == "address":
        return data if hexed else bytes(int(part) for part in data.decode().split("."))
    return int(data)


def _oid(written: str) -> Oid:
    return tuple(int(part) for part in written.strip(".").split("."))
