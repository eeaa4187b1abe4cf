"""/sys/devices/system/node: the NUMA nodes that the container may use, with its own memory.

Sources: the kernel's Documentation/ABI/stable/sysfs-devices-node and drivers/base/node.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.facts.nodes import divide, free_of
from sysfsd.kernel.procfs import format_cpu_list, format_cpu_mask
from sysfsd.views import meminfo
from sysfsd.views.view import Family, Links, Reserve, Source, View, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sysfsd.facts.collector import Facts
    from sysfsd.facts.nodes import Node

_BASE = "sys/devices/system/node"

_V2_NAMES: Mapping[str, str] = {
    "SwapCached": "swapcached",
    "Active": "active_file",
    "Inactive": "inactive_file",
    "Active(anon)": "active_anon",
    "Inactive(anon)": "inactive_anon",
    "Active(file)": "active_file",
    "Inactive(file)": "inactive_file",
    "Unevictable": "unevictable",
    "Dirty": "file_dirty",
    "Writeback": "file_writeback",
    "FilePages": "file",
    "Mapped": "file_mapped",
    "AnonPages": "anon",
    "Shmem": "shmem",
    "KernelStack": "kernel_stack",
    "PageTables": "pagetables",
    "SecPageTables": "sec_pagetables",
    "KReclaimable": "slab_reclaimable",
    "Slab": "slab_unreclaimable",
    "SReclaimable": "slab_reclaimable",
    "SUnreclaim": "slab_unreclaimable",
    "AnonHugePages": "anon_thp",
    "ShmemHugePages": "shmem_thp",
    "FileHugePages": "file_thp",
}
"""Lines of nodeN/meminfo -> the key of memory.numa_stat that says how they lie on the nodes."""

RESERVE = Reserve(line=48)
"""nodeN/meminfo's lines are those of /proc/meminfo, with up to ten more letters before."""

_NUMASTAT = "numa_hit numa_miss numa_foreign interleave_hit local_node other_node".split()


def _numbers(facts: Facts) -> list[Source]:
    nodes = facts.nodes
    return [Source("nodes", format_cpu_list(nodes.numbers), nodes.source)]


def _with_cpus(facts: Facts) -> list[Source]:
    nodes = facts.nodes
    numbers = [node.number for node in nodes.nodes if node.cpus]
    return [Source("nodes", format_cpu_list(numbers), f"those of {nodes.source} with CPUs it sees")]


def _cpulist(facts: Facts, number: int) -> list[Source]:
    node = _node(facts, number)
    return [Source("cpus", format_cpu_list(node.cpus), facts.cpu.cpuset.source)]


def _cpumap(facts: Facts, number: int) -> list[Source]:
    mask = format_cpu_mask(_node(facts, number).cpus, facts.cpu.visible.value)
    return [Source("cpus", mask, facts.cpu.cpuset.source)]


def _distance(facts: Facts, number: int) -> list[Source]:
    distances = " ".join(str(each) for each in _node(facts, number).distances)
    return [Source("distances", distances, f"the host's node{number}/distance, to its own nodes")]


def _numastat(_facts: Facts, _number: int) -> list[Source]:
    return [Source(name, "0", "0: the kernel does not count it per cgroup") for name in _NUMASTAT]


def _numastat_text(items: Sequence[Source]) -> str:
    return "".join(f"{item.name} {item.value}\n" for item in items)


def _node(facts: Facts, number: int) -> Node:
    # One that was taken away since the kernel looked it up: any will do for its last reader.
    nodes = facts.nodes.nodes
    return next((node for node in nodes if node.number == number), nodes[0])


def meminfo_sources(facts: Facts, number: int) -> list[Source]:
    """Return the lines of one node, in kB; those of all nodes add up to /proc/meminfo's."""
    nodes = facts.nodes
    at = next((at for at, each in enumerate(nodes.numbers) if each == number), 0)
    names = [name for name, _ in nodes.meminfo_names] or ["MemTotal", "MemFree", "MemUsed"]
    units = dict(nodes.meminfo_names)
    sizes = {item.name: item for item in meminfo.sources(facts)}
    total = nodes.total(int(sizes["MemTotal"].value))
    items = []
    for name in names:
        if name == "MemTotal":
            value, why = total[at], f"{sizes[name].source}, {_as_divided(nodes.numbers)}"
        elif name == "MemFree":
            value, why = _free(facts, sizes, total)[at], sizes[name].source
        elif name == "MemUsed":
            value, why = total[at] - _free(facts, sizes, total)[at], "MemTotal - MemFree"
        else:
            item = sizes.get("Cached" if name == "FilePages" else name)
            if item is None:
                value, why = 0, "0: the kernel does not count it per cgroup"
            else:
                shares = nodes.shares(_V2_NAMES.get(name, ""))
                value = divide(int(item.value), shares, total if name in meminfo.OWN else None)[at]
                why = item.source if len(total) == 1 else f"{item.source}, by {nodes.stat_source}"
        items.append(
            Source(f"Node {number} {name}", str(value) + _unit(units.get(name, "kB")), why)
        )
    return items


def _free(facts: Facts, sizes: Mapping[str, Source], total: Sequence[int]) -> tuple[int, ...]:
    free = int(sizes["MemFree"].value)
    used = divide(sum(total) - free, facts.nodes.shares(""), total)
    return free_of(total, used, free)


def _as_divided(numbers: Sequence[int]) -> str:
    return "all on one node" if len(numbers) == 1 else "divided as the host's memory is"


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def meminfo_text(items: Sequence[Source]) -> str:
    """Write the lines in the columns of the kernel's node_read_meminfo."""
    return "".join(_line(item) for item in items)


def _line(item: Source) -> str:
    label = f"{item.name}:"
    number, _, unit = item.value.partition(" ")
    # "Node %d MemTotal:       %8lu kB": the number is 8 wide, and begins 16 behind the name's first
    # letter; counts of pages are 5 wide ("Node %d HugePages_Free:  %5u").
    if not unit:
        return f"{label:<24}{number:>5}\n"
    start = label.rindex(" ") + 1
    width = 16 - (len(label) - start)
    return f"{label}{' ' * max(0, width)}{number:>8} {unit}\n"


_MEMORY_LISTS = ("online", "possible", "has_memory", "has_normal_memory")

LINKS: Sequence[Links] = (
    # Kubelets count a node's cores there.
    Links(f"{_BASE}/node{{}}", "cpu", f"{_BASE}/node{{}}/cpulist", "../../cpu/cpu{}"),
)

FILES: Sequence[View | Family] = (
    *(View(f"{_BASE}/{name}", _numbers, one_line) for name in _MEMORY_LISTS),
    View(f"{_BASE}/has_cpu", _with_cpus, one_line),
    *(
        Family(f"{_BASE}/node{{}}/{name}", f"{_BASE}/online", of_node, text, moves=moves)
        for name, of_node, text, moves in (
            ("meminfo", meminfo_sources, meminfo_text, RESERVE),
            ("cpulist", _cpulist, one_line, None),
            ("cpumap", _cpumap, one_line, None),
            ("distance", _distance, one_line, None),
            ("numastat", _numastat, _numastat_text, None),
        )
    ),
)
