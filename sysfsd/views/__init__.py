"""Views: what a container sees at one path. One module per file or family, and this table.

A view is a pure function of `Facts`. To add one, write a module with a function from facts to
`Source`s and a function that formats those, and append one line to `VIEWS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.views import (
    cpuinfo,
    diskstats,
    loadavg,
    meminfo,
    partitions,
    pressure,
    slabinfo,
    stat,
    swaps,
    syscpu,
    sysmemory,
    sysnode,
    uptime,
    vmstat,
)
from sysfsd.views.view import MEMBER, Family, Links, Reserve, Source, View, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DIRECTORIES",
    "LINKS",
    "VIEWS",
    "Family",
    "Links",
    "Reserve",
    "Source",
    "View",
    "attach_points",
    "known_by",
    "one_line",
]

VIEWS: tuple[View | Family, ...] = (
    View("proc/uptime", uptime.sources, uptime.text, moves=uptime.RESERVE),
    View("proc/meminfo", meminfo.sources, meminfo.text, moves=meminfo.RESERVE),
    View("proc/cpuinfo", cpuinfo.sources, cpuinfo.text, moves=cpuinfo.RESERVE),
    View("proc/stat", stat.sources, stat.text, moves=stat.RESERVE),
    View("proc/loadavg", loadavg.sources, loadavg.text, moves=loadavg.RESERVE),
    View("proc/swaps", swaps.sources, swaps.text, moves=swaps.RESERVE),
    View("sys/devices/system/cpu/online", syscpu.sources, one_line),
    View("sys/devices/system/cpu/possible", syscpu.sources, one_line),
    View("sys/devices/system/cpu/present", syscpu.sources, one_line),
    *syscpu.FILES,
    *sysnode.FILES,
    *sysmemory.FILES,
    View("proc/diskstats", diskstats.sources, diskstats.text, moves=diskstats.RESERVE),
    View("proc/partitions", partitions.sources, partitions.text, moves=partitions.RESERVE),
    View("proc/vmstat", vmstat.sources, vmstat.text, moves=vmstat.RESERVE),
    View("proc/slabinfo", slabinfo.sources, slabinfo.text, mode=0o400),
    *pressure.FILES,
)
"""The one table. Append only: the position of a view is part of the inode numbers of its files."""

LINKS: tuple[Links, ...] = (*sysnode.LINKS,)
"""The symbolic links between them. Append only, too."""

DIRECTORIES = (
    "sys/devices/system/cpu",
    "sys/devices/system/node",
    "sys/devices/system/memory",
)
"""Directories that are shown as a whole: what is in them depends on the container, and what is not
in the table must not be seen. A file system of ours over a directory of /proc is another matter
(see ``attach``); below /sys nobody minds."""


def attach_points(views: Sequence[View | Family]) -> list[str]:
    """Return what is to be covered in a container so that it sees these views; pure."""
    points: list[str] = []
    for view in views:
        point = next((each for each in DIRECTORIES if view.path.startswith(f"{each}/")), view.path)
        if point not in points:
            points.append(point)
    return points


def known_by(view: View | Family, first_cpu: int, first_node: int) -> str:
    """Return the path whose presence tells that the host itself has such a file; pure.

    A kernel without NUMA has no nodes, an older release knows fewer vulnerabilities, and not every
    architecture shows its caches: containers are not to see more than that. Of families, the first
    member speaks for all, and one file for the blocks of memory, whose numbers may start anywhere.
    """
    if view.path.startswith("sys/devices/system/memory/"):
        return "sys/devices/system/memory/block_size_bytes"
    first = first_node if view.path.startswith("sys/devices/system/node/") else first_cpu
    return view.path.replace(MEMBER, str(first))
