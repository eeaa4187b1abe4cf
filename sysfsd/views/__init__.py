"""Views: what a container sees at one path. One module per file or family, and this table.

A view is a pure function of `Facts`. To add one, write a module with a function from facts to
`Source`s and a function that formats those, and append one line to `VIEWS`.
"""

from __future__ import annotations

from sysfsd.views import (
    cpuinfo,
    diskstats,
    loadavg,
    meminfo,
    partitions,
    slabinfo,
    stat,
    swaps,
    syscpu,
    uptime,
    vmstat,
)
from sysfsd.views.view import Source, View

__all__ = ["VIEWS", "Source", "View"]

VIEWS: tuple[View, ...] = (
    View("proc/uptime", uptime.sources, uptime.text),
    View("proc/meminfo", meminfo.sources, meminfo.text),
    View("proc/cpuinfo", cpuinfo.sources, cpuinfo.text),
    View("proc/stat", stat.sources, stat.text),
    View("proc/loadavg", loadavg.sources, loadavg.text),
    View("proc/swaps", swaps.sources, swaps.text),
    View("sys/devices/system/cpu/online", syscpu.sources, syscpu.text),
    View("sys/devices/system/cpu/possible", syscpu.sources, syscpu.text),
    View("sys/devices/system/cpu/present", syscpu.sources, syscpu.text),
    View("proc/diskstats", diskstats.sources, diskstats.text),
    View("proc/partitions", partitions.sources, partitions.text),
    View("proc/vmstat", vmstat.sources, vmstat.text),
    View("proc/slabinfo", slabinfo.sources, slabinfo.text, mode=0o400),
)
"""The one table. Append only: the position of a view is part of the inode numbers of its files."""
