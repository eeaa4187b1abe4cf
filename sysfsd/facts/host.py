"""Facts about the host: the ceiling over what a container has, and what views start from."""

from __future__ import annotations

import errno
import os
import time
from functools import cached_property
from typing import TYPE_CHECKING

import psutil

from sysfsd.facts.sourced import Sourced
from sysfsd.kernel import personality
from sysfsd.kernel.cgroups import parse_flat_keyed
from sysfsd.kernel.procfs import (
    DiskLine,
    MeminfoLine,
    parse_cpu_list,
    parse_diskstats,
    parse_meminfo,
    parse_partitions,
    read_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sysfsd.kernel.openfiles import OpenFiles

MAX_SYSFS_BYTES = 1 << 16
"""An attribute of sysfs is one page at most (sysfs.rst); lists of CPUs may be longer."""


def process_started(pid: int) -> float:
    """Return when a process was started, in seconds since boot; raises psutil.NoSuchProcess."""
    return float(psutil.Process(pid).create_time() - psutil.boot_time())


def boot_time_in(files: OpenFiles) -> float:
    """Return what psutil.boot_time() does, in seconds since the epoch, from a file that stays open.

    Raises ``ValueError`` if the host's /proc/stat has no btime, which proc_stat(5) always has.
    """
    for line in (files.read("/proc", "/", "stat") or b"").split(b"\n"):
        if line.startswith(b"btime "):
            return float(line.split()[1])
    raise ValueError("no btime in /proc/stat")


def boottime_ns() -> int:
    """Return nanoseconds since boot, counting suspends, as process start times do."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class HostFacts:
    """What the host's own files say, read at most once in the life of this object."""

    def __init__(
        self,
        *,
        proc: str = "/proc",
        sys: str = "/sys",
        boot_time: Callable[[], float] = psutil.boot_time,
        domain: int | None = None,
        files: OpenFiles | None = None,
    ) -> None:
        """Make one; what it reads of procfs stays open in `files`."""
        self._proc = proc
        self._sys = sys
        self._boot_time = boot_time
        self._texts: dict[str, str | None] = {}
        self._domain = domain
        self._files = files

    @cached_property
    def meminfo(self) -> tuple[MeminfoLine, ...]:
        """/proc/meminfo, in the kernel's order."""
        return parse_meminfo(self._proc_text("meminfo"))

    @cached_property
    def _meminfo_kb(self) -> Mapping[str, int]:
        return {line.name: line.value for line in self.meminfo}

    def memory(self, name: str) -> Sourced[int]:
        """Return one size of /proc/meminfo, in bytes; 0 if this kernel has no such line."""
        return Sourced(self._meminfo_kb.get(name, 0) * 1024, f"{name} of the host's /proc/meminfo")

    def count(self, name: str) -> int:
        """Return one line of /proc/meminfo that counts pages; 0 if this kernel has none."""
        return self._meminfo_kb.get(name, 0)

    @cached_property
    def cpuinfo(self) -> str:
        """The text of /proc/cpuinfo, as the kernel writes it for our reader's execution domain."""
        with personality.under(self._domain):
            return self._proc_text("cpuinfo")

    @cached_property
    def diskstats(self) -> tuple[DiskLine, ...]:
        """The lines of /proc/diskstats; none if this kernel has no block devices."""
        return parse_diskstats(self._proc_file("diskstats"))

    @cached_property
    def partitions(self) -> tuple[DiskLine, ...]:
        """The lines of /proc/partitions; none if this kernel has no block devices."""
        return parse_partitions(self._proc_file("partitions"))

    @cached_property
    def vmstat(self) -> Mapping[str, int]:
        """/proc/vmstat, in the kernel's order; empty if this kernel has none."""
        return parse_flat_keyed(self._proc_file("vmstat"))

    def has_disks_below(self, number: str) -> bool:
        """Whether a block device passes its I/O on to others: device mapper and md do."""
        try:
            return bool(os.listdir(f"{self._sys}/dev/block/{number}/slaves"))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _proc_file(self, name: str) -> str:
        try:
            return self._proc_text(name)
        except FileNotFoundError:
            return ""

    def _proc_text(self, name: str) -> str:
        return self._kept_text(self._proc, name)

    def _kept_text(self, top: str, path: str) -> str:
        """Return the text of a file below a directory; it stays open if there is a place for it."""
        if self._files is None:
            return read_text(f"{top}/{path}")
        directory, _, name = path.rpartition("/")
        data = self._files.read(top, f"/{directory}", name)
        if data is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", f"{top}/{path}")
        return data.decode("utf-8", "replace")

    @cached_property
    def online_cpus(self) -> Sourced[tuple[int, ...]]:
        """The numbers of the host's online CPUs."""
        try:
            text = self._sys_text("cpu/online")
        except FileNotFoundError:
            return Sourced(tuple(range(psutil.cpu_count() or 1)), "the host's CPU count")
        return Sourced(parse_cpu_list(text), "the host's /sys/devices/system/cpu/online")

    @cached_property
    def online_nodes(self) -> Sourced[tuple[int, ...]]:
        """The numbers of the host's online NUMA nodes; node 0 on a kernel without NUMA."""
        try:
            text = self._sys_text("node/online")
        except FileNotFoundError:
            return Sourced((0,), "a kernel without NUMA has one node")
        return Sourced(parse_cpu_list(text) or (0,), "the host's /sys/devices/system/node/online")

    def _sys_text(self, name: str) -> str:
        return self._kept_text(f"{self._sys}/devices/system", name)

    def node_file(self, node: int, name: str) -> str | None:
        """Return the text of a file of /sys/devices/system/node/nodeN; None if there is none."""
        return self._optional(f"{self._sys}/devices/system/node/node{node}/{name}")

    def cpu_file(self, cpu: int, name: str) -> str | None:
        """Return the text of a file of /sys/devices/system/cpu/cpuN; None if there is none."""
        return self._optional(f"{self._sys}/devices/system/cpu/cpu{cpu}/{name}")

    def system_file(self, name: str) -> str | None:
        """Return the text of a file of /sys/devices/system; None if there is none."""
        return self._optional(f"{self._sys}/devices/system/{name}")

    def _optional(self, path: str) -> str | None:
        if path not in self._texts:
            try:
                self._texts[path] = read_text(path, limit=MAX_SYSFS_BYTES)
            except OSError:  # some attributes exist and give EIO or ENODEV where they mean nothing
                self._texts[path] = None
        return self._texts[path]

    @cached_property
    def boot_time(self) -> Sourced[int]:
        """When the host was booted, in seconds since the epoch."""
        return Sourced(int(self._boot_time()), "btime of the host's /proc/stat")
