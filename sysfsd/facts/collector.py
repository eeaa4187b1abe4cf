"""Collects the facts of one container for one refresh of its views."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import psutil

from sysfsd.facts import cpuclock, disk
from sysfsd.facts.callers import MAX_CALLERS, Callers, pid_depth
from sysfsd.facts.cpu import CpuFacts, read_cpus, read_usage
from sysfsd.facts.host import HostFacts, boottime_ns
from sysfsd.facts.hugepages import HugePagesFacts, read_hugepages
from sysfsd.facts.load import LoadFacts, LoadSampler, Target
from sysfsd.facts.memory import MemoryFacts, read_memory, read_oom_kills
from sysfsd.facts.nodes import NodesFacts, read_nodes
from sysfsd.facts.sourced import Sourced, saturating_sub

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sysfsd.facts.callers import Caller
    from sysfsd.facts.cpuclock import CpuClock
    from sysfsd.facts.disk import DiskClock, DiskFacts
    from sysfsd.kernel.cgroups import CgroupPaths, CgroupTree

REFRESH_SECONDS = 0.05
"""How old a number may be; for so long all files of a container are made of the same facts."""


class Container(Protocol):
    """What the facts need to know of a container record."""

    @property
    def serial(self) -> int:
        """A number that no other container of this daemon's life has."""

    @property
    def pid(self) -> int:
        """Its init, as numbered in our pid namespace."""

    @property
    def started(self) -> float:
        """When its init was started, in seconds since boot."""

    @property
    def cgroup(self) -> CgroupPaths:
        """Where it sits in the cgroup hierarchies."""

    @property
    def domain(self) -> int | None:
        """Its execution domain, where that changes what it may see (`kernel.personality`)."""


class CpuTimesFacts(NamedTuple):
    """The CPU counters of one container at the moment of the refresh, in ns."""

    clock: CpuClock
    visible: tuple[cpuclock.CpuTimes, ...]
    """Of the CPUs it sees, in the order of their numbers."""
    source: str


class Facts:
    """One consistent set of facts about one container; each part is read when first asked for.

    Every part raises OSError if the container's cgroup is gone.
    """

    def __init__(
        self,
        *,
        host: HostFacts,
        started: Sourced[int],
        now: int,
        current_until: int = 0,
        memory: Callable[[], MemoryFacts],
        cpu: Callable[[], CpuFacts],
        cpu_times: Callable[[Facts], CpuTimesFacts],
        load: Callable[[], LoadFacts],
        disk: Callable[[], DiskFacts],
        oom_kills: Callable[[], Sourced[int]],
        nodes: Callable[[Facts], NodesFacts],
        hugepages: Callable[[], HugePagesFacts],
    ) -> None:
        self.host = host
        self.started = started
        """When the container was started: ns since boot."""
        self.now = now
        """The moment of this refresh: ns since boot."""
        self.current_until = current_until
        """Until when they answer for the container: ns since boot."""
        self._memory = memory
        self._cpu = cpu
        self._cpu_times = cpu_times
        self._load = load
        self._disk = disk
        self._oom_kills = oom_kills
        self._nodes = nodes
        self._hugepages = hugepages

    @cached_property
    def uptime(self) -> Sourced[int]:
        """For how many ns the container has been running."""
        return Sourced(saturating_sub(self.now, self.started.value), f"now - {self.started.source}")

    @cached_property
    def memory(self) -> MemoryFacts:
        """Its memory."""
        return self._memory()

    @cached_property
    def cpu(self) -> CpuFacts:
        """Its CPUs."""
        return self._cpu()

    @cached_property
    def cpu_times(self) -> CpuTimesFacts:
        """The counters of its CPUs."""
        return self._cpu_times(self)

    @cached_property
    def load(self) -> LoadFacts:
        """Its load average and its tasks."""
        return self._load()

    @cached_property
    def disk(self) -> DiskFacts:
        """The block devices it used."""
        return self._disk()

    @cached_property
    def oom_kills(self) -> Sourced[int]:
        """How many of its processes the kernel killed for want of memory."""
        return self._oom_kills()

    @cached_property
    def nodes(self) -> NodesFacts:
        """The NUMA nodes that it may use."""
        return self._nodes(self)

    @cached_property
    def hugepages(self) -> HugePagesFacts:
        """The huge pages that it may use."""
        return self._hugepages()


class FactsCollector:
    """Makes `Facts`, and keeps what must live on between two refreshes: clocks and loads."""

    def __init__(
        self,
        *,
        tree: CgroupTree,
        proc: str = "/proc",
        sys: str = "/sys",
        clock: Callable[[], int] = boottime_ns,
        boot_time: Callable[[], float] = psutil.boot_time,
        max_callers: int = MAX_CALLERS,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._tree = tree
        self._proc = proc
        self._sys = sys
        self._now = clock
        self._boot_time = boot_time
        self._max_callers = max_callers
        self._refresh_ns = int(refresh_seconds * 1e9)
        self._recent: dict[Hashable, dict[tuple[int | None, bool], Facts]] = {}
        self._lock = threading.Lock()
        self._clocks: dict[Hashable, CpuClock] = {}
        self._disks: dict[Hashable, DiskClock] = {}
        self._callers: OrderedDict[Caller, None] = OrderedDict()
        self.callers = Callers(tree, proc=proc, max_kept=max_callers)
        """Tells who asks, for `facts_of_caller`."""
        self.load_sampler = LoadSampler(tree, proc=proc, clock=clock)
        """Call its `sample_all` every 5 seconds, in a worker thread."""

    def track(self, container: Container) -> None:
        """Start what a container's facts need over time; `facts` does so by itself if need be."""
        self._track(container.serial, container.cgroup, container.pid)

    def facts(self, container: Container, *, domain: int | None = None) -> Facts:
        """Return the facts of a container, no older than a refresh.

        ``domain`` is the execution domain of who reads them, if not that of its init counts.
        """
        self.track(container)
        started = Sourced(
            int(container.started * 1e9), f"start of the container's init (pid {container.pid})"
        )
        if domain is None:
            domain = container.domain
        return self._facts(container.serial, container.cgroup, started, domain)

    def forget(self, container: Container) -> None:
        """Drop what is kept for a container that is gone."""
        self._forget(container.serial)

    def kept(self) -> int:
        """Return for how many containers and callers a CPU clock is kept; for the counters."""
        return len(self._clocks)

    def facts_of_caller(self, caller: Caller, *, opening: bool = True) -> Facts:
        """Return the facts of who belongs to no registered container (`callers.identify`).

        No older than a refresh, and those for an open file never the ones that something else was
        answered from (see ``CallersOperations``). Raises OSError if its cgroup is gone.
        """
        with self._lock:
            self._callers[caller] = None
            self._callers.move_to_end(caller)
            evicted = (
                self._callers.popitem(last=False)[0]
                if len(self._callers) > self._max_callers
                else None
            )
        if evicted is not None:
            self._forget(evicted)
        self.load_sampler.track(caller, Target(caller.cgroup, caller.pid_depth))
        return self._facts(caller, caller.cgroup, caller.started, caller.domain, opening=opening)

    def _track(self, key: Hashable, paths: CgroupPaths, pid: int) -> None:
        if not self.load_sampler.tracks(key):
            self.load_sampler.track(key, Target(paths, pid_depth(pid, self._proc)))

    def _facts(
        self,
        key: Hashable,
        paths: CgroupPaths,
        started: Sourced[int],
        domain: int | None,
        *,
        opening: bool = True,
    ) -> Facts:
        now = self._now()
        variants = self._recent.setdefault(key, {})
        recent = variants.get((domain, opening))
        if recent is None or recent.current_until <= now:
            recent = variants[domain, opening] = self._new_facts(key, paths, started, now, domain)
        return recent

    def _new_facts(
        self,
        key: Hashable,
        paths: CgroupPaths,
        started: Sourced[int],
        now: int,
        domain: int | None,
    ) -> Facts:
        host = HostFacts(proc=self._proc, sys=self._sys, boot_time=self._boot_time, domain=domain)
        return Facts(
            host=host,
            started=started,
            now=now,
            current_until=now + self._refresh_ns,
            memory=lambda: read_memory(self._tree.controller(paths, "memory"), host),
            cpu=lambda: read_cpus(self._tree, paths, host),
            cpu_times=lambda facts: self._advance_clock(key, paths, facts),
            load=lambda: self.load_sampler.load(key),
            disk=lambda: self._advance_disks(key, paths, host),
            oom_kills=lambda: read_oom_kills(self._tree.controller(paths, "memory")),
            hugepages=lambda: read_hugepages(lambda: self._tree.controller(paths, "hugetlb"), host),
            nodes=lambda facts: read_nodes(
                self._tree, paths, host, cpus=facts.cpu, memory=facts.memory
            ),
        )

    def _advance_clock(self, key: Hashable, paths: CgroupPaths, facts: Facts) -> CpuTimesFacts:
        visible = facts.cpu.visible.value
        usage = read_usage(self._tree, paths)
        with self._lock:
            clock = self._clocks.get(key)
            clock = (
                cpuclock.start(facts.started.value, usage.value, facts.now, visible)
                if clock is None
                else cpuclock.advance(clock, usage.value, facts.now, visible)
            )
            self._clocks[key] = clock
        source = f"{usage.source}, spread over {visible} CPUs ({facts.cpu.visible.source})"
        return CpuTimesFacts(clock, clock.cpus[:visible], source)

    def _advance_disks(self, key: Hashable, paths: CgroupPaths, host: HostFacts) -> DiskFacts:
        present = [line.number for line in host.diskstats]
        with self._lock:
            # Read in here: counters that come in the wrong order would be added twice.
            raw = disk.read_disks(self._tree, paths)
            clock = disk.advance(self._disks.get(key, disk.START), raw, present)
            self._disks[key] = clock
        return disk.disk_facts(clock, raw, host)

    def _forget(self, key: Hashable) -> None:
        self.load_sampler.forget(key)
        self._recent.pop(key, None)
        with self._lock:
            self._clocks.pop(key, None)
            self._disks.pop(key, None)
