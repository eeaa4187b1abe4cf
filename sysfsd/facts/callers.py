"""Who asks, when it is none of the registered containers."""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from sysfsd.facts.cpu import NS_PER_TICK
from sysfsd.facts.host import process_started
from sysfsd.facts.placement import placement_of
from sysfsd.facts.sourced import Sourced
from sysfsd.kernel import personality
from sysfsd.kernel.cgroups import read_cgroup_paths
from sysfsd.kernel.procfs import (
    init_of_pid_namespace,
    parse_ns_pids,
    parse_task_stat,
    pid_namespace,
    read_text,
)

if TYPE_CHECKING:
    from sysfsd.facts.placement import Placement
    from sysfsd.kernel.cgroups import Cgroup, CgroupPaths, CgroupTree

MAX_CALLERS = 1024
"""How many callers' containers keep what must live on between two reads: their load averages and
clocks. A Kubernetes node has 110 pods or more, of several containers each."""

MAX_PROCESSES = 256
"""At most so many processes of a container are looked at for the oldest (about 10 us each)."""

MAX_CGROUPS = 64
"""At most so many of its cgroups are walked for them (about 30 us each)."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose view a caller sees. Callers that are equal see the same bytes, and others never do."""

    cgroup: CgroupPaths
    """Its container's, see `placement`."""
    started: Sourced[int]
    """When that was started, in ns since boot."""
    pid_depth: int | None
    """How many pid namespaces below ours its own is; None if that is not known."""
    domain: int | None
    """Its execution domain, where that changes what it may see (`kernel.personality`)."""


class Callers:
    """Tells callers apart. May be used from several threads.

    A container is as old as the oldest process in its cgroup and below. Not as its pid namespace:
    containers of one pod may share that, or have the host's (``--pid=host``). What has been found
    once is kept, as long as no more than `MAX_CALLERS` others come in between, so that no uptime
    runs backwards when a container without an init of its own loses its oldest process.

    What is not known to be a container (a service, a session, a shell in a pid namespace) is as old
    as its pid namespace, and in ours as the host.
    """

    def __init__(
        self,
        tree: CgroupTree,
        *,
        proc: str = "/proc",
        max_kept: int = MAX_CALLERS,
        domains: bool | None = None,
    ) -> None:
        self._tree = tree
        self._proc = proc
        self._max_kept = max_kept
        self._domains = personality.matters() if domains is None else domains
        self._lock = threading.Lock()
        self._starts: OrderedDict[tuple[CgroupPaths, int], Sourced[int]] = OrderedDict()

    def identify(self, pid: int) -> Caller:
        """Say whose view a process (or thread) sees.

        It must be kept from going away (it waits for our answer). Raises OSError if it has.
        """
        place = placement_of(pid, self._proc)
        return Caller(
            cgroup=place.cgroup,
            started=self._started(pid, place),
            pid_depth=pid_depth(pid, self._proc),
            domain=self.domain_of(pid),
        )

    def domain_of(self, pid: int) -> int | None:
        """The execution domain of a process (or thread); None where that makes no difference."""
        return personality.domain_of(pid, self._proc) if self._domains else None

    def _started(self, pid: int, place: Placement) -> Sourced[int]:
        cgroup = self._tree.membership(place.cgroup) if place.bounded else None
        if cgroup is None:
            return self._started_of_pid_namespace(pid)
        with cgroup.levels() as levels:
            key = place.cgroup, levels[0].inode  # another cgroup of that name has another
        with self._lock:
            known = self._starts.get(key)
            if known is not None:
                self._starts.move_to_end(key)
                return known
        found = self._oldest_process(pid, place.cgroup, cgroup)
        if found is None:
            return self._started_of_pid_namespace(pid)
        with self._lock:
            if len(self._starts) >= self._max_kept:
                self._starts.popitem(last=False)
            return self._starts.setdefault(key, found)

    def _oldest_process(self, pid: int, paths: CgroupPaths, cgroup: Cgroup) -> Sourced[int] | None:
        pids = set(heapq.nsmallest(MAX_PROCESSES, self._processes(cgroup)))
        # Pids wrap around. The init of an ordinary container is looked at whatever its number.
        init = init_of_pid_namespace(pid, self._proc)
        if init is not None and self._sits_below(init, paths):
            pids.add(init)
        ages = [(ticks, each) for each in pids if (ticks := self._start_ticks(each)) is not None]
        if not ages:
            return None
        ticks, oldest = min(ages)
        return Sourced(
            ticks * NS_PER_TICK,
            f"start of the oldest process (pid {oldest}) of {cgroup.source('')}",
        )

    def _processes(self, cgroup: Cgroup) -> set[int]:
        pids: set[int] = set()
        for level in cgroup.subtree(MAX_CGROUPS):
            try:
                text = level.read("cgroup.procs")
            except OSError:  # ENODEV: removed while we were in it
                continue
            pids.update(int(each) for each in (text or "").split())
        return pids - {0}  # those of a pid namespace that we do not see

    def _sits_below(self, pid: int, paths: CgroupPaths) -> bool:
        try:
            return paths.contains(read_cgroup_paths(pid, self._proc))
        except OSError:
            return False

    def _start_ticks(self, pid: int) -> int | None:
        try:
            return parse_task_stat(read_text(f"{self._proc}/{pid}/stat")).start_ticks
        except (OSError, ValueError):
            return None

    def _started_of_pid_namespace(self, pid: int) -> Sourced[int]:
        host = Sourced(0, "boot of the host")
        try:
            if pid_namespace(pid, self._proc) == pid_namespace("self", self._proc):
                return host
        except PermissionError:  # a caller that may do more than we may
            return host
        init = init_of_pid_namespace(pid, self._proc)
        if init is None:
            return host
        try:
            return Sourced(int(process_started(init) * 1e9), "start of the caller's pid namespace")
        except psutil.Error:
            return host


def pid_depth(pid: int, proc: str = "/proc") -> int | None:
    """Return how many pid namespaces below ours a process's own is; None if it is gone."""
    try:
        pids = parse_ns_pids(read_text(f"{proc}/{pid}/status"))
    except OSError:
        return None
    return len(pids) - 1 if pids else None
