"""The host probes on this very machine, and mounts that hang."""

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from tests.support.virtual_time import run_virtual

from tocsin_agent import mount_worker
from tocsin_agent.config import FilesystemsSettings, HostSettings
from tocsin_agent.framer import Framer
from tocsin_agent.globs import Globs
from tocsin_agent.mount_table import read_only
from tocsin_agent.mounts import HUNG, HUNG_RETRY_S, Answer, ProcessMeter, ThreadMeter
from tocsin_agent.probes import HOST_PROBES, INSTANCES_MAX, PROBES, Column, Family, Measurement, ProbeError, probe_class
from tocsin_agent.probes.filesystems import FilesystemsProbe, watched
from tocsin_agent.probes.processes import ProcessesProbe
from tocsin_agent.probes.sensors import SensorsProbe, _named
from tocsin_agent.probes.services import STATES, ServicesProbe, parse
from tocsin_proto.records import SeriesKind

HOST = HostSettings(filesystems=FilesystemsSettings(ignore=()))


async def collected(probe) -> list[Measurement]:
    return [one async for one in probe.collect()]


def spin(seconds: float) -> None:
    """Uses CPU: shares of CPU time need some to have passed."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@pytest.mark.parametrize("name", HOST_PROBES)
def test_each_host_probe_measures_this_machine_twice_over_the_same_series_objects(name):
    async def main():
        probe = probe_class(name)(HOST)
        spin(0.05)
        first = await collected(probe)
        spin(0.05)
        second = await collected(probe)
        return first, second

    first, second = asyncio.run(main())
    framer = Framer()
    for one in first:
        assert framer.put("host", one.series, one.value, 0) is None, one
        assert one.series.interval_ms == 10_000
        assert type(one.series.interval_ms) is int
        if one.series.metric.endswith("_ratio") and name != "processes":
            assert 0 <= one.value <= 1, one
    assert max(Counter(id(one.series) for one in first).values(), default=1) == 1
    known = {id(one.series) for one in first}
    again = [one for one in second if id(one.series) in known]
    # Mounts and interfaces may come and go while this runs; what stays must be the very same object.
    assert len(again) >= 0.8 * len(first)


def values(name: str, settings: HostSettings = HOST) -> dict[tuple[str, ...], float]:
    async def main():
        probe = probe_class(name)(settings)
        spin(0.1)
        return await collected(probe)

    return {(one.series.metric, *(value for _, value in one.series.labels)): one.value for one in asyncio.run(main())}


def test_cpu_shares_are_per_core_and_overall():
    found = values("cpu")
    cores = psutil.cpu_count()
    assert {key for key in found if key[0] == "cpu.used_ratio"} >= {("cpu.used_ratio", "all")}
    assert sum(key[0] == "cpu.used_ratio" for key in found) >= 2
    assert sum(key[0] == "cpu.used_ratio" for key in found) <= cores + 1
    parts = [found[f"cpu.{part}_ratio", "all"] for part in ("user", "system", "steal")]
    assert found["cpu.used_ratio", "all"] == pytest.approx(sum(parts))


def test_memory_and_system_figures_are_plausible():
    memory, system = values("memory"), values("system")
    assert memory["memory.total_bytes",] == psutil.virtual_memory().total
    assert 0 < memory["memory.available_bytes",] < memory["memory.total_bytes",]
    assert system["system.boot_time_seconds",] == pytest.approx(psutil.boot_time(), abs=2)
    assert 0 < system["system.uptime_seconds",] < 10 * 365 * 86_400


def test_the_root_filesystem_has_the_figures_of_df():
    found, facts = values("filesystems"), os.statvfs("/")
    if ("disk.used_ratio", "/") not in found:
        pytest.fail(f"the root filesystem is not watched: {sorted(found)}")
    used = facts.f_blocks - facts.f_bfree
    assert found["disk.responding", "/"] == 1
    assert found["disk.total_bytes", "/"] == facts.f_blocks * facts.f_frsize
    assert found["disk.used_ratio", "/"] == pytest.approx(used / (used + facts.f_bavail), abs=0.01)


HARDENED = r"""
22 61 0:5 / /proc rw,nosuid - proc proc rw
61 1 8:1 / / ro,relatime shared:1 master:3 - ext4 /dev/sda1 rw,errors=remount-ro
62 61 8:2 / /var ro,relatime shared:2 - ext4 /dev/sda2 ro,errors=remount-ro
63 61 8:3 / /srv/erp\040data\134x ro,relatime - xfs /dev/sdb1 rw,attr2
64 61 0:40 / /backup ro - nfs4 nas:/vol\040ro rw,vers=4.2
65 61 8:4 / /db rw - ext4 /dev/sdc1 rw,emergency_ro
66 61 8:5 / /over rw - ext4 /dev/sdd1 rw
67 66 8:6 / /over ro - ext4 /dev/sde1 ro
a line that the kernel never wrote - x
"""


def test_a_mount_that_is_read_only_for_a_hardened_service_alone_is_not_read_only(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(HARDENED)
    assert read_only(table) == {
        "/proc": False,
        "/": False,
        "/var": True,
        r"/srv/erp data\x": False,
        "/backup": False,
        "/db": True,
        "/over": True,
    }
    assert read_only(tmp_path / "none") == {}


@pytest.mark.parametrize(("options", "value"), [("rw", 0), ("ro", 1)])
def test_what_the_superblock_says_is_reported(tmp_path, options, value):
    mounts = {one.mountpoint: one for one in psutil.disk_partitions(all=True)}
    table = tmp_path / "mountinfo"
    table.write_text("".join(f"1 1 8:1 / {one} ro - ext4 /dev/x {options},quota\n" for one in mounts if " " not in one))

    async def main():
        return await collected(FilesystemsProbe(HOST, table))

    found = {one.value for one in asyncio.run(main()) if one.series.metric == "disk.read_only"}
    assert found == {value}


def test_named_processes_are_counted_and_weighed():
    name = psutil.Process().name()
    settings = HostSettings(processes=(name, "no-such-process-*"))

    async def main():
        probe = ProcessesProbe(settings)
        await collected(probe)
        spin(0.2)
        return {(one.series.metric, one.series.labels[0][1]): one.value for one in await collected(probe)}

    found = asyncio.run(main())
    assert found["process.count", name] >= 1
    assert found["process.memory_bytes", name] > 1_000_000
    assert found["process.cpu_ratio", name] > 0.05
    assert found["process.count", "no-such-process-*"] == 0
    assert found["process.cpu_ratio", "no-such-process-*"] == 0
    assert found["process.count", "all"] >= found["process.count", name]


def test_every_file_beside_the_table_is_a_probe_of_the_table():
    from tocsin_agent import probes

    files = {path.stem for path in Path(probes.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(PROBES)
    assert {target.partition(":")[0].rpartition(".")[2] for target in PROBES.values()} == files


# ------------------------------------------------------------------------------------------------------ mounts


def mount(device: str, mountpoint: str, fstype: str) -> SimpleNamespace:
    return SimpleNamespace(device=device, mountpoint=mountpoint, fstype=fstype)


def test_a_filesystem_is_watched_once_however_often_it_is_mounted():
    mounts = [
        mount("/dev/vda1", "/var/lib/x/bound", "ext4"),
        mount("/dev/vda1", "/", "ext4"),
        mount("proc", "/proc", "proc"),
        mount("tmpfs", "/run/user/0", "tmpfs"),
        mount("tmpfs", "/tmp", "tmpfs"),
        mount("overlay", "/a", "overlay"),
        mount("overlay", "/b", "overlay"),
        mount("/dev/sdb1", "/data", "xfs"),
        mount("nas:/export", "/data", "nfs4"),
        mount("nas:/export", "/mnt/again", "nfs4"),
        mount("/dev/loop1", "/snap/core/1", "squashfs"),
    ]
    kept = {one.mountpoint: one.fstype for one in watched(mounts, Globs(["squashfs", "/run/**"]))}
    assert kept == {"/": "ext4", "/tmp": "tmpfs", "/a": "overlay", "/b": "overlay", "/data": "nfs4"}


@pytest.mark.parametrize(
    ("pattern", "name", "is_in"),
    [
        ("/run/**", "/run", True),
        ("/run/**", "/run/user/1000", True),
        ("/run/**", "/runner", False),
        ("veth*", "veth12ab", True),
        ("eth?", "eth0", True),
        ("lo", "lo0", False),
    ],
)
def test_ignore_patterns_mean_whole_names(pattern, name, is_in):
    assert (name in Globs([pattern])) is is_in


def test_a_network_mount_that_hangs_is_named_and_its_worker_replaced(tmp_path):
    """The worker is stopped as a dead mount would stop it; the mount is hung until it is asked again and answers."""
    path = str(tmp_path)

    async def main():
        meter = ProcessMeter()
        loop = asyncio.get_running_loop()
        healthy = await meter.measure([path], 5.0)
        assert healthy[path].usage is not None
        assert healthy[path].usage[0] == os.statvfs(path).f_blocks * os.statvfs(path).f_frsize
        first = meter.pid
        os.kill(first, signal.SIGSTOP)
        assert await meter.measure([path], 1.0) == {path: HUNG}
        assert meter.pid is None
        assert await meter.measure([path], 1.0) == {path: HUNG}  # not asked again so soon: no process for it
        assert meter.pid is None
        await meter._dying[path].wait()
        loop.now_s += HUNG_RETRY_S + 1
        assert (await meter.measure([path], 5.0))[path].usage is not None
        second = meter.pid
        assert second != first
        os.kill(second, signal.SIGKILL)
        assert (await meter.measure([path], 5.0))[path].usage is not None  # a killed worker is no fault of the mount
        assert await meter.measure([str(tmp_path / "gone")], 5.0) == {str(tmp_path / "gone"): Answer(errno=2)}
        third = meter.pid
        await meter.close()
        return first, second, third

    for pid in run_virtual(main(), patience_s=0.5):
        ends = time.monotonic() + 5
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < ends, "the worker outlives its meter"
            os.sched_yield()


def test_a_local_mount_that_hangs_costs_no_other_its_figures(tmp_path, monkeypatch):
    release = threading.Event()
    paths = [str(tmp_path / name) for name in ("a", "stuck", "b")]
    for path in paths:
        Path(path).mkdir()
    real = mount_worker.measure

    def measure(path):
        if path.endswith("stuck"):
            assert release.wait(20)
        return real(path)

    monkeypatch.setattr(mount_worker, "measure", measure)  # the kernel's part: a call that does not return

    async def main():
        others = threading.enumerate()
        meter = ThreadMeter()
        first = await meter.measure(paths, 1.0)
        again = await meter.measure(paths, 1.0)  # no second thread goes into the same trap
        mine = [thread for thread in threading.enumerate() if thread.name == "mounts" and thread not in others]
        for thread in mine:
            thread.join(0.3)  # one that has answered may still be on its way out
        stuck = [thread for thread in mine if thread.is_alive()]
        release.set()
        for thread in stuck:
            thread.join(5)
        healed = await meter.measure(paths, 5.0)
        return first, again, len(stuck), healed

    first, again, stuck, healed = run_virtual(main(), patience_s=0.3)
    for answers in (first, again):
        assert answers[paths[1]] == HUNG
        assert answers[paths[0]].usage is not None
        assert answers[paths[2]].usage is not None
    assert stuck == 1
    assert all(answer.usage is not None for answer in healed.values())


def test_the_probe_reports_a_hung_network_mount_beside_the_figures_of_the_others(tmp_path, monkeypatch):
    near, far = mount("/dev/vda9", str(tmp_path), "ext4"), mount("nas:/x", str(tmp_path / "far"), "nfs4")
    Path(far.mountpoint).mkdir()
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [near, far])

    async def main():
        probe = FilesystemsProbe(HOST)
        before = await collected(probe)
        os.kill(probe._processes.pid, signal.SIGSTOP)
        hung = await collected(probe)
        await probe.close()
        return before, hung

    before, hung = run_virtual(main(), patience_s=0.5)

    def responding(measured):
        return {one.series.labels[0][1]: one.value for one in measured if one.series.metric == "disk.responding"}

    assert responding(before) == {near.mountpoint: 1, far.mountpoint: 1}
    assert responding(hung) == {near.mountpoint: 1, far.mountpoint: 0}
    assert any(one.series.metric == "disk.used_ratio" for one in hung)


# ------------------------------------------------------------------------------------- sensors, services, families


def test_sensors_of_one_name_are_told_apart():
    def sensor(label, current):
        return SimpleNamespace(label=label, current=current)

    chips = {
        "coretemp": [sensor("Core 0", 40.0), sensor("Core 0", 41.0)],
        "acpitz": [sensor("", 30.0), sensor("x", None)],
    }
    assert _named(chips) == [("acpitz", 30.0), ("coretemp/Core 0", 40.0), ("coretemp/Core 0 #2", 41.0)]


def test_sensors_that_hang_fail_their_probe_until_they_come_back(monkeypatch):
    release = threading.Event()

    def read():
        assert release.wait(20)
        return {"chip": [SimpleNamespace(label="", current=42.0)]}

    monkeypatch.setattr(psutil, "sensors_temperatures", read, raising=False)
    monkeypatch.setattr(psutil, "sensors_fans", dict, raising=False)

    async def main():
        probe = SensorsProbe(HOST)
        with pytest.raises(ProbeError, match="did not answer within 5 s"):
            await collected(probe)
        with pytest.raises(ProbeError, match="since an earlier round"):
            await collected(probe)
        release.set()
        probe._reading.join(5)
        return await collected(probe)

    (one,) = run_virtual(main(), patience_s=0.05)
    assert (one.series.metric, one.value) == ("sensor.temperature_celsius", 42.0)


def test_units_are_read_from_what_systemctl_says():
    said = "LoadState=loaded\nActiveState=active\n\nLoadState=not-found\nActiveState=inactive\n\nActiveState=failed\n"
    assert parse(said, ["a.service", "b.service", "c.service"]) == {
        "a.service": "active",
        "b.service": "not found",
        "c.service": "failed",
    }
    assert STATES["active"] == 1
    with pytest.raises(ProbeError, match="1 of 2"):
        parse("LoadState=loaded\nActiveState=active\n", ["a.service", "b.service"])


def test_systemctl_is_asked_with_a_list_of_arguments_and_its_failure_is_told(tmp_path, monkeypatch):
    fake = tmp_path / "systemctl"
    fake.write_text(
        '#!/bin/sh\nif [ "$5" = "bad;name.service" ]; then echo "No bus" >&2; exit 1; fi\n'
        'echo "$@" > "$0.argv"\necho LoadState=loaded\necho ActiveState=activating\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (one,) = asyncio.run(collected(ServicesProbe(HostSettings(services=("nginx",)))))
    assert (one.series.labels, one.value) == ((("service", "nginx.service"),), STATES["activating"])
    argv = (tmp_path / "systemctl.argv").read_text().split()
    assert argv == ["show", "--property=LoadState,ActiveState", "--", "nginx.service"]
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(ProbeError, match="cannot be started"):
        asyncio.run(collected(ServicesProbe(HostSettings(services=("nginx",)))))


def test_a_family_forgets_instances_that_come_and_go_and_cleans_their_names():
    family = Family("interface", [Column("if.in_bytes", "By", SeriesKind.COUNTER64)], 10_000)
    first = family.of("veth0")
    assert family.of("veth0") is first
    for n in range(1, 5 * INSTANCES_MAX):
        family.of(f"veth{n}")
    assert len(family._known) <= 2 * INSTANCES_MAX
    assert family.of("veth0") == first  # equal by content: the framer finds its place again
    assert family.of("\udcff" * 999)[0].labels == (("interface", "?" * 256),)
