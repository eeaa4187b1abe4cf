"""Facts about a container's memory, in bytes, from the v1 or the v2 memory controller.

Sources: the kernel's admin-guide/cgroup-v1/memory.rst and admin-guide/cgroup-v2.rst ("Memory").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sysfsd.facts.sourced import Sourced, saturating_sub
from sysfsd.kernel.cgroups import Cgroup, Level, Limit, parse_flat_keyed, smallest_limit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sysfsd.facts.host import HostFacts

V1_STAT_NAMES: Mapping[str, str] = {
    "anon": "total_rss",
    "anon_thp": "total_rss_huge",
    "file": "total_cache",
    "file_dirty": "total_dirty",
    "file_mapped": "total_mapped_file",
    "file_writeback": "total_writeback",
    "shmem": "total_shmem",
    "swapcached": "total_swapcached",
    "active_anon": "total_active_anon",
    "inactive_anon": "total_inactive_anon",
    "active_file": "total_active_file",
    "inactive_file": "total_inactive_file",
    "unevictable": "total_unevictable",
}
"""The v2 name of a key of memory.stat -> its v1 name; the rest is not counted by v1."""


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """One container's memory. All sizes are bytes."""

    total: Sourced[int]
    """What it may use: the smallest limit above it, at most the host's memory."""
    used: Sourced[int]
    """What is charged to it (page cache and kernel memory included), at most `total`."""
    swap_total: Sourced[int]
    swap_used: Sourced[int]
    """At most `swap_total`."""
    stat: Mapping[str, int]
    """memory.stat of its cgroup and all below it, under the names of its version."""
    stat_source: str
    version: int
    whole_machine: bool = False
    """It sits in the root cgroup, or nobody accounts memory: its memory is the host's."""

    def events(self, name: str) -> Sourced[int] | None:
        """Return how often something happened (``pgfault``), or None if nobody counts that."""
        key = f"total_{name}" if self.version == 1 else name
        count = self.stat.get(key)
        return None if count is None else Sourced(count, f"{key} of {self.stat_source}")

    def key(self, name: str) -> str | None:
        """Return what this version calls a key of memory.stat; None if it does not count it."""
        return V1_STAT_NAMES.get(name) if self.version == 1 else name

    def part(self, name: str) -> Sourced[int]:
        """Return one key of memory.stat, by its v2 name; at most what is used.

        0 where this version does not count it: an unknown part of a container is not the host's.
        """
        key = self.key(name)
        value = None if key is None else self.stat.get(key)
        if value is None:
            return Sourced(0, f"0: {self.stat_source} does not count {name}")
        return Sourced(min(value, self.used.value), f"{key} of {self.stat_source}")


def read_memory(cgroup: Cgroup | None, host: HostFacts, *, high: bool = True) -> MemoryFacts:
    """Read the facts of one memory cgroup; raises OSError if it is gone.

    `high` says whether v2's memory.high is a limit: the kernel lets nobody stay above it for long,
    but kills nobody for it.
    """
    if cgroup is None or cgroup.is_root:
        return _whole_machine(cgroup, host)
    with cgroup.levels() as levels:
        if cgroup.version == 1:
            return _read_v1(cgroup, levels, host)
        return _read_v2(cgroup, levels, host, high=high)


def read_oom_kills(cgroup: Cgroup | None) -> Sourced[int]:
    """Read how many processes of a memory cgroup the OOM killer killed; raises OSError if gone.

    v2 counts those of the cgroups below as well, v1 (since Linux 4.13) its own alone.
    """
    if cgroup is None or cgroup.is_root:
        return Sourced(0, "0: nobody counts it for the root cgroup")
    name = "memory.oom_control" if cgroup.version == 1 else "memory.events"
    kills = parse_flat_keyed(cgroup.read(name)).get("oom_kill")
    if kills is None:
        return Sourced(0, f"0: {cgroup.source(name)} does not count oom_kill")
    return Sourced(kills, f"oom_kill of {cgroup.source(name)}")


def _whole_machine(cgroup: Cgroup | None, host: HostFacts) -> MemoryFacts:
    why = "no memory controller" if cgroup is None else "the root cgroup is the whole machine"
    total, free = host.memory("MemTotal"), host.memory("MemFree")
    swap, swap_free = host.memory("SwapTotal"), host.memory("SwapFree")
    used = saturating_sub(total.value, free.value)
    return MemoryFacts(
        total=Sourced(total.value, f"{total.source} ({why})"),
        used=Sourced(used, f"MemTotal - MemFree of the host ({why})"),
        swap_total=Sourced(swap.value, f"{swap.source} ({why})"),
        swap_used=Sourced(
            saturating_sub(swap.value, swap_free.value), f"SwapTotal - SwapFree of the host ({why})"
        ),
        stat={},
        stat_source=why,
        version=2,
        whole_machine=True,
    )


def _read_v1(cgroup: Cgroup, levels: Sequence[Level], host: HostFacts) -> MemoryFacts:
    own = levels[0]
    stat = parse_flat_keyed(own.read("memory.stat"))
    limit = smallest_limit(levels, "memory.limit_in_bytes")
    total = _total(cgroup, limit, host)
    memsw = smallest_limit(levels, "memory.memsw.limit_in_bytes")
    if own.read_int("memory.memsw.limit_in_bytes") is None:
        swap_total = Sourced(0, "0: this kernel does not account swap to cgroups")
        swap_used = swap_total
    else:
        # The limit is on memory and swap together. What exceeds the memory limit can only be swap.
        host_swap = host.memory("SwapTotal")
        swap_total = host_swap
        if memsw is not None:
            room = saturating_sub(memsw.value, total.value)
            swap_total = _smaller(Sourced(room, f"{_name(cgroup, memsw)} - MemTotal"), host_swap)
        source = f"total_swap of {cgroup.source('memory.stat')}"
        swap_used = _used(stat.get("total_swap", 0), source, swap_total)
    usage = "memory.usage_in_bytes"
    return MemoryFacts(
        total=total,
        used=_used(own.read_int(usage) or 0, cgroup.source(usage), total),
        swap_total=swap_total,
        swap_used=swap_used,
        stat=stat,
        stat_source=cgroup.source("memory.stat"),
        version=1,
    )


def _read_v2(
    cgroup: Cgroup, levels: Sequence[Level], host: HostFacts, *, high: bool
) -> MemoryFacts:
    own = levels[0]
    limit = smallest_limit(levels, "memory.max")
    throttle = smallest_limit(levels, "memory.high") if high else None
    if throttle is not None and (limit is None or throttle.value < limit.value):
        limit = throttle
    total = _total(cgroup, limit, host)
    if own.read("memory.swap.max") is None:
        swap_total = Sourced(0, "0: this kernel does not account swap to cgroups")
        swap_used = swap_total
    else:
        swap_total = host.memory("SwapTotal")
        swap = smallest_limit(levels, "memory.swap.max")
        if swap is not None:
            swap_total = _smaller(Sourced(swap.value, _name(cgroup, swap)), swap_total)
        current = "memory.swap.current"
        swap_used = _used(own.read_int(current) or 0, cgroup.source(current), swap_total)
    usage = "memory.current"
    return MemoryFacts(
        total=total,
        used=_used(own.read_int(usage) or 0, cgroup.source(usage), total),
        swap_total=swap_total,
        swap_used=swap_used,
        stat=parse_flat_keyed(own.read("memory.stat")),
        stat_source=cgroup.source("memory.stat"),
        version=2,
    )


def _total(cgroup: Cgroup, limit: Limit | None, host: HostFacts) -> Sourced[int]:
    total = host.memory("MemTotal")
    if limit is None:
        return Sourced(total.value, f"{total.source} (no limit)")
    return _smaller(Sourced(max(limit.value, _LEAST), _name(cgroup, limit)), total)


def _smaller(first: Sourced[int], second: Sourced[int]) -> Sourced[int]:
    small, large = (first, second) if first.value <= second.value else (second, first)
    return Sourced(small.value, f"{small.source} (smaller than {large.source})")


_LEAST = 4096
"""Bytes: with a limit of 0 nothing runs, but somebody may still look, and divide by MemTotal."""


def _used(value: int, source: str, total: Sourced[int]) -> Sourced[int]:
    """Cut a use to its total: a limit may have been lowered below what is in use."""
    return Sourced(min(value, total.value), source)


def _name(cgroup: Cgroup, limit: Limit) -> str:
    whose = "" if limit.path == cgroup.path else " (an ancestor's)"
    return cgroup.source(limit.name, limit.path) + whose
