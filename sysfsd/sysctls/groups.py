"""Ranges of groups, as a user namespace numbers them and as the host does; pure.

``net.ipv4.ping_group_range`` says which groups may send pings without a privilege. The kernel takes
only groups that the writer's user namespace has (EINVAL, ``ipv4_ping_group_range`` of
``net/ipv4/sysctl_net_ipv4.c``); but what Docker and systemd write is all there are,
``0 2147483647``. Here that means all that the container has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

GID_MAX = (1 << 32) - 2
"""``GID_T_MAX`` of ``include/net/ping.h``, since Linux 6.4."""

NOBODYS = (1, 0)
"""A range that is empty, as the kernel keeps it: in the host's numbers."""


class Extent(NamedTuple):
    """A line of ``/proc/<pid>/gid_map``."""

    inside: int
    outside: int
    size: int


def parse_map(text: str) -> tuple[Extent, ...]:
    """Read a ``gid_map``; raises ``ValueError`` for another text."""
    extents = []
    for line in text.splitlines():
        inside, outside, size = (int(field) for field in line.split())
        extents.append(Extent(inside, outside, size))
    return tuple(extents)


def inwards(extents: Sequence[Extent], group: int, overflow: int) -> int:
    """The container's number of a group of the host; ``overflow`` for one that it hasn't."""
    for each in extents:
        if each.outside <= group < each.outside + each.size:
            return each.inside + group - each.outside
    return overflow


def outwards(extents: Sequence[Extent], low: int, high: int) -> tuple[int, int] | None:
    """The host's numbers of a range of a container's groups, of those of them that it has.

    None if it has none of these.
    """
    if high < low:
        both = {_outside(extents, low), _outside(extents, high)}
        return None if None in both else NOBODYS
    cut = [
        Extent(start, each.outside + start - each.inside, end - start + 1)
        for each in extents
        for start in (max(low, each.inside),)
        for end in (min(high, each.inside + each.size - 1),)
        if start <= end
    ]
    if not cut:
        return None
    first, last = min(cut), max(cut)
    return first.outside, last.outside + last.size - 1


def _outside(extents: Sequence[Extent], group: int) -> int | None:
    for each in extents:
        if each.inside <= group < each.inside + each.size:
            return each.outside + group - each.inside
    return None
