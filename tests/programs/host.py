"""The host's own numbers: what a container must not see."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil

SECTOR_KIB = 0.5
"""KiB of a sector of /proc/diskstats: 512 bytes, whatever the disk's are."""


def cpus() -> int:
    """How many CPUs it has."""
    return os.cpu_count() or 1


def boot() -> float:
    """When it was booted, in seconds since the epoch."""
    return psutil.boot_time()


def load() -> float:
    """Its load average over one minute."""
    return float(Path("/proc/loadavg").read_text().split()[0])


def paged_kib() -> float:
    """What it paged in and out."""
    text = Path("/proc/vmstat").read_text()
    return sum(float(value) for value in re.findall(r"^pgpg(?:in|out) (\d+)", text, re.MULTILINE))


def disk_kib() -> float:
    """What its disks read and wrote, each byte once: no partitions, and no loop devices, which
    programs leave out."""
    return SECTOR_KIB * _disks(5, 9)


def disk_requests() -> float:
    """How many reads and writes its disks did."""
    return _disks(3, 7)


def cpu_pressure() -> float:
    """For how many seconds some task waited for a CPU; 0 where the kernel does not count that."""
    try:
        text = Path("/proc/pressure/cpu").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^some .*total=(\d+)", text, re.MULTILINE)
    return int(found[1]) / 1e6 if found else 0.0


def _disks(*columns: int) -> float:
    total = 0.0
    for line in Path("/proc/diskstats").read_text().splitlines():
        words = line.split()
        if Path("/sys/block", words[2]).exists() and not words[2].startswith(("loop", "ram")):
            total += sum(float(words[column]) for column in columns)
    return total
