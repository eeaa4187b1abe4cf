"""Facts about the CPUs of a container: how many, which, and what it has used of them.

Sources: the kernel's admin-guide/cgroup-v1/{cpusets,cpuacct}.rst, scheduler/sched-bwc.rst and
admin-guide/cgroup-v2.rst ("CPU", "Cpuset").
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sysfsd.facts.cpuclock import CpuUsage
from sysfsd.facts.sourced import Sourced
from sysfsd.kernel.cgroups import parse_flat_keyed
from sysfsd.kernel.procfs import parse_cpu_list
from sysfsd.policy import CPU_CPUSET, CPU_OFF, CPU_QUOTA

if TYPE_CHECKING:
    from sysfsd.facts.host import HostFacts
    from sysfsd.kernel.cgroups import Cgroup, CgroupPaths, CgroupTree, Level

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
"""USER_HZ: the unit of every counter in /proc/stat."""

NS_PER_TICK = 1_000_000_000 // TICKS_PER_SECOND


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """The CPUs of one container."""

    visible: Sourced[int]
    """How many it sees; >= 1. As many as can be busy at once under its cpuset and its quota, unless
    its policy is another."""
    cpuset: Sourced[tuple[int, ...]]
    """The host's numbers of the CPUs that it may run on; never empty."""
    quota: Sourced[int] | None
    """Its quota in whole CPUs, rounded up; None if there is none."""
    online: tuple[int, ...] = ()
    """The host's online CPUs where it sees all of them (policy "off"); else empty."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The host's numbers of the visible CPUs, in the order in which they are shown."""
        return (self.online or self.cpuset.value)[: self.visible.value]


def read_cpus(
    tree: CgroupTree, paths: CgroupPaths, host: HostFacts, policy: str = CPU_QUOTA
) -> CpuFacts:
    """Read the CPUs that a container at these paths sees; raises OSError if it is gone.

    `policy` is its ``cpu-policy``. A container that is pinned has a cpuset of that size.
    """
    cpuset = read_effective(tree.controller(paths, "cpuset"), "cpus") or host.online_cpus
    quota = read_quota(tree.controller(paths, "cpu"))
    why = f"cpu-policy is {policy}"
    if policy == CPU_OFF:
        online = host.online_cpus
        visible = Sourced(len(online.value), f"{online.source} ({why})")
        return CpuFacts(visible, cpuset, quota, online.value)
    if policy == CPU_CPUSET:
        visible = Sourced(len(cpuset.value), f"{cpuset.source} ({why})")
    elif quota is not None and quota.value < len(cpuset.value):
        visible = Sourced(max(1, quota.value), quota.source)
    else:
        visible = Sourced(len(cpuset.value), cpuset.source)
    return CpuFacts(visible, cpuset, quota)


def read_usage(tree: CgroupTree, paths: CgroupPaths) -> Sourced[CpuUsage]:
    """Read the CPU time used by the container's cgroup and all below it.

    Raises OSError if the cgroup is gone.
    """
    cgroup = tree.controller(paths, "cpuacct")
    if cgroup is not None:
        with cgroup.levels() as levels:
            return _read_usage_v1(cgroup, levels[0])
    # v2 counts in every cgroup, also where the cpu controller is not enabled.
    cgroup = tree.unified(paths)
    if cgroup is None:
        return Sourced(CpuUsage(0, 0), "0: no controller counts CPU time")
    stat = parse_flat_keyed(cgroup.read("cpu.stat"))
    usage = CpuUsage(stat.get("user_usec", 0) * 1000, stat.get("system_usec", 0) * 1000)
    return Sourced(usage, f"user_usec and system_usec of {cgroup.source('cpu.stat')}")


def _read_usage_v1(cgroup: Cgroup, own: Level) -> Sourced[CpuUsage]:
    total = own.read_int("cpuacct.usage")
    user, system = own.read_int("cpuacct.usage_user"), own.read_int("cpuacct.usage_sys")
    if total is not None and user is not None and system is not None:
        # These two are sampled: work of less than a tick, between two of them, is in neither.
        part = total * system // max(1, user + system)
        source = (
            f"{cgroup.source('cpuacct.usage')}, divided as cpuacct.usage_user and usage_sys are"
        )
        return Sourced(CpuUsage(total - part, part), source)
    ticks = parse_flat_keyed(own.read("cpuacct.stat"))
    if ticks:
        usage = CpuUsage(ticks.get("user", 0) * NS_PER_TICK, ticks.get("system", 0) * NS_PER_TICK)
        return Sourced(usage, cgroup.source("cpuacct.stat"))
    usage = CpuUsage(own.read_int("cpuacct.usage") or 0, 0)
    return Sourced(usage, f"{cgroup.source('cpuacct.usage')} (all as user time)")


def read_effective(cgroup: Cgroup | None, kind: str) -> Sourced[tuple[int, ...]] | None:
    """Read which ``cpus`` or ``mems`` (NUMA nodes) a cpuset lets its tasks use.

    The effective set: what is requested may name some that are offline or not an ancestor's. None
    if no cgroup on the way up says; raises OSError if it is gone.
    """
    if cgroup is None:
        return None
    effective = f"effective_{kind}" if cgroup.version == 1 else f"{kind}.effective"
    with cgroup.levels() as levels:
        for level in levels:
            for name in (f"cpuset.{effective}", f"cpuset.{kind}"):
                numbers = parse_cpu_list(level.read(name) or "")
                if numbers:
                    return Sourced(numbers, cgroup.source(name, level.path))
    return None


def read_quota(cgroup: Cgroup | None) -> Sourced[int] | None:
    """Read the smallest quota on the way up, in CPUs; None if there is none.

    Rounded up: half a CPU still is one to see. Raises OSError if the cgroup is gone.
    """
    if cgroup is None:
        return None
    best: Sourced[int] | None = None
    with cgroup.levels() as levels:
        for level in levels:
            if cgroup.version == 1:
                name = "cpu.cfs_quota_us"
                quota, period = level.read(name), level.read("cpu.cfs_period_us")
            else:
                name = "cpu.max"
                quota, _, period = (level.read(name) or "max 100000").strip().partition(" ")
            if not quota or not period or quota.startswith(("max", "-")) or int(period) <= 0:
                continue
            cpus = -(-int(quota) // int(period))
            if best is None or cpus < best.value:
                text = f"{int(quota)} us in {int(period)} us, {cgroup.source(name, level.path)}"
                best = Sourced(cpus, text)
    return best
