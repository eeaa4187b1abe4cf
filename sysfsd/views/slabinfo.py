"""/proc/slabinfo: no slab at all. The caches are the host's, and how full they are tells of others.

What slab a container is charged with is a sum, which /proc/meminfo shows; since Linux 5.9 no kernel
tells the caches of a cgroup. Only root may read this file: the view has the kernel's mode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.views.view import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sysfsd.facts.collector import Facts

_COLUMNS = (
    "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>"
    " : tunables <limit> <batchcount> <sharedfactor>"
    " : slabdata <active_slabs> <num_slabs> <sharedavail>"
)


def sources(_facts: Facts) -> list[Source]:
    """Return the two lines of the header."""
    why = "the format of slabinfo(5); the kernel counts no caches per cgroup"
    return [Source("version", "slabinfo - version: 2.1", why), Source("columns", _COLUMNS, why)]


def text(items: Sequence[Source]) -> str:
    """Write the lines."""
    return "".join(f"{item.value}\n" for item in items)
