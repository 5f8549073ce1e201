"""A collector as people meet it: real store, engine, pipeline, control socket and web server, under a clock that tests move.

Its plant: a host that watches a switch with two devices behind it. `story` fills a disk and silences the switch.
"""

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from tocsin_collector import accounts, rules_file
from tocsin_collector.control import ControlServer
from tocsin_collector.core.model import Config, Device, Registry, Site, SnmpAccess
from tocsin_collector.desk.outbox import Outbox
from tocsin_collector.ingest.authority import Authority
from tocsin_collector.pipeline import Pipeline
from tocsin_collector.store.sqlite import SqliteStore
from tocsin_collector.verbs import Verbs
from tocsin_collector.web.app import application, listen, make, start
from tocsin_collector.web.options import Options
from tocsin_proto import codec, records
from tocsin_proto.records import Series, SeriesKind

T = TypeVar("T")
START_MS = 1_795_000_000_000
STEP_MS = 10_000
SPOOL = bytes(16)
PASSWORDS = {"ann": "viewer-password", "wang.lei": "operator-password", "root": "admin-password-1"}
ROLES = {"ann": "viewer", "wang.lei": "operator", "root": "admin"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}%(x)s\u202e"

GAUGES = (
    Series("", "cpu.used_ratio", "1", SeriesKind.GAUGE, (("cpu", "0"),), STEP_MS),
    Series("", "disk.used_ratio", "1", SeriesKind.GAUGE, (("mount", "/"),), STEP_MS),
    Series("", "disk.used_ratio", "1", SeriesKind.GAUGE, (("mount", "/data"),), STEP_MS),
    Series("", "memory.total_bytes", "By", SeriesKind.GAUGE, (), STEP_MS),
    Series("", "system.uptime_seconds", "s", SeriesKind.GAUGE, (), STEP_MS),
    Series("sw-hall-3", "device.reachable", "1", SeriesKind.STATE, (), STEP_MS, ((0, "unreachable"), (1, "reachable"))),
    Series(
        "sw-hall-3",
        "if.oper_status",
        "1",
        SeriesKind.STATE,
        (("interface", "Gi0/1"),),
        STEP_MS,
        ((1, "up"), (2, "down")),
    ),
    Series(
        "plc-press-7", "device.reachable", "1", SeriesKind.STATE, (), STEP_MS, ((0, "unreachable"), (1, "reachable"))
    ),
    Series("hmi-2", "device.reachable", "1", SeriesKind.STATE, (), STEP_MS, ((0, "unreachable"), (1, "reachable"))),
    Series("", "if.in_bytes", "By", SeriesKind.COUNTER64, (("interface", HOSTILE[:60]),), STEP_MS),
)
LAYOUT = records.Layout(codec.layout_id(GAUGES), GAUGES)


def registry() -> Registry:
    sites = (Site("shanghai", {"en": "Shanghai", "zh": "上海"}, "Asia/Shanghai", ("line-1", "line-2")),)
    snmp = SnmpAccess()
    return Registry(
        1,
        sites,
        (
            Device("edge-hall-3", "shanghai", kind="server", is_agent=True, owner="Platform"),
            Device(
                "sw-hall-3",
                "shanghai",
                address="192.0.2.1",
                kind="switch",
                watched_by="edge-hall-3",
                snmp=snmp,
                owner="Network",
            ),
            Device(
                "plc-press-7",
                "shanghai",
                {"en": "Press 7", "zh": "7 号压机"},
                "line-2",
                "192.0.2.77",
                "controller",
                ("sw-hall-3",),
                "edge-hall-3",
                snmp,
            ),
            Device(
                "hmi-2",
                "shanghai",
                line="line-2",
                address="192.0.2.78",
                kind="panel",
                parents=("sw-hall-3",),
                watched_by="edge-hall-3",
                snmp=snmp,
                tags={"note": HOSTILE},
            ),
            Device("spare-1", "shanghai", kind="server", address="192.0.2.90", tags={}),
        ),
    )


class _Agents:
    """The one thing the verbs ask of the ingest server, which is not part of this rig: nobody has enrolled."""

    async def revoke(self, agent: str, *, actor: str) -> bool:
        return False


class WebRig:
    """Runs in a thread of its own; `run` passes a coroutine to it and waits."""

    def __init__(self, folder: Path, *, url: str = "") -> None:
        self.folder = folder
        self.now_ms = START_MS
        self.port = 0
        self.trouble = ""
        self._url = url
        self._seq = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),), daemon=True)
        self._failure: BaseException | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "WebRig":
        self._thread.start()
        assert self._ready.wait(30)
        if self._failure:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    # ------------------------------------------------------------------------------------------------------- inside

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        try:
            await self._serve()
        except BaseException as error:
            self._failure = error
            self._ready.set()

    async def _serve(self) -> None:
        clock: Callable[[], int] = lambda: self.now_ms  # noqa: E731
        store = await SqliteStore.open(self.folder / "tocsin.db", channels=("desk",))
        self.pipeline = await Pipeline.start(store, None, clock)
        running = asyncio.create_task(self.pipeline.run())
        verbs = Verbs(
            self.pipeline,
            Authority.create(self.folder / "ca", ("localhost",), START_MS),
            _Agents(),
            Outbox(self.pipeline, self.folder / "tocsin.db", {}, clock=clock, luck=lambda: 0.5),
            enrol_address=lambda: "localhost:7444",
            clock=clock,
            status=self._status,
            metrics=lambda: "tocsin_frames_total 3\n",
            reload=self._reload,
            revoked=self._nothing,
            in_force=lambda: self.config,
        )
        self.config = Config(registry(), rules_file.read(self.folder / "no-rules"))
        await self.pipeline.configure(self.config)
        for name, password in PASSWORDS.items():
            await self.pipeline.administer(_account(name, password))
        self.control = ControlServer(self.folder / "control.sock", verbs.answer)
        await self.control.start()
        options = Options(self.folder / "tocsin.db", self.folder / "control.sock", url=self._url)
        self.web = make(options)
        self.web.clock = clock
        bound = listen(options)
        self.port = bound.getsockname()[1]
        server = start(application(self.web), options)
        serving = asyncio.create_task(server.serve([bound]))
        self._ready.set()
        await self._stop.wait()
        server.should_exit = True
        await serving
        await self.control.stop()
        self.pipeline.stop()
        await running
        await store.close()

    def _status(self) -> dict[str, Any]:
        return {
            "version": "test",
            "last_tick_ms": self.now_ms,
            "trouble": self.trouble,
            "agents": [{"name": "edge-hall-3", "is_connected": True}],
        }

    async def _reload(self) -> Config:
        return self.config

    async def _nothing(self) -> None:
        return None

    # --------------------------------------------------------------------------------------------------- what happens

    def flush(self, *, data: float = 0.4, is_switch_up: bool = True) -> None:
        """Ten seconds go by, and the agent sends what it measured."""
        self.now_ms += STEP_MS
        self._seq += 1
        up = 1.0 if is_switch_up else 0.0
        values = [0.21, 0.63, data, 16.0 * 1024**3, self._seq * 10.0, up, 1.0, up, up]
        section = records.Section(
            LAYOUT.id, self.now_ms, codec.pack_floats(values), codec.pack_u64([self._seq * 10 * 1_500_000])
        )
        clock = records.Clock(self.now_ms, self._seq * STEP_MS, 7)
        frame = records.Frame(self._seq, self._seq - 1, clock, (LAYOUT,) if self._seq == 1 else (), (section,))
        self.run(self._send(frame))

    async def _send(self, frame: records.Frame) -> None:
        self.pipeline.admit("edge-hall-3", SPOOL, frame.seq, frame.follows)
        durable = asyncio.Event()
        raw = codec.encode_agent(frame)
        await self.pipeline.offer_frame("edge-hall-3", SPOOL, raw, frame, lambda _: durable.set())
        await durable.wait()

    def story(self) -> None:
        """A disk fills up and stays full; then the switch stops answering, and what is behind it with it."""
        for _ in range(3):
            self.flush()
        for _ in range(34):
            self.flush(data=0.94)
        for _ in range(12):
            self.flush(data=0.94, is_switch_up=False)

    # -------------------------------------------------------------------------------------------------------- people

    @contextlib.contextmanager
    def client(self, name: str = "", **headers: str) -> Iterator[httpx2.Client]:
        """A browser with a session of that account; without a name: not logged in."""
        with httpx2.Client(base_url=self.base, headers=headers, timeout=20, trust_env=False, verify=False) as client:
            if name:
                client.cookies.set("tocsin_session", self.token(name))
            yield client

    @contextlib.contextmanager
    def api(self, name: str) -> Iterator[httpx2.Client]:
        headers = {"Authorization": f"Bearer {self.token(name)}"}
        with httpx2.Client(
            base_url=f"{self.base}/api/v1", headers=headers, timeout=20, trust_env=False, verify=False
        ) as client:
            yield client

    def token(self, name: str) -> str:
        """A session without the password's work; logging in has tests of its own."""
        secret = secrets.token_urlsafe(32)

        async def begin(connection: Any) -> Any:
            account = await accounts.find(connection, name)
            assert account is not None
            return await accounts.start_session(
                connection, account, secret, label="test", ttl_ms=86_400_000, now_ms=self.now_ms
            )

        self.run(self.pipeline.administer(begin))
        return secret


def _account(name: str, password: str) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    hashed = _hashed(password)

    async def create(connection: Any) -> Any:
        return await accounts.create(
            connection,
            name=name,
            password_hash=hashed,
            role=ROLES[name],  # type: ignore[arg-type]
            actor="test",
            now_ms=START_MS,
        )

    return create


@cache
def _hashed(password: str) -> str:
    return accounts.hash_password(password)


@contextlib.contextmanager
def web_rig(folder: Path, **arguments: Any) -> Iterator[WebRig]:
    with WebRig(folder, **arguments) as rig:
        yield rig
