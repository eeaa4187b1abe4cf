"""/proc/pressure/{cpu,memory,io,irq}: for how long the container's tasks waited for each.

Attached containers read the kernel's own file of their cgroup instead, where there is one, because
only that takes triggers (``attach``). It says the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.views.view import Reserve, Source, View

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sysfsd.facts.collector import Facts
    from sysfsd.facts.pressure import Stall
    from sysfsd.facts.sourced import Sourced

RESERVE = Reserve(line=80)
"""Averages of up to 100.00, and microseconds of 31,000 years."""


def sources(resource: str) -> Callable[[Facts], list[Source]]:
    """Return the function that gives the lines of one resource, each as name and value."""
    return lambda facts: items(facts.pressure(resource))


def items(stalls: Sourced[tuple[Stall, ...]]) -> list[Source]:
    """Return the lines of one resource."""
    return [Source(stall.kind, numbers(stall), stalls.source) for stall in stalls.value]


def text(lines: Sequence[Source]) -> str:
    """Write the lines."""
    return "".join(f"{line.name} {line.value}\n" for line in lines)


def numbers(stall: Stall) -> str:
    """Write what follows ``some`` or ``full``, as the kernel's psi_show does."""
    _, avg10, avg60, avg300, total = stall
    return (
        f"avg10={_percent(avg10)} avg60={_percent(avg60)} avg300={_percent(avg300)} total={total}"
    )


def _percent(hundredths: int) -> str:
    return f"{hundredths // 100}.{hundredths % 100:02d}"


FILES: Sequence[View] = tuple(
    View(f"proc/pressure/{resource}", sources(resource), text, moves=RESERVE)
    for resource in ("cpu", "memory", "io", "irq")
)
"""One for each resource."""
