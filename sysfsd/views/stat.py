"""/proc/stat: the counters of the container's CPUs, in ticks of USER_HZ, and of its tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.facts.cpu import NS_PER_TICK
from sysfsd.views.view import Reserve, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sysfsd.facts.collector import Facts
    from sysfsd.facts.cpuclock import CpuTimes

_SOFTIRQS = 10
"""The kernel's kinds of softirq (include/linux/interrupt.h), each a column after the total."""

RESERVE = Reserve(line=64)
"""Three counters that move, of 14 digits each, and zeros."""


def sources(facts: Facts) -> list[Source]:
    """Return the lines of proc_stat(5), each as name and value."""
    times, load = facts.cpu_times, facts.load
    lines = [Source("cpu", _columns(times.clock.total), f"sum over the CPUs of {times.source}")]
    lines += [
        Source(f"cpu{number}", _columns(cpu), times.source)
        for number, cpu in enumerate(times.visible)
    ]
    uncounted = "0: the kernel does not count it per cgroup"
    boot = facts.host.boot_time
    lines += [
        Source("intr", "0", uncounted),
        Source("ctxt", "0", uncounted),
        # The host's on purpose: /proc/<pid>/stat gives start times relative to the host's boot,
        # and ps adds btime to show when a process was started.
        Source("btime", str(boot.value), f"{boot.source}: start times of processes count from it"),
        Source("processes", str(load.last_pid), f"the largest pid seen inside, {load.source}"),
        Source("procs_running", str(load.running), f"in state R of {load.source}"),
        Source("procs_blocked", str(load.tasks.blocked), f"in state D of {load.source}"),
        Source("softirq", " ".join(["0"] * (1 + _SOFTIRQS)), uncounted),
    ]
    return lines


def text(items: Sequence[Source]) -> str:
    """Write the lines."""
    # After "cpu" the kernel writes two spaces, so that the columns stand below each other.
    return "".join(
        f"{item.name}{'  ' if item.name == 'cpu' else ' '}{item.value}\n" for item in items
    )


def _columns(cpu: CpuTimes) -> str:
    """Write user nice system idle iowait irq softirq steal guest guest_nice.

    A cgroup's time is user or system; the kernel does not tell the kinds between them apart.
    """
    user, system, idle = (time // NS_PER_TICK for time in cpu)
    return f"{user} 0 {system} {idle} 0 0 0 0 0 0"
