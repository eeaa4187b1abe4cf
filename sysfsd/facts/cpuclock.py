"""A container's CPU clock: the counters of the CPUs that it sees.

The kernel counts CPU time per cgroup, and per CPU of the *host*. A container with a quota of one
and a half CPUs, wherever they are, sees two CPUs; their counters exist nowhere but here. The clock
is made so that nothing a program computes from /proc/stat and /proc/uptime can be absurd:

* no counter ever runs backwards, whatever happens to the quota, the cpuset, the cgroup's usage or
  us: a clock that was kept goes on where it stood (`resume`);
* in any interval, each visible CPU's user + system + idle grow by exactly the time that passed;
* the time used, summed over the CPUs, is exactly what the cgroup used: what does not fit into the
  CPUs that are visible (usage is charged per tick, quotas allow bursts) is carried over.

Pure: no clock is read and no file. All times are nanoseconds.
"""

from __future__ import annotations

from typing import NamedTuple

from sysfsd.facts.sourced import saturating_sub

_SECOND = 1_000_000_000


class CpuUsage(NamedTuple):
    """The CPU time that a cgroup and its descendants have used, in ns."""

    user: int
    system: int


class CpuTimes(NamedTuple):
    """The counters of one visible CPU, in ns."""

    user: int = 0
    system: int = 0
    idle: int = 0


class CpuClock(NamedTuple):
    """The state of the clock: a value, replaced by each `advance`."""

    now: int
    """Up to when the counters count, ns since boot."""
    usage: CpuUsage
    """The cgroup's usage at that time."""
    carry: CpuUsage
    """The part of it that no CPU shows yet."""
    cpus: tuple[CpuTimes, ...]
    """Every CPU the container ever saw. Those it does not see at present stand still."""

    @property
    def total(self) -> CpuTimes:
        """The sum over all CPUs, also those that are not visible now.

        As in the kernel, whose sums run over the possible CPUs: they would run backwards otherwise
        when a CPU goes offline.
        """
        return CpuTimes(
            sum(cpu.user for cpu in self.cpus),
            sum(cpu.system for cpu in self.cpus),
            sum(cpu.idle for cpu in self.cpus),
        )


def start(started: int, usage: CpuUsage, now: int, visible: int) -> CpuClock:
    """Make the clock of a container that started at `started` and runs now.

    What its cgroup used beyond what the visible CPUs can have done since then was used by somebody
    before it (a cgroup may be older than the container in it), and is left out.
    """
    born = CpuClock(min(started, now), CpuUsage(0, 0), CpuUsage(0, 0), ())
    clock = advance(born, usage, now, visible)
    return clock._replace(carry=CpuUsage(0, 0))


def settled(usage: CpuUsage, before: CpuUsage) -> CpuUsage:
    """Return a usage of which no part is smaller than before, if their sum is not.

    What was used is exact; how much of it was system time is estimated, from what a timer found now
    and then, and may be estimated lower the next time. The kernel does the same for processes
    (cputime_adjust).
    """
    total = sum(usage)
    if total < sum(before):  # counters that were reset
        return usage
    system = min(max(usage.system, before.system), total - before.user)
    return CpuUsage(total - system, system)


def resume(kept: CpuClock, usage: CpuUsage, now: int, visible: int, online: int) -> CpuClock:
    """Return a clock that nobody advanced for a while (the daemon was away), at `now`.

    The time in between is one step like any other: the kernel has counted the cgroup's usage all
    along. Unless it counts another cgroup's now, since the container was found elsewhere this time:
    then it has less than before, or more than the host's `online` CPUs can have done. Its
    difference to the old count says nothing, and the time counts as idle.
    """
    usage = settled(usage, kept.usage)
    used = sum(usage) - sum(kept.usage)
    # The usage is read a little after the time that goes with it.
    possible = (saturating_sub(now, kept.now) + _SECOND) * online
    if used < 0 or used > possible:
        kept = kept._replace(usage=usage)
    return advance(kept, usage, now, visible)


def advance(clock: CpuClock, usage: CpuUsage, now: int, visible: int) -> CpuClock:
    """Return the clock at `now`, with `visible` CPUs (>= 1) and the cgroup's `usage` until now."""
    elapsed = saturating_sub(now, clock.now)
    usage = settled(usage, clock.usage)
    # The cgroup's own counters may be reset (a write to cpuacct.usage): that is no work done.
    pending_user = clock.carry.user + saturating_sub(usage.user, clock.usage.user)
    pending_system = clock.carry.system + saturating_sub(usage.system, clock.usage.system)
    pending = pending_user + pending_system
    shown = min(pending, elapsed * visible)
    shown_user = pending_user * shown // pending if pending else 0
    shown_system = shown - shown_user

    cpus = clock.cpus + (CpuTimes(),) * (visible - len(clock.cpus))
    each_user, rest_user = divmod(shown_user, visible)
    each_system, rest_system = divmod(shown_system, visible)
    moved = list(cpus)
    for index in range(visible):
        # The odd nanoseconds of user time go to the first CPUs and those of system time to the
        # next ones round the ring, so that no CPU gets more than the time that passed.
        user = each_user + (index < rest_user)
        system = each_system + ((index - rest_user) % visible < rest_system)
        cpu = cpus[index]
        moved[index] = CpuTimes(
            cpu.user + user, cpu.system + system, cpu.idle + elapsed - user - system
        )
    return CpuClock(
        now=max(now, clock.now),
        usage=usage,
        carry=CpuUsage(pending_user - shown_user, pending_system - shown_system),
        cpus=tuple(moved),
    )
