"""/proc/meminfo: every line that the host's file has, with the container's own value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.facts.sourced import Sourced, saturating_sub
from sysfsd.views.view import Reserve, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sysfsd.facts.collector import Facts

Size = Sourced[int]
"""Bytes."""


def mem_total(facts: Facts) -> Size:
    """What the container may use."""
    return facts.memory.total


def mem_free(facts: Facts) -> Size:
    """What it may still use, at most what is free on the host: nobody gets more than that."""
    memory, host = facts.memory, facts.host.memory("MemFree")
    own = saturating_sub(memory.total.value, memory.used.value)
    if host.value < own:
        return host
    return Sourced(own, f"MemTotal - {memory.used.source}")


def mem_available(facts: Facts) -> Size:
    """What it can get without swapping: what it does not use, and what the kernel can take back.

    The kernel subtracts its low watermarks here; a cgroup has none, its last page can be used.
    """
    memory, host = facts.memory, facts.host.memory("MemAvailable")
    back = cached_files(facts).value + slab_reclaimable(facts).value
    own = saturating_sub(memory.total.value, saturating_sub(memory.used.value, back))
    if host.value < own:
        return host
    why = _stat_source(facts, "active_file", "inactive_file", "slab_reclaimable")
    return Sourced(own, f"MemTotal - {memory.used.source} + {why}")


def cached_files(facts: Facts) -> Size:
    """Page cache on the file lists: without tmpfs, which cannot be dropped."""
    return _sum(facts, "active_file", "inactive_file")


def cached(facts: Facts) -> Size:
    """Page cache. The kernel's own line leaves out the swap cache, which it shows as a line."""
    file, swap = facts.memory.part("file"), facts.memory.part("swapcached")
    return Sourced(saturating_sub(file.value, swap.value), f"{file.source} - swapcached")


def slab_reclaimable(facts: Facts) -> Size:
    """Slab that can be taken back; page cache and it are parts of one use."""
    slab = facts.memory.part("slab_reclaimable")
    room = saturating_sub(facts.memory.used.value, facts.memory.part("file").value)
    return Sourced(min(slab.value, room), slab.source)


def slab_unreclaimable(facts: Facts) -> Size:
    """Slab that stays."""
    size = facts.memory.part("slab_unreclaimable")
    room = saturating_sub(facts.memory.used.value, slab_reclaimable(facts).value)
    return Sourced(min(size.value, room), size.source)


def slab(facts: Facts) -> Size:
    """All slab."""
    own = slab_reclaimable(facts).value + slab_unreclaimable(facts).value
    return Sourced(own, f"SReclaimable + SUnreclaim of {facts.memory.stat_source}")


def swap_free(facts: Facts) -> Size:
    """What is left of its swap."""
    total, used = facts.memory.swap_total, facts.memory.swap_used
    return Sourced(total.value - used.value, f"SwapTotal - {used.source}")


def zswapped(facts: Facts) -> Size:
    """What of its swap is kept compressed in memory, before compression: a part of the swap."""
    memory = facts.memory
    size = memory.stat.get("zswapped")
    if size is None:
        return memory.part("zswapped")
    return Sourced(min(size, memory.swap_used.value), f"zswapped of {memory.stat_source}")


def commit_limit(facts: Facts) -> Size:
    """What may be promised under strict overcommit: the host's policy for the container's sizes.

    The kernel's limit is a share of the memory (vm.overcommit_ratio) plus the swap.
    """
    host, memory = facts.host, facts.memory
    limit, swap = host.memory("CommitLimit").value, host.memory("SwapTotal").value
    share, whole = saturating_sub(limit, swap), max(1, host.memory("MemTotal").value)
    own = memory.total.value * share // whole + memory.swap_total.value
    return Sourced(min(own, limit), "the host's share (CommitLimit) of MemTotal, + SwapTotal")


def _sum(facts: Facts, *names: str) -> Size:
    memory = facts.memory
    parts = sum(memory.part(name).value for name in names)
    return Sourced(min(parts, memory.used.value), _stat_source(facts, *names))


def _stat_source(facts: Facts, *names: str) -> str:
    keys = [key for name in names if (key := facts.memory.key(name)) is not None]
    return f"{' + '.join(keys)} of {facts.memory.stat_source}"


def _part(name: str, *, of: Callable[[Facts], Size] | None = None) -> Callable[[Facts], Size]:
    """One key of memory.stat; at most the size `of` which it is a part."""

    def part(facts: Facts) -> Size:
        size = facts.memory.part(name)
        return size if of is None else Sourced(min(size.value, of(facts).value), size.source)

    return part


anon = _part("anon")
shmem = _part("shmem", of=cached)


def hugetlb(facts: Facts) -> Size:
    """Memory that the pool of huge pages takes, as far as the container may use it.

    The pool is charged to its own controller, not to the container's memory, which may be smaller.
    """
    pages = facts.hugepages
    own = min(pages.total.value * pages.size, facts.memory.total.value)
    return Sourced(own, "HugePages_Total * Hugepagesize, at most MemTotal")


COUNTS: Mapping[str, Callable[[Facts], Sourced[int]]] = {
    "HugePages_Total": lambda facts: facts.hugepages.total,
    "HugePages_Free": lambda facts: facts.hugepages.free,
}
"""The container's own lines that are no sizes: pages."""

OWN: Mapping[str, Callable[[Facts], Size]] = {
    "MemTotal": mem_total,
    "MemFree": mem_free,
    "MemAvailable": mem_available,
    "Cached": cached,
    "SwapCached": _part("swapcached"),
    "Active": lambda facts: _sum(facts, "active_anon", "active_file"),
    "Inactive": lambda facts: _sum(facts, "inactive_anon", "inactive_file"),
    "Active(anon)": _part("active_anon"),
    "Inactive(anon)": _part("inactive_anon"),
    "Active(file)": _part("active_file"),
    "Inactive(file)": _part("inactive_file"),
    "Unevictable": _part("unevictable"),
    "SwapTotal": lambda facts: facts.memory.swap_total,
    "SwapFree": swap_free,
    "Zswap": _part("zswap"),
    "Zswapped": zswapped,
    "Dirty": _part("file_dirty", of=cached),
    "Writeback": _part("file_writeback", of=cached),
    "AnonPages": anon,
    "Mapped": _part("file_mapped", of=cached),
    "Shmem": shmem,
    "KReclaimable": slab_reclaimable,
    "Slab": slab,
    "SReclaimable": slab_reclaimable,
    "SUnreclaim": slab_unreclaimable,
    "KernelStack": _part("kernel_stack"),
    "PageTables": _part("pagetables"),
    "SecPageTables": _part("sec_pagetables"),
    "CommitLimit": commit_limit,
    "VmallocUsed": _part("vmalloc"),
    "Percpu": _part("percpu"),
    "AnonHugePages": _part("anon_thp", of=anon),
    "ShmemHugePages": _part("shmem_thp", of=shmem),
    "FileHugePages": _part("file_thp", of=cached),
    "Hugetlb": hugetlb,
}
"""The lines that are the container's own."""

HOSTS: Mapping[str, str] = {
    "VmallocTotal": "the size of the kernel's address space",
    "VmallocChunk": "always 0",
    "Hugepagesize": "a constant of the machine",
    "DirectMap4k": "how the kernel maps all memory: a fact of the machine",
    "DirectMap2M": "how the kernel maps all memory: a fact of the machine",
    "DirectMap4M": "how the kernel maps all memory: a fact of the machine",
    "DirectMap1G": "how the kernel maps all memory: a fact of the machine",
}
"""The lines that stay the host's, and why. All others are 0: not known is not the host's use."""

RESERVE = Reserve(line=32)
"""Lines are 27 long up to 99,999,999 kB; room for a hundred thousand times as much."""


def sources(facts: Facts) -> list[Source]:
    """Return one item for each line of the host's file; sizes in kB, pages as a count.

    Made once, because /proc/vmstat and the nodes' files are made of them, too.
    """
    return facts.once("meminfo", lambda: _sources(facts))


def _sources(facts: Facts) -> list[Source]:
    items: list[Source] = []
    for line in facts.host.meminfo:
        own, why = OWN.get(line.name), HOSTS.get(line.name)
        if facts.memory.whole_machine:
            why = facts.memory.stat_source
        if why is not None:
            item = Source(line.name, str(line.value), f"the host's: {why}")
        elif own is not None:
            size = own(facts)
            item = Source(line.name, str(size.value // 1024), size.source)
        elif line.name in COUNTS:
            count = COUNTS[line.name](facts)
            item = Source(line.name, str(count.value), count.source)
        else:
            item = Source(line.name, "0", "0: the kernel does not count it per cgroup")
        items.append(item)
    return items


def text(items: Sequence[Source]) -> str:
    """Write the lines in the columns of the kernel's fs/proc/meminfo.c."""
    return "".join(_line(item.name, item.value) for item in items)


def _line(name: str, value: str) -> str:
    label = f"{name}:"
    # Sizes are 8 wide after a label of 16; a longer label ("HardwareCorrupted") takes from that.
    width = 8 if len(label) <= 16 else 24 - len(label)
    unit = "" if name.startswith("HugePages_") else " kB"
    return f"{label:<16}{value:>{width}}{unit}\n"
