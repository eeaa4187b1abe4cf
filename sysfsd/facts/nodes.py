"""Facts about the NUMA nodes that a container may use: which, their CPUs, their memory.

Nodes keep the host's numbers, because set_mempolicy(2) and mbind(2) take those. What the kernel
does not tell per node (limits are one for all nodes) is divided among them, so that the nodes
always add up to what /proc/meminfo shows.

Sources: the kernel's admin-guide/cgroup-v1/cpusets.rst (mems) and admin-guide/cgroup-v2.rst
("memory.numa_stat", "cpuset.mems.effective").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.facts.cpu import read_effective
from sysfsd.facts.sourced import saturating_sub
from sysfsd.kernel.procfs import parse_cpu_list, parse_meminfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sysfsd.facts.cpu import CpuFacts
    from sysfsd.facts.host import HostFacts
    from sysfsd.facts.memory import MemoryFacts
    from sysfsd.kernel.cgroups import Cgroup, CgroupPaths, CgroupTree

_V1_KEYS: Mapping[str, tuple[str, ...]] = {
    "anon": ("hierarchical_anon", "anon"),
    "file": ("hierarchical_file", "file"),
    "unevictable": ("hierarchical_unevictable", "unevictable"),
}
"""v2's name of a key of memory.numa_stat -> v1's: with all cgroups below, else the own one."""


class Node(NamedTuple):
    """One node."""

    number: int
    """The host's."""
    cpus: tuple[int, ...]
    """Which of the container's CPUs are on it, as numbered in the container."""
    distances: tuple[int, ...]
    """To each of the container's nodes, in their order; 10 is itself (ACPI SLIT)."""


@dataclass(frozen=True, slots=True)
class NodesFacts:
    """The nodes of one container, in the order of their numbers; at least one."""

    nodes: tuple[Node, ...]
    source: str
    """Where the list of nodes came from."""
    host_total: tuple[int, ...]
    """Bytes of memory that the host has on each."""
    stat: Mapping[str, tuple[int, ...]]
    """Keys of memory.numa_stat by v2's names, each with a size for each node; units as they are."""
    stat_source: str
    meminfo_names: tuple[tuple[str, str], ...]
    """Names and units of the lines of the host's nodeN/meminfo; empty without such a file."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(node.number for node in self.nodes)

    def total(self, memory: int) -> tuple[int, ...]:
        """Divide the container's memory among the nodes, as the host's is; in the unit given."""
        return divide(memory, self.host_total)

    def shares(self, name: str) -> tuple[int, ...]:
        """Return how a use that v2 calls `name` lies on the nodes: weights, of no unit."""
        for key in (name, *_USE):
            weights = self.stat.get(key)
            if weights and any(weights):
                return weights
        return self.host_total


_USE = ("file", "anon")


def divide(
    amount: int, weights: Sequence[int], room: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Divide an amount by weights into whole parts that add up to it; pure.

    No part gets more than its ``room``; only if there is not enough room in all of them do the
    parts add up to less. Without any weight it is divided by room, or evenly.
    """
    count = len(weights)
    parts = [0] * count
    caps = list(room) if room is not None else [amount] * count
    left = min(amount, sum(caps))
    active = [index for index in range(count) if caps[index] > 0]
    while left > 0 and active:
        scale = sum(weights[index] for index in active)
        shares = {index: weights[index] if scale else 1 for index in active}
        scale = scale or len(active)
        given = 0
        for index in active:
            part = min(left * shares[index] // scale, caps[index] - parts[index])
            parts[index] += part
            given += part
        if given == 0:  # less than one for each: the largest weights first
            for index in sorted(active, key=lambda each: -shares[each])[:left]:
                parts[index] += 1
                given += 1
        left -= given
        active = [index for index in active if parts[index] < caps[index]]
    return tuple(parts)


def read_nodes(
    tree: CgroupTree, paths: CgroupPaths, host: HostFacts, *, cpus: CpuFacts, memory: MemoryFacts
) -> NodesFacts:
    """Read the nodes that a container at these paths may use; raises OSError if it is gone."""
    online = host.online_nodes
    allowed = read_effective(tree.controller(paths, "cpuset"), "mems") or online
    numbers = tuple(number for number in allowed.value if number in online.value) or online.value
    visible = cpus.numbers
    nodes = []
    for number in numbers:
        there = frozenset(parse_cpu_list(host.node_file(number, "cpulist") or ""))
        nodes.append(
            Node(
                number,
                tuple(index for index, cpu in enumerate(visible) if cpu in there),
                _distances(host.node_file(number, "distance"), online.value, number, numbers),
            )
        )
    texts = [host.node_file(number, "meminfo") or "" for number in numbers]
    meminfos = [parse_node_meminfo(text) for text in texts]
    if memory.whole_machine or not any(meminfos):
        stat: Mapping[str, tuple[int, ...]] = {}
        source = "the host's nodes"
    else:
        stat, source = _read_numa_stat(tree.controller(paths, "memory"), numbers)
    return NodesFacts(
        nodes=tuple(nodes),
        source=allowed.source,
        # A node without memory counts, too; all without: one file less that tells.
        host_total=tuple(each.get("MemTotal", (0, ""))[0] * 1024 for each in meminfos)
        if any(each.get("MemTotal", (0, ""))[0] for each in meminfos)
        else (1,) * len(numbers),
        stat=stat,
        stat_source=source,
        meminfo_names=tuple((name, unit) for name, (_, unit) in meminfos[0].items())
        if meminfos
        else (),
    )


def parse_node_meminfo(text: str) -> dict[str, tuple[int, str]]:
    """Parse lines of ``Node 0 MemTotal:  6383832 kB`` into values and units by name; pure."""
    bare = "\n".join(line.split(maxsplit=2)[2] for line in text.splitlines() if line.count(" ") > 2)
    return {line.name: (line.value, line.unit) for line in parse_meminfo(bare)}


def parse_numa_stat(text: str | None) -> dict[str, dict[int, int]]:
    """Parse memory.numa_stat: ``anon N0=4096 N1=0`` (v2, bytes) or ``anon=1 N0=1`` (v1, pages)."""
    values: dict[str, dict[int, int]] = {}
    for line in (text or "").splitlines():
        name, *fields = line.split()
        per_node: dict[int, int] = {}
        for each in fields:
            node, _, number = each.partition("=")
            if node[:1] == "N" and node[1:].isdecimal() and number.isdecimal():
                per_node[int(node[1:])] = int(number)
        values[name.partition("=")[0]] = per_node
    return values


def _read_numa_stat(
    cgroup: Cgroup | None, numbers: Sequence[int]
) -> tuple[Mapping[str, tuple[int, ...]], str]:
    if cgroup is None:
        return {}, "no memory controller"
    read = parse_numa_stat(cgroup.read("memory.numa_stat"))
    if cgroup.version == 1:
        read = {
            name: next((read[key] for key in keys if key in read), {})
            for name, keys in _V1_KEYS.items()
        }
    stat = {
        name: tuple(per_node.get(number, 0) for number in numbers)
        for name, per_node in read.items()
    }
    return stat, cgroup.source("memory.numa_stat")


def _distances(
    text: str | None, online: Sequence[int], number: int, numbers: Sequence[int]
) -> tuple[int, ...]:
    """The kernel gives one distance for each online node; keep those of the container's."""
    row = [int(field) for field in (text or "").split() if field.isdecimal()]
    by_node = dict(zip(online, row, strict=False))
    return tuple(by_node.get(other, 10 if other == number else 20) for other in numbers)


def free_of(total: Sequence[int], used: Sequence[int], free: int) -> tuple[int, ...]:
    """Divide what is free among nodes of these sizes and uses; pure, in one unit."""
    room = [saturating_sub(whole, part) for whole, part in zip(total, used, strict=True)]
    return divide(free, room, room)
