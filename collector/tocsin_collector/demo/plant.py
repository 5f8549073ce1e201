"""The plant of the demo as files: what an operator would write for three devices behind one host.

Not the processes (`stage.py`). Invariant: nothing here is known to the collector in any other way: settings, registry, rules
and credentials are the ordinary files, only with shorter times.
"""

from pathlib import Path
from typing import NamedTuple

from tocsin_proto.settings_print import render

HOST = "this-host"  # the agent: this very machine
SWITCH, SERVER, CONTROLLER = "sw-hall-3", "mes-db", "plc-press-7"
PORT, MOUNT = "port3", "/data"
PORT_NUMBER = 3
DEVICES = (f"switch:{SWITCH}", f"server:{SERVER}", f"controller:{CONTROLLER}")
SITE = "demo-plant"
POLL_S = 2

COLLECTOR = """\
# The collector of the demo: everything on loopback, on ports that are free.
state = {state}
names = ["127.0.0.1", "localhost"]

[ingest]
listen = "127.0.0.1:0"

[enrol]
listen = "127.0.0.1:0"

[web]
listen = "127.0.0.1:{port}"
lang = {lang}

[engine]
hold = "10s"
reopen_within = "20s"

[[channel]]
id = "desk"
url = {url}
secret_file = "desk"
lang = {lang}
"""

REGISTRY = """\
[[site]]
id = "{site}"
name = {{ en = "Demo plant", zh = "演示工厂" }}

[[device]]
id = "{host}"
site = "{site}"
name = {{ en = "This very host", zh = "本机" }}
kind = "server"

[[device]]
id = "{switch}"
site = "{site}"
name = {{ en = "Switch, hall 3", zh = "三号厂房交换机" }}
kind = "switch"
address = "127.0.0.1"
watched_by = "{host}"
snmp = {{ credential = "plant", port = {switch_port}, interval = "{poll}s", timeout = "600ms", retries = 2 }}

[[device]]
id = "{server}"
site = "{site}"
name = {{ en = "Database of the MES", zh = "MES 数据库" }}
kind = "server"
address = "127.0.0.1"
watched_by = "{host}"
parents = ["{switch}"]
snmp = {{ credential = "plant", port = {server_port}, interval = "{poll}s", timeout = "600ms", retries = 2 }}

[[device]]
id = "{controller}"
site = "{site}"
name = {{ en = "Controller of press 7", zh = "七号压机控制器" }}
kind = "controller"
address = "127.0.0.1"
watched_by = "{host}"
parents = ["{switch}"]
snmp = {{ credential = "plant", port = {controller_port}, interval = "{poll}s", timeout = "600ms", retries = 2 }}
"""

RULES = """\
# The built-in rule waits for minutes; a demo cannot.
[[rule]]
id = "filesystem-full"
for_each = "disk.used_ratio"
where = {{ device = "{server}" }}
major = {{ above = 0.90, clear_below = 0.85, for = "2s" }}
affects = "degraded"
says = "{{mount}} on {{device}} is {{value}} full"
"""

AGENT = """\
# Beside the agent.toml that `tocsin-agent enrol` writes: what differs from the defaults.
[host]
interval = "{poll}s"

[uplink]
first_retry_max = "1s"
"""


class Secrets(NamedTuple):
    password: str  # of the administrator
    community: str  # of the devices
    signing: str  # of the webhook


class Folders(NamedTuple):
    """Where the two sides keep their files, and what the processes say."""

    root: Path

    @property
    def collector(self) -> Path:
        return self.root / "collector"

    @property
    def agent(self) -> Path:
        return self.root / "agent"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def agent_settings(self) -> Path:
        return self.agent / "agent.toml"

    @property
    def token(self) -> Path:
        return self.agent / "token"


def write_settings(folders: Folders, secrets: Secrets, *, url: str, port: int, lang: str) -> None:
    """Settings and secrets of both sides: all that does not depend on the devices' ports."""
    for folder in (folders.collector, folders.collector / "secrets", folders.agent, folders.agent / "credentials"):
        folder.mkdir(mode=0o700)
    folders.logs.mkdir()
    state = render(str(folders.collector))
    text = COLLECTOR.format(state=state, port=port, url=render(url), lang=render(lang))
    (folders.collector / "collector.toml").write_text(text, encoding="utf-8")
    write_secret(folders.collector / "secrets" / "desk", secrets.signing)
    write_secret(folders.agent / "credentials" / "plant", secrets.community)
    drop_in = folders.agent / "agent.d"
    drop_in.mkdir()
    (drop_in / "demo.toml").write_text(AGENT.format(poll=POLL_S), encoding="utf-8")


def write_plant(folders: Folders, ports: dict[str, int]) -> None:
    """Registry and rules. ports: device -> UDP port."""
    names = {"host": HOST, "switch": SWITCH, "server": SERVER, "controller": CONTROLLER, "site": SITE, "poll": POLL_S}
    places = {"switch_port": ports[SWITCH], "server_port": ports[SERVER], "controller_port": ports[CONTROLLER]}
    for name, text in (("registry", REGISTRY), ("rules", RULES)):
        folder = folders.collector / name
        folder.mkdir(exist_ok=True)
        (folder / "demo.toml").write_text(text.format(**names, **places), encoding="utf-8")


def write_secret(path: Path, text: str) -> None:
    """Readable by its owner only from its first byte."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(f"{text}\n", encoding="utf-8")
