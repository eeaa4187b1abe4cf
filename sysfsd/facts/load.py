"""A container's load average, made as the kernel makes the host's.

Pure parts first (`step`, `advance`), then `LoadSampler`, which counts the tasks of every container
each `INTERVAL_SECONDS`: of every one in which anything ran since it was counted. A task that does
not run does not change its state, so where the cgroup's CPU time stands still the last count holds.

The fixed-point arithmetic and its constants are those of the kernel's
kernel/sched/loadavg.c and include/linux/sched/loadavg.h: 11 fractional bits, and the factors
e^(-5s/1min), e^(-5s/5min) and e^(-5s/15min).
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.facts.host import boottime_ns
from sysfsd.kernel.procfs import parse_ns_pids, parse_task_stat, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from sysfsd.kernel.cgroups import Cgroup, CgroupPaths, CgroupTree
    from sysfsd.kernel.openfiles import Key, OpenFiles

INTERVAL_SECONDS = 5

FSHIFT = 11
FIXED_1 = 1 << FSHIFT
EXPONENTS = (1884, 2014, 2037)

MAX_TASKS = 4096
"""At most so many tasks of a container are looked at in one sample (about 10 us each)."""

MAX_CGROUPS = 1024
"""At most so many cgroups below a container's are walked in one sample."""

MAX_TASKS_PER_ROUND = 65536
"""After so many tasks a round ends; the next one begins with the containers that were left out."""

RECOUNT_ROUNDS = 12
"""After so many rounds tasks are counted although none ran: somebody may have moved some in."""

_INTERVAL_NS = INTERVAL_SECONDS * 1_000_000_000


class Averages(NamedTuple):
    """The averages over 1, 5 and 15 minutes, as fixed-point numbers with `FSHIFT` bits."""

    one: int = 0
    five: int = 0
    fifteen: int = 0


class TaskCount(NamedTuple):
    """What one sample of a container's tasks found."""

    running: int = 0
    """Tasks in state R: running or waiting for a CPU."""
    blocked: int = 0
    """Tasks in state D: waiting, mostly for a disk, in a way that counts as load."""
    total: int = 0
    """All tasks: threads, as the kernel counts them."""
    newest_pid: int = 0
    """The pid of the task that was made last, as numbered in the container."""
    truncated: bool = False
    """There were more tasks or cgroups than are looked at."""


@dataclass(frozen=True, slots=True)
class LoadFacts:
    """One container's load."""

    averages: Averages
    tasks: TaskCount
    last_pid: int
    """The largest pid seen so far in the container's own numbering; never a pid of the host."""
    source: str
    """Where the tasks were counted."""
    sampled: int
    """When the averages were last moved, ns since boot."""

    @property
    def running(self) -> int:
        """Running tasks; at least the one that asks, as in the kernel's own count."""
        return max(1, self.tasks.running)

    @property
    def total(self) -> int:
        """All tasks; at least those that run."""
        return max(self.running, self.tasks.total)

    @property
    def kept(self) -> KeptLoad:
        """What of it outlives the daemon."""
        return KeptLoad(self.averages, self.last_pid, self.sampled)


class KeptLoad(NamedTuple):
    """What of a load outlives the daemon."""

    averages: Averages
    last_pid: int
    sampled: int


def decay(factor: int, periods: int) -> int:
    """Return ``factor ** periods`` in fixed point, rounded to nearest as the kernel does."""
    result = FIXED_1
    while periods:
        if periods & 1:
            result = (result * factor + (FIXED_1 >> 1)) >> FSHIFT
        periods >>= 1
        factor = (factor * factor + (FIXED_1 >> 1)) >> FSHIFT
    return result


def step(average: int, factor: int, active: int, periods: int = 1) -> int:
    """Move one average by some periods of 5 s in which `active` tasks were running or blocked.

    Several periods at once are what the kernel does after a CPU slept through them; here, when the
    sampler is late.
    """
    if periods <= 0:
        return average
    target = active << FSHIFT
    factor = decay(factor, periods)
    moved = average * factor + target * (FIXED_1 - factor)
    if target >= average:
        moved += FIXED_1 - 1  # round up while rising, or the average never arrives
    return moved >> FSHIFT


def advance(load: LoadFacts, tasks: TaskCount, now: int) -> LoadFacts:
    """Return the load after a sample taken at `now`."""
    # Half a period of grace: a sampler that wakes a little early or late still counts each once.
    periods = max(0, (now - load.sampled + _INTERVAL_NS // 2) // _INTERVAL_NS)
    active = tasks.running + tasks.blocked
    return replace(
        load,
        averages=Averages(
            *(
                step(average, factor, active, periods)
                for average, factor in zip(load.averages, EXPONENTS, strict=True)
            )
        ),
        tasks=tasks,
        last_pid=max(load.last_pid, tasks.newest_pid),
        sampled=load.sampled + periods * _INTERVAL_NS,
    )


def format_average(average: int) -> str:
    """Format a fixed-point average with two decimals, as /proc/loadavg does."""
    rounded = average + FIXED_1 // 200
    return f"{rounded >> FSHIFT}.{((rounded & (FIXED_1 - 1)) * 100) >> FSHIFT:02d}"


class Target(NamedTuple):
    """Whose tasks to count."""

    paths: CgroupPaths
    pid_depth: int | None
    """How many pid namespaces below ours the container's is: which NSpid is the container's.

    None if that is not known; then no pid is shown, rather than one of the host.
    """


class _Count(NamedTuple):
    """The last count of a container's tasks."""

    activity: bytes | None
    """What its activity file said before they were counted."""
    tasks: TaskCount
    source: str


@dataclass(slots=True)
class _Tracked:
    """A container whose tasks are counted."""

    target: Target
    number: int
    """By which those that are counted again take turns."""
    activity: Key | None
    """The file that says for how long its tasks have run; None if there is none of its own."""
    last: _Count | None = None


@dataclass(frozen=True, slots=True)
class SampleReport:
    """What one round over all containers did."""

    containers: int
    counted: int
    """Containers whose tasks were counted, because some had run."""
    tasks: int
    """Tasks that were looked at."""
    truncated: int
    """Containers with more tasks than were looked at."""
    vanished: int
    """Containers whose cgroup was gone."""
    postponed: int
    """Containers left to the next round, because this one had its fill of tasks."""


class LoadSampler:
    """Keeps the load of every tracked container. May be used from several threads."""

    def __init__(
        self,
        tree: CgroupTree,
        *,
        proc: str = "/proc",
        clock: Callable[[], int] = boottime_ns,
        max_tasks: int = MAX_TASKS,
        max_tasks_per_round: int = MAX_TASKS_PER_ROUND,
        keep: Callable[[Hashable, KeptLoad], None] = lambda _key, _load: None,
        files: OpenFiles | None = None,
    ) -> None:
        """Make one; `keep` is called with every load before anybody gets to see it.

        What says whether anything ran stays open in `files`, which remain yours, if there are any.
        """
        self._files = files
        self._tree = tree
        self._proc = proc
        self._clock = clock
        self._max_tasks = max_tasks
        self._max_tasks_per_round = max_tasks_per_round
        self._keep = keep
        self._lock = threading.Lock()
        self._tracked: dict[Hashable, _Tracked] = {}
        self._numbers = itertools.count()
        self._round = 0
        self._loads: dict[Hashable, LoadFacts] = {}
        self._resumed: dict[Hashable, KeptLoad] = {}
        self._postponed: list[Hashable] = []
        self._last_report = SampleReport(0, 0, 0, 0, 0, 0)

    def track(self, key: Hashable, target: Target, kept: KeptLoad | None = None) -> None:
        """Keep averages for a container from now on (idempotent), which go on from `kept`."""
        with self._lock:
            if key in self._tracked:
                return
            if kept is not None:
                self._resumed[key] = kept
            activity = _activity_file(self._tree, target.paths)
            self._tracked[key] = _Tracked(target, next(self._numbers), activity)

    def tracks(self, key: Hashable) -> bool:
        """Return whether averages are kept for a container."""
        return key in self._tracked

    def forget(self, key: Hashable) -> None:
        """Stop keeping them."""
        with self._lock:
            self._tracked.pop(key, None)
            self._loads.pop(key, None)
            self._resumed.pop(key, None)

    def load(self, key: Hashable) -> LoadFacts:
        """Return the load of a tracked container; counts its tasks now if nobody has before.

        Raises KeyError if it is not tracked, and OSError if its cgroup is gone.
        """
        with self._lock:
            tracked = self._tracked[key]
            known = self._loads.get(key)
        return self._sample(key, tracked)[0] if known is None else known

    def sample_all(self) -> SampleReport:
        """Count the tasks of every container and move its averages: call every 5 seconds.

        Synchronous and bounded; meant for a worker thread.
        """
        with self._lock:
            targets = dict(self._tracked)
        self._round += 1
        turns = [key for key in self._postponed if key in targets]
        first = frozenset(turns)
        turns += [key for key in targets if key not in first]
        counted = tasks = truncated = vanished = done = 0
        for key in turns:
            if tasks >= self._max_tasks_per_round:
                break
            done += 1
            try:
                load, was_counted = self._sample(key, targets[key])
            except OSError:
                vanished += 1
                continue
            if was_counted:
                counted += 1
                tasks += min(load.tasks.total, self._max_tasks)
            truncated += load.tasks.truncated
        # Their averages catch up on the periods they missed when their turn comes.
        self._postponed = turns[done:]
        self._last_report = SampleReport(
            len(targets), counted, tasks, truncated, vanished, len(self._postponed)
        )
        return self._last_report

    @property
    def last_report(self) -> SampleReport:
        """What the last round did, for the daemon's counters."""
        return self._last_report

    def _sample(self, key: Hashable, tracked: _Tracked) -> tuple[LoadFacts, bool]:
        """Move a container's averages; returns its load, and whether its tasks were counted."""
        # Before they are counted: what runs from here on shows next time.
        activity = None if tracked.activity is None else self._read(tracked.activity)
        count = tracked.last
        idle = count is not None and activity is not None and count.activity == activity
        if count is None or not idle or (self._round + tracked.number) % RECOUNT_ROUNDS == 0:
            count, idle = self._count(tracked.target, activity), False
            tracked.last = count
        tasks, source = count.tasks, count.source
        now = self._clock()
        with self._lock:
            before = self._loads.get(key)
            kept = None if before is None else before.kept
            if before is None:
                start = self._resumed.pop(key, KeptLoad(Averages(), tasks.newest_pid, now))
                if not any(start.averages):
                    # There is nothing to decay, and what runs now may have begun just now.
                    start = start._replace(sampled=now)
                before = LoadFacts(start.averages, tasks, start.last_pid, source, start.sampled)
            after = advance(before, tasks, now)
            if key in self._tracked:  # forgotten meanwhile: leave nothing behind
                if kept is None or any(after.averages) or after.kept[:2] != kept[:2]:
                    self._keep(key, after.kept)
                self._loads[key] = after
            return after, not idle

    def _read(self, key: Key) -> bytes | None:
        if self._files is not None:
            return self._files.read(*key)
        mountpoint, path, name = key
        return read_text(f"{mountpoint}{path}/{name}").encode()

    def _count(self, target: Target, activity: bytes | None) -> _Count:
        cgroup = self._tree.membership(target.paths)
        if cgroup is None:
            return _Count(activity, TaskCount(), "0: no cgroup")
        tasks = count_tasks(
            cgroup, proc=self._proc, pid_depth=target.pid_depth, limit=self._max_tasks
        )
        return _Count(activity, tasks, f"tasks of {cgroup.source('')} and below")


def _activity_file(tree: CgroupTree, paths: CgroupPaths) -> Key | None:
    """The file that changes whenever a task of a container's cgroup, or below, has run.

    cpuacct.usage is charged to a cgroup and all above it (``cpuacct_charge``), and so is what v2
    has in cpu.stat, with the cpu controller or without. None where the container is in the root.
    """
    try:
        # Not by the controller's name on v2, where it has none.
        cgroup = tree.unified(paths)
        name = "cpu.stat"
        if paths.get("cpuacct") is not None:
            cgroup, name = tree.controller(paths, "cpuacct"), "cpuacct.usage"
    except OSError:
        return None
    return None if cgroup is None or cgroup.is_root else (cgroup.mountpoint, cgroup.path, name)


def count_tasks(
    cgroup: Cgroup, *, proc: str, pid_depth: int | None, limit: int = MAX_TASKS
) -> TaskCount:
    """Count the tasks of a cgroup and all cgroups below it; raises OSError if it is gone.

    Tasks that end meanwhile count in the total only.
    """
    states: dict[str, int] = {}
    newest = (-1, 0)  # start time, tid
    total = looked_at = cgroups = 0
    for tids in _task_ids(cgroup):
        cgroups += 1
        total += len(tids)
        for tid in tids[: limit - looked_at]:
            looked_at += 1
            try:
                stat = parse_task_stat(read_text(f"{proc}/{tid}/stat"))
            except (OSError, ValueError):
                continue
            states[stat.state] = states.get(stat.state, 0) + 1
            newest = max(newest, (stat.start_ticks, tid))
    return TaskCount(
        running=states.get("R", 0),
        blocked=states.get("D", 0),
        total=total,
        newest_pid=_pid_inside(newest[1], pid_depth, proc) if newest[1] else 0,
        truncated=total > looked_at or cgroups >= MAX_CGROUPS,
    )


def _task_ids(cgroup: Cgroup) -> Iterator[list[int]]:
    name = "tasks" if cgroup.version == 1 else "cgroup.threads"
    for level in cgroup.subtree(MAX_CGROUPS):
        try:
            text = level.read(name)
        except OSError:  # ENODEV: removed while we were in it
            continue
        yield [int(tid) for tid in (text or "").split()]


def _pid_inside(tid: int, depth: int | None, proc: str) -> int:
    """Return the pid of a task as numbered `depth` namespaces below ours; 0 if it is not there."""
    if depth is None:
        return 0
    try:
        pids = parse_ns_pids(read_text(f"{proc}/{tid}/status"))
    except OSError:
        return 0
    return pids[depth] if depth < len(pids) else 0
