"""/proc/uptime: for how long the container runs, and how long its CPUs were idle, in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.views.view import Reserve, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sysfsd.facts.collector import Facts

RESERVE = Reserve(line=32)
"""Two numbers of seconds, of which the second grows with the number of CPUs."""


def sources(facts: Facts) -> list[Source]:
    """Return the two numbers. As in the kernel, idle time is summed over the CPUs."""
    times = facts.cpu_times
    return [
        Source("uptime", _seconds(facts.uptime.value), facts.uptime.source),
        Source("idle", _seconds(times.clock.total.idle), f"uptime of each CPU - {times.source}"),
    ]


def text(items: Sequence[Source]) -> str:
    """Write the line."""
    return f"{items[0].value} {items[1].value}\n"


def _seconds(nanoseconds: int) -> str:
    # Cut, not rounded, as the kernel does: a rounded uptime would lie in the future.
    hundredths = nanoseconds // 10_000_000
    return f"{hundredths // 100}.{hundredths % 100:02d}"
