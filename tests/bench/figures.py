"""Counting times in buckets, as ``load.c`` does, and what can be said of them; pure."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SUB_BITS = 6
"""Buckets a doubling, as a power of two: one is 1.6 % wide."""

_SUBS = 1 << SUB_BITS


def bucket_of(nanoseconds: int) -> int:
    """Which bucket a time is counted in, as ``load.c`` has it."""
    shift = max(0, nanoseconds.bit_length() - SUB_BITS - 1)
    return (shift << SUB_BITS) + (nanoseconds >> shift)


def middle_of(bucket: int) -> float:
    """The time that a bucket stands for, in nanoseconds."""
    shift = max(0, bucket // _SUBS - 1)
    lowest = (bucket - (shift << SUB_BITS)) << shift
    return lowest + ((1 << shift) - 1) / 2


def percentile(buckets: Mapping[int, int], share: float) -> float:
    """The smallest time, in nanoseconds, that so large a share of all does not exceed.

    Raises ``ValueError`` when nothing was counted.
    """
    total = sum(buckets.values())
    if total == 0:
        raise ValueError("no times")
    needed, seen = share * total, 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= needed:
            return middle_of(bucket)
    raise ValueError(f"a share is at most 1, not {share}")


@dataclass(slots=True)
class Tally:
    """What came of one or more rounds of one thing."""

    nanoseconds: int = 0
    operations: int = 0
    bytes: int = 0
    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Put another one's in."""
        self.nanoseconds += other.nanoseconds
        self.operations += other.operations
        self.bytes += other.bytes
        self.buckets.update(other.buckets)

    @property
    def per_second(self) -> float:
        """Operations of all clients together."""
        return self.operations / (self.nanoseconds / 1e9)

    def microseconds(self, share: float) -> float:
        """A percentile of the time that one operation took."""
        return percentile(self.buckets, share) / 1000

    def as_dict(self) -> dict[str, float]:
        """For the results."""
        return {
            "operations": self.operations,
            "seconds": round(self.nanoseconds / 1e9, 4),
            "per_second": round(self.per_second, 1),
            "p50_us": round(self.microseconds(0.5), 3),
            "p99_us": round(self.microseconds(0.99), 3),
        }


def total(tallies: Iterable[Tally]) -> Tally:
    """All of them in one."""
    everything = Tally()
    for each in tallies:
        everything.add(each)
    return everything


_ANSWER = re.compile(r"(\d+) (\d+) (\d+)((?: \d+:\d+)+)")


def parse_answer(line: str) -> Tally:
    """Read an answer of ``load.c``; raises ``ValueError`` with what it says if it is no result."""
    found = _ANSWER.fullmatch(line)
    if found is None:
        raise ValueError(line or "the load generator ended")
    pairs = (pair.split(":") for pair in found[4].split())
    buckets = Counter({int(bucket): int(count) for bucket, count in pairs})
    return Tally(int(found[1]), int(found[2]), int(found[3]), buckets)
