"""/proc/swaps: the container's swap as one device, in kB; agrees with /proc/meminfo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.views.view import Reserve, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sysfsd.facts.collector import Facts

_HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"

RESERVE = Reserve(line=80)
"""Room for sizes of ten digits; the header is 39 long, the line of less 67."""


def sources(facts: Facts) -> list[Source]:
    """Return size and use of the container's swap."""
    memory = facts.memory
    return [
        Source("Size", str(memory.swap_total.value // 1024), memory.swap_total.source),
        Source("Used", str(memory.swap_used.value // 1024), memory.swap_used.source),
    ]


def text(items: Sequence[Source]) -> str:
    """Write the header, and the device if there is any swap."""
    size, used = (item.value for item in items)
    if size == "0":
        return _HEADER
    # The host's devices are none of the container's business: what it has is an amount.
    return f"{_HEADER}{'none':<40}virtual\t\t{_tabbed(size)}\t{_tabbed(used)}\t0\n"


def _tabbed(value: str) -> str:
    """Give a short number a second tab, as the kernel does to keep its columns."""
    return value + "\t" if len(value) < 8 else value
