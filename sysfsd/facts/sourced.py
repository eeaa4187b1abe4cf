"""A value and where it came from."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Sourced(NamedTuple, Generic[T]):
    """A fact. A named tuple, not a dataclass: a view makes some fifty of them each refresh."""

    value: T
    source: str
    """For people: the file it was read from, or the formula with its files."""


def saturating_sub(whole: int, part: int) -> int:
    """Return ``whole - part``, but never less than zero.

    The files of a cgroup are read one after the other while it works, and the kernel folds its
    per-CPU counters lazily: a part may well be larger than its whole for a moment.
    """
    return whole - part if whole > part else 0
