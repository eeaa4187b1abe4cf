"""What processes cost: CPU time and memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

_CPUCLOCK_SCHED = 2


def cpu_ns(pid: int) -> int:
    """What all threads of a process, also those that ended, have run for, in nanoseconds.

    Its CPU clock, as clock_getcpuclockid(3) names it: /proc/<pid>/stat counts in ticks of 10 ms,
    and a round has a few. Raises ``OSError`` when there is no such process.
    """
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)


def tree(pid: int) -> tuple[int, ...]:
    """A process and its descendants."""
    return (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))


def spent_ns(pids: Iterable[int]) -> int:
    """CPU time of processes, and of their children that ended, in nanoseconds."""
    spent = 0
    for pid in pids:
        times = psutil.Process(pid).cpu_times()
        spent += cpu_ns(pid) + int((times.children_user + times.children_system) * 1e9)
    return spent


def resident_bytes(pids: Iterable[int]) -> int:
    """Their resident memory together, shared pages counted each time."""
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)
