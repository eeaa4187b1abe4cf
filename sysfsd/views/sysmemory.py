"""/sys/devices/system/memory: the container's memory as one block of just that size.

The kernel cuts a machine's memory into blocks that can be plugged, of one size for all (128 MiB on
most). lsmem(1) and others multiply that size by the blocks online. A limit is no multiple of it, so
a container has one block.

Source: the kernel's admin-guide/mm/memory-hotplug.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.views.view import Source, View, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sysfsd.facts.collector import Facts

_BASE = "sys/devices/system/memory"
_ONE = "the container's memory is one block"


def _block_size(facts: Facts) -> list[Source]:
    # In kB as /proc/meminfo shows it: a limit need not be a multiple.
    total = facts.memory.total
    return [Source("bytes, hexadecimal", f"{total.value // 1024 * 1024:x}", total.source)]


_BLOCK = (
    ("phys_index", "00000000"),
    ("online", "1"),
    ("state", "online"),
    ("removable", "0"),
    ("valid_zones", "none"),
)

FILES: Sequence[View] = (
    View(f"{_BASE}/block_size_bytes", _block_size, one_line),
    View(f"{_BASE}/auto_online_blocks", lambda _: [Source("policy", "offline", _ONE)], one_line),
    *(
        View(
            f"{_BASE}/memory0/{name}",
            lambda _facts, name=name, value=value: [Source(name, value, _ONE)],  # type: ignore[misc]
            one_line,
        )
        for name, value in _BLOCK
    ),
)
