"""Ranges of subordinate ids, from /etc/subuid and /etc/subgid (subuid(5)); pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sysfsd.errors import NoRangeLeft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SIZE = 65536
"""Ids of one container."""

_SUGGESTED = "10000000:6553600"
"""Ids for 100 containers, far above what useradd(8) gives to people; as the README has it."""

_MAX_ID = (1 << 32) - 2
"""4294967295 is no id: it is how system calls say "leave as it is"."""


class IdRange(NamedTuple):
    """The ids of one container: ``SIZE`` from each base on."""

    uid_base: int
    gid_base: int
    size: int = SIZE


def parse_subids(text: str, names: Iterable[str]) -> list[tuple[int, int]]:
    """Return ``(first id, count)`` of each line of a user, known by name or by uid.

    Lines of another shape are left out, as the shadow tools do.
    """
    wanted = frozenset(names)
    ranges = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) != 3 or fields[0] not in wanted:
            continue
        if fields[1].isdecimal() and fields[2].isdecimal():
            ranges.append((int(fields[1]), int(fields[2])))
    return ranges


def bases(ranges: Iterable[tuple[int, int]]) -> list[int]:
    """Cut ranges into whole containers: the first id of each. Overlaps are used once.

    Ids that belong to the host itself (the first 65536) are never handed out.
    """
    found: list[int] = []
    end = SIZE
    for first, count in sorted(ranges):
        start, limit = max(first, end), min(first + count, _MAX_ID + 1)
        while start + SIZE <= limit:
            found.append(start)
            start += SIZE
        end = max(end, start)
    return found


def pair(uid_bases: Sequence[int], gid_bases: Sequence[int]) -> list[IdRange]:
    """Pair the n-th range of uids with the n-th of gids; what is left over stays unused."""
    return [IdRange(uid, gid) for uid, gid in zip(uid_bases, gid_bases, strict=False)]


def choose(
    ranges: Sequence[IdRange], taken: Callable[[IdRange], bool], last: IdRange | None
) -> IdRange:
    """Choose a range that is not taken: the next after the last one handed out.

    Going round keeps a range unused for as long as possible after its container is gone. Raises
    ``NoRangeLeft``.
    """
    start = next((position + 1 for position, each in enumerate(ranges) if each == last), 0)
    for candidate in (*ranges[start:], *ranges[:start]):
        if not taken(candidate):
            return candidate
    raise NoRangeLeft(f"all {len(ranges)} ranges of {SIZE} ids are in use")


def overlaps(candidate: IdRange, uids: Iterable[tuple[int, int]]) -> bool:
    """Whether any of these ``(first uid, count)`` lies in a range."""
    first, end = candidate.uid_base, candidate.uid_base + SIZE
    return any(start < end and start + count > first for start, count in uids)


def advice(user: str, problem: str) -> str:
    """One line that says which lines to add."""
    return f"{problem}; add ranges of {SIZE} ids: {command(user, '/etc/subuid', '/etc/subgid')}"


def command(user: str, *paths: str) -> str:
    """What to type so that a user has ranges."""
    return (
        f"echo '{user}:{_SUGGESTED}' | sudo tee -a {' '.join(paths)} "
        "(if no other line uses these ids)"
    )
