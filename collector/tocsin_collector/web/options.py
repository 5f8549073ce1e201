"""What the web process is told at its start: the arguments of `python -m tocsin_collector.web`."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from tocsin_collector.i18n import DEFAULT, LANGUAGES


@dataclass(frozen=True, slots=True)
class Options:
    """`database` is opened read-only; `control` is the engine's socket; `url` is what people type, if a proxy ends TLS."""

    database: Path
    control: Path
    host: str = "127.0.0.1"
    port: int = 0
    language: str = DEFAULT
    session_ms: int = 12 * 3_600_000
    url: str = ""
    certificate: str = ""
    key: str = ""

    @property
    def is_secure(self) -> bool:
        """Whether people reach us by https: then the session's cookie never travels without it."""
        return bool(self.certificate) or self.url.startswith("https://")


def parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tocsin_collector.web", description="pages and API of a collector")
    parser.add_argument("--state", type=Path, required=True, help="the collector's state folder")
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT, port 0: any free one")
    parser.add_argument(
        "--control", "--socket", type=Path, help="the engine's socket (default: control.sock in the state folder)"
    )
    parser.add_argument("--lang", choices=sorted(LANGUAGES), default=DEFAULT, help="language of people who chose none")
    parser.add_argument("--session-ms", type=int, default=12 * 3_600_000, help="how long a login lasts")
    parser.add_argument("--url", default="", help="what people type, when a proxy stands in front")
    parser.add_argument("--certificate", default="", help="serve https with this certificate (PEM)")
    parser.add_argument("--key", default="", help="its key (PEM)")
    found = parser.parse_args(arguments)
    host, colon, port = found.listen.rpartition(":")
    if not colon or not port.isdecimal():
        parser.error(f'--listen: "{found.listen}" has no port, write "127.0.0.1:8080"')
    if bool(found.certificate) != bool(found.key):
        parser.error("--certificate and --key belong together")
    return Options(
        database=found.state / "tocsin.db",
        control=found.control or found.state / "control.sock",
        host=host.strip("[]"),
        port=int(port),
        language=found.lang,
        session_ms=found.session_ms,
        url=found.url,
        certificate=found.certificate,
        key=found.key,
    )
