"""/proc/diskstats: the block devices that the container used, with what it did on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.views.view import Reserve, Source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sysfsd.facts.collector import Facts
    from sysfsd.facts.disk import DiskCounters

_SECTOR = 512
"""The kernel counts in sectors of 512 bytes, whatever the device's are."""

RESERVE = Reserve(digits=12)
"""Sectors of 512 TB, and milliseconds of 31 years."""


def sources(facts: Facts) -> list[Source]:
    """Return one item for each device that it used; no item where nothing is known."""
    columns: Mapping[str, int] = {line.number: line.columns for line in facts.host.diskstats}
    return [
        Source(
            disk.name,
            _line(disk.number, disk.name, disk.counters, columns[disk.number]),
            f"{disk.source}; 0 is what nobody counts: merges, times, ...",
        )
        for disk in facts.disk.disks
    ]


def text(items: Sequence[Source]) -> str:
    """Write the lines."""
    return "".join(f"{item.value}\n" for item in items)


def _line(number: str, name: str, done: DiskCounters, columns: int) -> str:
    """Write one line of as many numbers as the host's file has (the kernel's admin-guide/iostats).

    Reads, writes, what is in flight and for how long; discards since 4.18, flushes since 5.5.
    """
    major, _, minor = number.partition(":")
    numbers = (
        done.reads,
        done.reads_merged,
        done.read_bytes // _SECTOR,
        _milliseconds(done.read_ns),
        done.writes,
        done.writes_merged,
        done.written_bytes // _SECTOR,
        _milliseconds(done.write_ns),
        0,
        _milliseconds(done.busy_ns),
        _milliseconds(done.read_ns + done.write_ns + done.discard_ns),
        done.discards,
        done.discards_merged,
        done.discarded_bytes // _SECTOR,
        _milliseconds(done.discard_ns),
        0,
        0,
    )
    return " ".join((f"{major:>4} {minor:>7} {name}", *map(str, numbers[:columns])))


def _milliseconds(nanoseconds: int) -> int:
    return nanoseconds // 1_000_000
