"""Facts about the huge pages that a container may use, of the default size: counts of pages.

They come from a pool of the host's. Whoever is not limited may take all of it.

Sources: the kernel's admin-guide/mm/hugetlbpage.rst, admin-guide/cgroup-v1/hugetlb.rst and
admin-guide/cgroup-v2.rst ("HugeTLB").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sysfsd.facts.sourced import Sourced, saturating_sub
from sysfsd.kernel.cgroups import smallest_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from sysfsd.facts.host import HostFacts
    from sysfsd.kernel.cgroups import Cgroup


class HugePagesFacts(NamedTuple):
    """The container's part of the pool."""

    total: Sourced[int]
    free: Sourced[int]
    """At most `total`."""
    size: int
    """Bytes of one page; 0 on a kernel without them."""


def size_name(size: int) -> str:
    """Name a size as the controller's files do: ``2MB``, ``1GB``, ``64KB``; pure."""
    for unit, name in ((1 << 30, "GB"), (1 << 20, "MB")):
        if size >= unit:
            return f"{size // unit}{name}"
    return f"{size // 1024}KB"


def read_hugepages(hugetlb_cgroup: Callable[[], Cgroup | None], host: HostFacts) -> HugePagesFacts:
    """Read the facts of one hugetlb cgroup; raises OSError if it is gone.

    Most hosts have no huge pages in their pool, and nobody need look for the cgroup.
    """
    size = host.memory("Hugepagesize").value
    total = Sourced(host.count("HugePages_Total"), "the host's pool: nobody limits the container")
    free = Sourced(host.count("HugePages_Free"), "the host's pool")
    cgroup = hugetlb_cgroup() if total.value and size else None
    if cgroup is None or cgroup.is_root:
        return HugePagesFacts(total, Sourced(min(free.value, total.value), free.source), size)
    prefix = f"hugetlb.{size_name(size)}"
    limit_file, use_file = (
        ("limit_in_bytes", "usage_in_bytes") if cgroup.version == 1 else ("max", "current")
    )
    with cgroup.levels() as levels:
        limit = smallest_limit(levels, f"{prefix}.{limit_file}")
        used = levels[0].read_int(f"{prefix}.{use_file}") or 0
    if limit is not None and limit.value // size < total.value:
        total = Sourced(limit.value // size, cgroup.source(limit.name, limit.path))
        own = saturating_sub(total.value, -(-used // size))
        if own < free.value:
            free = Sourced(own, f"HugePages_Total - {cgroup.source(f'{prefix}.{use_file}')}")
    return HugePagesFacts(total, Sourced(min(free.value, total.value), free.source), size)
