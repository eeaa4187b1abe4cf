"""/proc/partitions: the block devices of the container's /proc/diskstats and their sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.views.view import Reserve, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sysfsd.facts.collector import Facts

_HEADER = "major minor  #blocks  name\n\n"

RESERVE = Reserve()
"""Its lines come as the container uses disks, and do not change."""


def sources(facts: Facts) -> list[Source]:
    """Return the host's line of each device that the container used.

    Which other disks the host has, and how large, is none of the container's business.
    """
    used = {disk.number: disk.source for disk in facts.disk.disks}
    return [
        Source(line.name, line.text, f"the host's: used, says {used[line.number]}")
        for line in facts.host.partitions
        if line.number in used
    ]


def text(items: Sequence[Source]) -> str:
    """Write the lines."""
    return _HEADER + "".join(f"{item.value}\n" for item in items)
