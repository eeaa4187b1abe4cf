"""Facts about the pressure of a container: for how long its tasks waited for a resource.

The kernel counts pressure in every cgroup of cgroup v2, in the container's own as well, and in
nothing of cgroup v1. Sources: the kernel's accounting/psi.rst; kernel/sched/psi.c (``psi_show``).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.facts.sourced import Sourced

if TYPE_CHECKING:
    from sysfsd.kernel.cgroups import Cgroup, CgroupPaths, CgroupTree

RESOURCES = ("cpu", "memory", "io", "irq")
"""Each is a file ``/proc/pressure/<resource>``, and ``<resource>.pressure`` of a cgroup."""

_LINE = re.compile(
    r"(some|full) avg10=(\d+)\.(\d\d) avg60=(\d+)\.(\d\d) avg300=(\d+)\.(\d\d) total=(\d+)"
)

_WHOLE = 100_00
"""100 %, as the averages count."""


class Stall(NamedTuple):
    """One line: how long ``some`` task waited, or all that could run (``full``)."""

    kind: str
    avg10: int = 0
    """Share of the last 10 s, in hundredths of a percent: 0 to 10000."""
    avg60: int = 0
    avg300: int = 0
    total: int = 0
    """Microseconds since the cgroup was made. Never runs backwards."""


def read_pressure(
    tree: CgroupTree, paths: CgroupPaths, resource: str
) -> Sourced[tuple[Stall, ...]]:
    """Read the pressure of the container's own cgroup; zeros where the kernel counts none.

    The root of cgroup v2 stands for the whole machine. A container that sits there is told
    nothing, because when the host's other tasks wait is a side channel. Raises OSError if the
    cgroup is gone, ValueError if the file is not what this module knows.
    """
    cgroup = own_cgroup(tree, paths)
    if cgroup is None:
        return Sourced(_none(resource), "0: the container has no cgroup v2, and v1 counts none")
    name = f"{resource}.pressure"
    text = cgroup.read(name)
    if text is None:  # cgroup.pressure is 0
        return Sourced(_none(resource), f"0: the kernel has no {cgroup.source(name)}")
    return Sourced(parse_pressure(text), cgroup.source(name))


def own_cgroup(tree: CgroupTree, paths: CgroupPaths) -> Cgroup | None:
    """Return the cgroup that counts a container's pressure; None if there is none of its own."""
    cgroup = tree.unified(paths)
    return None if cgroup is None or cgroup.is_root else cgroup


def resources_of_kernel(proc: str = "/proc") -> list[str]:
    """Return the resources that the running kernel counts: none without ``psi=1``."""
    return [name for name in RESOURCES if os.path.exists(f"{proc}/pressure/{name}")]


def parse_pressure(text: str) -> tuple[Stall, ...]:
    """Parse a pressure file; raises ValueError for anything else.

    ``some`` and ``full``, but ``full`` alone for interrupts, during which no task runs.
    """
    stalls = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"not a line of a pressure file: {line[:80]!r}")
        numbers = [int(number) for number in match.groups()[1:]]
        avg10, avg60, avg300 = (
            min(whole * 100 + hundredths, _WHOLE)
            for whole, hundredths in zip(numbers[:6:2], numbers[1:6:2], strict=True)
        )
        stalls.append(Stall(match[1], avg10, avg60, avg300, numbers[6]))
    if not stalls:
        raise ValueError("an empty pressure file")
    return tuple(stalls)


def _none(resource: str) -> tuple[Stall, ...]:
    return tuple(Stall(kind) for kind in ("some", "full") if resource != "irq" or kind == "full")
