"""/sys/devices/system/cpu/{online,possible,present}: the numbers of the CPUs.

All three are the same: a container's CPUs are numbered from 0 without holes, and one that it does
not see cannot be plugged in either. (The C library counts ``possible`` for ``_SC_NPROCESSORS_CONF``
and ``online`` for ``_SC_NPROCESSORS_ONLN``.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.kernel.procfs import format_cpu_range
from sysfsd.views.view import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sysfsd.facts.collector import Facts


def sources(facts: Facts) -> list[Source]:
    """Return the one list."""
    visible = facts.cpu.visible
    return [Source("cpus", format_cpu_range(visible.value), visible.source)]


def text(items: Sequence[Source]) -> str:
    """Write the line."""
    return f"{items[0].value}\n"
