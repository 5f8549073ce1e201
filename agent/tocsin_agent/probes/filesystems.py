"""Every mounted filesystem by its mount point: space, inodes, read only, and whether it answers at all.

Not block devices (`disks.py`). Invariant: a mount that hangs costs its own figures and nothing else; it is reported by
`disk.responding` 0.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tocsin_agent import mount_table
from tocsin_agent.config import HostSettings
from tocsin_agent.globs import Globs
from tocsin_agent.mounts import Answer, ProcessMeter, ThreadMeter
from tocsin_agent.probes import INSTANCES_MAX, Column, Family, Measurement, ProbeError
from tocsin_proto.records import SeriesKind

COLUMNS = (
    Column("disk.responding", "1", SeriesKind.STATE, ((1, "responding"), (0, "not responding"))),
    Column("disk.used_ratio", "1"),
    Column("disk.free_bytes", "By"),
    Column("disk.total_bytes", "By"),
    Column("disk.inodes_used_ratio", "1"),
    Column("disk.read_only", "1", SeriesKind.STATE, ((0, "writable"), (1, "read only"))),
)

# Views of the kernel, not places where data lie.
PSEUDO = (
    *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "efivarfs", "fusectl"),
    *("fuse.gvfsd-fuse", "fuse.lxcfs", "fuse.portal", "hugetlbfs", "mqueue", "none", "nsfs", "proc", "pstore", "ramfs"),
    *("rootfs", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs"),
)
# Answered by this machine alone. Whatever is not named here may wait for a network or a user process: own process.
LOCAL = (
    *("apfs", "bcachefs", "btrfs", "devtmpfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fat32", "hfs"),
    *("iso9660", "jfs", "msdos", "nilfs2", "ntfs", "ntfs3", "overlay", "reiserfs", "squashfs", "tmpfs", "udf", "ufs"),
    *("vfat", "xfs", "zfs"),
)
# The mount is hidden or not for our eyes: no fault of the filesystem.
NOT_OURS = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR})


class FilesystemsProbe:
    def __init__(self, host: HostSettings, mountinfo: Path = mount_table.MOUNTINFO) -> None:
        self._family = Family("mount", COLUMNS, host.interval)
        self._ignored = Globs(host.filesystems.ignore)
        self._deadline_s = host.filesystems.deadline / 1000
        self._threads = ThreadMeter()
        self._processes = ProcessMeter()
        self._mountinfo = mountinfo

    async def collect(self) -> AsyncIterator[Measurement]:
        mounts = watched(psutil.disk_partitions(all=True), self._ignored)
        kept = mounts[:INSTANCES_MAX]
        near = [mount.mountpoint for mount in kept if mount.fstype in LOCAL]
        far = [mount.mountpoint for mount in kept if mount.fstype not in LOCAL]
        read_only_mounts = mount_table.read_only(self._mountinfo)
        asking = asyncio.create_task(self._processes.measure(far, self._deadline_s), name="mounts") if far else None
        try:
            for measurement in self._measured(await self._threads.measure(near, self._deadline_s), read_only_mounts):
                yield measurement
            if asking is not None:
                for measurement in self._measured(await asking, read_only_mounts):
                    yield measurement
        finally:
            if asking is not None:
                asking.cancel()
        if len(mounts) > INSTANCES_MAX:
            raise ProbeError(f"{len(mounts)} mounts, {INSTANCES_MAX} are watched: see host.filesystems.ignore")

    async def close(self) -> None:
        await self._threads.close()
        await self._processes.close()

    def _measured(self, answers: dict[str, Answer], read_only_mounts: Mapping[str, bool]) -> Iterable[Measurement]:
        for mount, answer in answers.items():
            if answer.errno in NOT_OURS:
                continue
            responding, used_ratio, free_bytes, total_bytes, inodes_ratio, read_only = self._family.of(mount)
            if answer.hung or answer.errno:
                yield Measurement(responding, 0)
            elif answer.usage is not None:
                total, used, free, inodes, inodes_free, is_read_only = answer.usage
                yield Measurement(responding, 1)
                yield Measurement(read_only, int(read_only_mounts.get(mount, is_read_only)))
                if total == 0:
                    continue  # a filesystem without a size of its own
                # As df: what only root may use counts neither as used nor as free.
                yield Measurement(used_ratio, used / (used + free) if used + free else 1.0)
                yield Measurement(free_bytes, free)
                yield Measurement(total_bytes, total)
                if inodes:
                    yield Measurement(inodes_ratio, (inodes - inodes_free) / inodes)


def watched(mounts: Iterable[Any], ignored: Globs) -> Sequence[Any]:
    """One mount per filesystem: of several mounts of one device the shortest path, of one path the topmost mount."""
    topmost = {mount.mountpoint: mount for mount in mounts}
    best: dict[str, Any] = {}
    for mount in sorted(topmost.values(), key=lambda mount: (len(mount.mountpoint), mount.mountpoint)):
        if mount.fstype in PSEUDO or mount.fstype in ignored or mount.mountpoint in ignored:
            continue
        is_device = mount.device.startswith("/dev/") or mount.fstype not in LOCAL
        best.setdefault(mount.device if is_device else mount.mountpoint, mount)
    return list(best.values())
