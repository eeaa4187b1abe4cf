"""/proc/vmstat: every line that the host's file has, with the container's own value.

Amounts (``nr_*``) are those of its /proc/meminfo, in pages, so that the two agree; events are what
its cgroup counts. All else is 0: not known is not the host's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sysfsd.facts.sourced import Sourced
from sysfsd.views import meminfo
from sysfsd.views.view import Reserve, Source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sysfsd.facts.collector import Facts

_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024

Count = Sourced[int]

PAGES: Mapping[str, tuple[str, ...]] = {
    "nr_free_pages": ("MemFree",),
    "nr_inactive_anon": ("Inactive(anon)",),
    "nr_active_anon": ("Active(anon)",),
    "nr_inactive_file": ("Inactive(file)",),
    "nr_active_file": ("Active(file)",),
    "nr_unevictable": ("Unevictable",),
    "nr_zone_inactive_anon": ("Inactive(anon)",),
    "nr_zone_active_anon": ("Active(anon)",),
    "nr_zone_inactive_file": ("Inactive(file)",),
    "nr_zone_active_file": ("Active(file)",),
    "nr_zone_unevictable": ("Unevictable",),
    "nr_zone_write_pending": ("Dirty", "Writeback"),
    "nr_mlock": ("Mlocked",),
    "nr_slab_reclaimable": ("SReclaimable",),
    "nr_slab_unreclaimable": ("SUnreclaim",),
    "nr_anon_pages": ("AnonPages",),
    "nr_mapped": ("Mapped",),
    "nr_file_pages": ("Cached", "Buffers", "SwapCached"),
    "nr_dirty": ("Dirty",),
    "nr_writeback": ("Writeback",),
    "nr_shmem": ("Shmem",),
    "nr_page_table_pages": ("PageTables",),
    "nr_sec_page_table_pages": ("SecPageTables",),
    "nr_swapcached": ("SwapCached",),
}
"""The lines that are amounts, and the lines of meminfo of which they are the sum."""

HUGE_PAGES: Mapping[str, str] = {
    "nr_anon_transparent_hugepages": "AnonHugePages",
    "nr_shmem_hugepages": "ShmemHugePages",
    "nr_file_hugepages": "FileHugePages",
}
"""Those that count huge pages."""

KILOBYTES: Mapping[str, str] = {"nr_kernel_stack": "KernelStack"}
"""The one that is in kB, in spite of its name."""

_EVENTS = ("pg", "workingset_", "thp_", "pswp", "zswp", "swpin_", "swpout_", "numa_")
"""How the keys of memory.stat begin that are events, and called like the lines here."""

_DISK = {"pgpgin": "read_bytes", "pgpgout": "written_bytes"}
"""In kB, and about disks: in v1's memory.stat these names mean pages charged and uncharged."""

_THRESHOLDS = ("nr_dirty_threshold", "nr_dirty_background_threshold")

RESERVE = Reserve(digits=16)
"""Events are counted without end."""


def sources(facts: Facts) -> list[Source]:
    """Return one item for each line of the host's file."""
    own = {item.name: item for item in meminfo.sources(facts)}
    items: list[Source] = []
    for name in facts.host.vmstat:
        count = _count(facts, name, own)
        items.append(Source(name, str(count.value), count.source))
    return items


def text(items: Sequence[Source]) -> str:
    """Write the lines."""
    return "".join(f"{item.name} {item.value}\n" for item in items)


def _count(facts: Facts, name: str, own: Mapping[str, Source]) -> Count:
    amount = _amount(facts, name, own)
    if amount is not None:
        return amount
    if name in _DISK:
        return _disk(facts, _DISK[name])
    if name in _THRESHOLDS:
        return _threshold(facts, name, own)
    if name == "oom_kill":
        return facts.oom_kills
    if name.startswith(_EVENTS):
        count = facts.memory.events(name)
        if count is not None:
            return count
    return Sourced(0, "0: the kernel does not count it per cgroup")


def _amount(facts: Facts, name: str, own: Mapping[str, Source]) -> Count | None:
    if name in PAGES:
        lines, per_unit = PAGES[name], _PAGE_KB
    elif name in HUGE_PAGES:
        lines, per_unit = (HUGE_PAGES[name],), facts.host.memory("Hugepagesize").value // 1024
    elif name in KILOBYTES:
        lines, per_unit = (KILOBYTES[name],), 1
    else:
        return None
    known = [own[line] for line in lines if line in own]
    kilobytes = min(sum(_kilobytes(own, line) for line in lines), _kilobytes(own, "MemTotal"))
    source = "; ".join(f"{item.name} of /proc/meminfo: {item.source}" for item in known)
    return Sourced(kilobytes // per_unit if per_unit else 0, source or "0: not in /proc/meminfo")


def _kilobytes(own: Mapping[str, Source], line: str) -> int:
    return int(own[line].value) if line in own else 0


def _disk(facts: Facts, counter: str) -> Count:
    """Return the sum over the disks, in kB."""
    total: int = getattr(facts.disk.total, counter)
    return Sourced(total // 1024, f"sum over the disks of /proc/diskstats: {facts.disk.source}")


def _threshold(facts: Facts, name: str, own: Mapping[str, Source]) -> Count:
    """How much may be dirty before writers have to write: the host's share of what is available.

    That is how the kernel's mm/page-writeback.c does it for a cgroup, too.
    """
    host = facts.host.vmstat[name]
    available = _kilobytes(own, "MemAvailable")
    whole = max(1, facts.host.memory("MemAvailable").value // 1024)
    share = min(host, host * available // whole, available // _PAGE_KB)
    return Sourced(share, "the host's share of its MemAvailable, of the container's MemAvailable")
