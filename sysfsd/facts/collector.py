"""Collects the facts of one container for one refresh of its views."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import psutil

from sysfsd.facts import cpuclock, disk
from sysfsd.facts.callers import MAX_CALLERS, Callers, pid_depth
from sysfsd.facts.cpu import TICKS_PER_SECOND, CpuFacts, read_cpus, read_usage
from sysfsd.facts.host import HostFacts, boottime_ns
from sysfsd.facts.hugepages import HugePagesFacts, read_hugepages
from sysfsd.facts.kept import Kept
from sysfsd.facts.load import LoadFacts, LoadSampler, Target
from sysfsd.facts.memory import MemoryFacts, read_memory, read_oom_kills
from sysfsd.facts.nodes import NodesFacts, read_nodes
from sysfsd.facts.pressure import Stall, read_pressure
from sysfsd.facts.sourced import Sourced, saturating_sub
from sysfsd.policy import DEFAULT, HIGH_LIMIT, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sysfsd.facts.callers import Caller
    from sysfsd.facts.cpuclock import CpuClock
    from sysfsd.facts.disk import DiskClock, DiskFacts
    from sysfsd.facts.load import KeptLoad
    from sysfsd.kernel.cgroups import CgroupPaths, CgroupTree
    from sysfsd.kernel.openfiles import OpenFiles

T = TypeVar("T")

_SHARED_FOR = 5
"""For one of so many parts of a refresh what one container learned of the host is for all."""

_BOOT_TIME_NS = 1_000_000_000

REFRESH_NS = 50_000_000
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

    @property
    def policy(self) -> Policy:
        """What is decided about it."""


class Keeper(Protocol):
    """Where counters outlive the daemon (`sysfsd.facts.keeper`)."""

    def open(self, key: Hashable, pid: int, start_ticks: int) -> Kept:
        """Begin to keep those of a container; returns what was kept of them before."""

    def keep_clock(self, key: Hashable, clock: CpuClock) -> None:
        """Keep its clock. Others than containers are passed over."""

    def keep_load(self, key: Hashable, load: KeptLoad) -> None:
        """Keep its load. Others than containers are passed over."""

    def keep_disks(self, key: Hashable, disks: DiskClock) -> None:
        """Keep what it did on disks. Others than containers are passed over."""

    def close(self, key: Hashable) -> None:
        """Keep no more of it."""


class _NoKeeper:
    """Keeps nothing: for ``sysfsd mount``, which has no place for it."""

    def open(self, _key: Hashable, _pid: int, _start_ticks: int) -> Kept:
        return Kept()

    def keep_clock(self, _key: Hashable, _clock: CpuClock) -> None:
        pass

    def keep_load(self, _key: Hashable, _load: KeptLoad) -> None:
        pass

    def keep_disks(self, _key: Hashable, _disks: DiskClock) -> None:
        pass

    def close(self, _key: Hashable) -> None:
        pass


class _Whose(NamedTuple):
    """Whose facts are wanted: a registered container's, or a caller's."""

    key: Hashable
    paths: CgroupPaths
    started: Sourced[int]
    domain: int | None
    policy: Policy


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
        pressure: Callable[[str], Sourced[tuple[Stall, ...]]],
    ) -> None:
        self.host = host
        self.started = started
        """When the container was started: ns since boot."""
        self.now = now
        """The moment of this refresh: ns since boot."""
        self.current_until = current_until
        """Until when they answer for the container: ns since boot."""
        self._made: dict[Hashable, Any] = {}
        self._memory = memory
        self._cpu = cpu
        self._cpu_times = cpu_times
        self._load = load
        self._disk = disk
        self._oom_kills = oom_kills
        self._nodes = nodes
        self._hugepages = hugepages
        self._pressure = pressure

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

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made of these facts under that key; made now, if nobody has before."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def limits(self) -> dict[str, object]:
        """Return what files depend on that change with limits only, as far as it has been read."""
        known: dict[str, object] = {}
        if "cpu" in self.__dict__:
            known["cpu"] = self.cpu.visible.value, self.cpu.numbers
        if "memory" in self.__dict__:
            known["memory"] = self.memory.total.value
        if "nodes" in self.__dict__:
            known["nodes"] = self.nodes.numbers
        return known

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

    def pressure(self, resource: str) -> Sourced[tuple[Stall, ...]]:
        """For how long its tasks waited for a resource."""
        return self._pressure(resource)


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
        refresh_ns: Callable[[], int] = lambda: REFRESH_NS,
        policy: Policy = DEFAULT,
        keeper: Keeper | None = None,
        files: OpenFiles | None = None,
    ) -> None:
        """Make one; `policy` is that of callers that belong to no registered container.

        What it reads again and again stays open in `files`, which remain yours.
        """
        self._files = files
        self._tree = tree if files is None else tree.keeping(files)
        self._tracked: set[int] = set()
        self._hosts: dict[int | None, tuple[int, HostFacts]] = {}
        self._proc = proc
        self._sys = sys
        self._now = clock
        self._read_boot_time = boot_time
        self._booted: tuple[int, float] | None = None
        self._max_callers = max_callers
        self._policy = policy
        self._refresh_ns = refresh_ns
        self._recent: OrderedDict[tuple[Hashable, int | None, bool], Facts] = OrderedDict()
        self._lock = threading.Lock()
        self._keeper = keeper or _NoKeeper()
        self._clocks: dict[Hashable, CpuClock] = {}
        self._resumed: dict[Hashable, CpuClock] = {}
        self._disks: dict[Hashable, DiskClock] = {}
        self._callers: OrderedDict[Caller, None] = OrderedDict()
        self.callers = Callers(tree, proc=proc, max_kept=max_callers)
        """Tells who asks, for `facts_of_caller`."""
        self.load_sampler = LoadSampler(
            tree, proc=proc, clock=clock, keep=self._keeper.keep_load, files=files
        )
        """Call its `sample_all` every 5 seconds, in a worker thread."""

    def track(self, container: Container) -> None:
        """Start what a container's facts need over time; `facts` does so by itself if need be."""
        key = container.serial
        if self.load_sampler.tracks(key):
            return
        self._tracked.add(key)
        # In whole ticks, as the kernel has it: this names the process.
        kept = self._keeper.open(key, container.pid, round(container.started * TICKS_PER_SECOND))
        with self._lock:
            if kept.clock is not None:
                self._resumed[key] = kept.clock
            if kept.disks is not None:
                self._disks[key] = kept.disks
        target = Target(container.cgroup, pid_depth(container.pid, self._proc))
        self.load_sampler.track(key, target, kept.load)

    def facts(self, container: Container, *, domain: int | None = None) -> Facts:
        """Return the facts of a container, no older than a refresh.

        ``domain`` is the execution domain of who reads them, if not that of its init counts.
        """
        self.track(container)
        started = Sourced(
            int(container.started * 1e9), f"start of the container's init (pid {container.pid})"
        )
        whose = _Whose(
            container.serial,
            container.cgroup,
            started,
            container.domain if domain is None else domain,
            container.policy,
        )
        return self._facts(whose)

    def forget(self, container: Container) -> None:
        """Drop what is kept for a container that is gone."""
        self._forget(container.serial)
        self._tracked.discard(container.serial)
        if self._files is not None:
            for path in {path for _, path in container.cgroup.entries if path != "/"}:
                self._files.close_below(path)
            if not self._tracked:  # the host's, and ancestors'
                self._files.close()
        self._keeper.close(container.serial)

    def expire(self, container: Container) -> None:
        """Have the next facts of a container read anew: its limits have changed."""
        for key in [key for key in self._recent if key[0] == container.serial]:
            del self._recent[key]

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
        whose = _Whose(caller, caller.cgroup, caller.started, caller.domain, self._policy)
        return self._facts(whose, opening=opening)

    def _facts(self, whose: _Whose, *, opening: bool = True) -> Facts:
        now = self._now()
        key = whose.key, whose.domain, opening
        recent = self._recent.get(key)
        if recent is None or recent.current_until <= now:
            # The oldest first: on a large machine they hold a megabyte each.
            while self._recent and next(iter(self._recent.values())).current_until <= now:
                self._recent.popitem(last=False)
            recent = self._recent[key] = self._new_facts(whose, now)
            self._recent.move_to_end(key)
        return recent

    def _new_facts(self, whose: _Whose, now: int) -> Facts:
        paths, policy = whose.paths, whose.policy
        refresh_ns = self._refresh_ns()
        since, host = self._host(whose.domain, now, refresh_ns // _SHARED_FOR)
        return Facts(
            host=host,
            started=whose.started,
            now=now,
            current_until=since + refresh_ns,
            memory=lambda: read_memory(
                self._tree.controller(paths, "memory"),
                host,
                high=policy.memory_high == HIGH_LIMIT,
            ),
            cpu=lambda: read_cpus(self._tree, paths, host, policy.cpu),
            cpu_times=lambda facts: self._advance_clock(whose.key, paths, facts),
            load=lambda: self.load_sampler.load(whose.key),
            disk=lambda: self._advance_disks(whose.key, paths, host),
            oom_kills=lambda: read_oom_kills(self._tree.controller(paths, "memory")),
            hugepages=lambda: read_hugepages(lambda: self._tree.controller(paths, "hugetlb"), host),
            nodes=lambda facts: read_nodes(
                self._tree, paths, host, cpus=facts.cpu, memory=facts.memory
            ),
            pressure=lambda resource: read_pressure(self._tree, paths, resource),
        )

    def _boot_time(self) -> float:
        # A file that takes the kernel long to make, where there are many CPUs and interrupts; this
        # changes only when somebody sets the clock.
        now = self._now()
        if self._booted is None or not 0 <= now - self._booted[0] < _BOOT_TIME_NS:
            self._booted = now, self._read_boot_time()
        return self._booted[1]

    def _host(self, domain: int | None, now: int, oldest: int) -> tuple[int, HostFacts]:
        """Return the host's facts, and since when: one for all that refresh at about the same time.

        What is made of them lives as much shorter as they are older.
        """
        known = self._hosts.get(domain)
        if known is None or not 0 <= now - known[0] < oldest:
            host = HostFacts(
                proc=self._proc,
                sys=self._sys,
                boot_time=self._boot_time,
                domain=domain,
                files=self._files,
            )
            known = self._hosts[domain] = now, host
        return known

    def _advance_clock(self, key: Hashable, paths: CgroupPaths, facts: Facts) -> CpuTimesFacts:
        visible = facts.cpu.visible.value
        usage = read_usage(self._tree, paths)
        online = len(facts.host.online_cpus.value) if key in self._resumed else 0
        with self._lock:
            known, kept = self._clocks.get(key), self._resumed.pop(key, None)
            if known is not None:
                clock = cpuclock.advance(known, usage.value, facts.now, visible)
            elif kept is not None:
                clock = cpuclock.resume(kept, usage.value, facts.now, visible, online)
            else:
                clock = cpuclock.start(facts.started.value, usage.value, facts.now, visible)
            self._clocks[key] = clock
            # Before anybody is told.
            self._keeper.keep_clock(key, clock)
        source = f"{usage.source}, spread over {visible} CPUs ({facts.cpu.visible.source})"
        return CpuTimesFacts(clock, clock.cpus[:visible], source)

    def _advance_disks(self, key: Hashable, paths: CgroupPaths, host: HostFacts) -> DiskFacts:
        present = [line.number for line in host.diskstats]
        with self._lock:
            # Read in here: counters that come in the wrong order would be added twice.
            raw = disk.read_disks(self._tree, paths)
            before = self._disks.get(key, disk.START)
            self._disks[key] = clock = disk.advance(before, raw, present, host.has_disks_below)
            if clock != before:
                # Before anybody is told.
                self._keeper.keep_disks(key, clock)
        return disk.disk_facts(clock, raw, host)

    def _forget(self, key: Hashable) -> None:
        self.load_sampler.forget(key)
        for each in [each for each in self._recent if each[0] == key]:
            del self._recent[each]
        with self._lock:
            self._clocks.pop(key, None)
            self._resumed.pop(key, None)
            self._disks.pop(key, None)
