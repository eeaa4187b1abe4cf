"""Whose request is next: requests wait in a queue for each owner, and owners take turns; pure.

The kernel has one queue for a whole mount, so that whoever asks ten thousand things at once comes
first ten thousand times. Requests are therefore taken out of it as soon as they are there, and wait
here. An owner that had nothing waiting is *new* and comes before those that have (as sparse flows
do in RFC 8290, fq_codel), once: then it waits its turn like all others. Of those that have, one
comes after `NEW_IN_A_ROW` new ones, since whoever can be many owners could else always be new.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")

NEW_IN_A_ROW = 8


@dataclass(slots=True)
class _Owner(Generic[T]):
    waiting: OrderedDict[int, tuple[T, int]] = field(default_factory=OrderedDict)
    """By number, the oldest first; with what it weighs."""
    weight: int = 0
    """Of all that wait."""
    at_work: int = 0
    queued: bool = False
    """It is among those that take turns."""


class FairQueue(Generic[T]):
    """Requests that wait, by their numbers, which are never the same for two."""

    def __init__(self, at_once: int) -> None:
        """Make an empty one, that has ``at_once`` requests of an owner at work at most."""
        self._at_once = at_once
        self._owners: dict[Hashable, _Owner[T]] = {}
        self._owner_of: dict[int, Hashable] = {}
        self._new: deque[Hashable] = deque()
        self._old: deque[Hashable] = deque()
        self._new_in_a_row = 0
        self.weight = 0
        """Of all that wait."""

    def __len__(self) -> int:
        """How many wait."""
        return len(self._owner_of)

    def is_idle(self) -> bool:
        """Whether nobody waits whose turn it may be."""
        return not (self._new or self._old)

    def waits(self, owner: Hashable) -> bool:
        """Whether anything of an owner's waits."""
        known = self._owners.get(owner)
        return known is not None and bool(known.waiting)

    def begin(self, owner: Hashable) -> bool:
        """Work on something of an owner's at once, until `done`; False if too much is at work."""
        known = self._owners.setdefault(owner, _Owner())
        if known.at_work >= self._at_once:
            return False
        known.at_work += 1
        return True

    def push(self, owner: Hashable, number: int, request: T, weight: int = 1) -> None:
        """Have a request wait; one without weight is never `shed`, and its owner's first."""
        known = self._owners.get(owner)
        if known is None:
            known = self._owners[owner] = _Owner()
        known.waiting[number] = request, weight
        if not weight:
            known.waiting.move_to_end(number, last=False)
        known.weight += weight
        self.weight += weight
        self._owner_of[number] = owner
        if not known.queued and known.at_work < self._at_once:
            known.queued = True
            (self._old if known.at_work else self._new).append(owner)

    def pop(self) -> tuple[Hashable, int, T] | None:
        """Take the next one out, to work on it until `done`; None if nobody may have a turn."""
        while self._new or self._old:
            enough = self._new_in_a_row >= NEW_IN_A_ROW and self._old
            chosen = self._new if self._new and not enough else self._old
            self._new_in_a_row = self._new_in_a_row + 1 if chosen is self._new else 0
            owner = chosen.popleft()
            known = self._owners[owner]
            if not known.waiting:  # given up meanwhile
                known.queued = False
                self._tidy(owner, known)
                continue
            number = next(iter(known.waiting))
            request = self._take(number)
            known.at_work += 1
            known.queued = bool(known.waiting) and known.at_work < self._at_once
            if known.queued:
                self._old.append(owner)
            return owner, number, request
        return None

    def done(self, owner: Hashable) -> None:
        """Say that one of an owner's requests is answered."""
        known = self._owners[owner]
        known.at_work -= 1
        if known.waiting and not known.queued:
            known.queued = True
            self._old.append(owner)
        self._tidy(owner, known)

    def give_up(self, number: int) -> T | None:
        """Take out a request that nobody waits for any more; None if it is not here."""
        return self._take(number) if number in self._owner_of else None

    def get(self, number: int) -> T | None:
        """Return a request that waits, and leave it there; None if it is not here."""
        owner = self._owner_of.get(number)
        return None if owner is None else self._owners[owner].waiting[number][0]

    def requests(self) -> list[T]:
        """All that wait; also for another thread, since each copy is made at once."""
        owners = list(self._owners.values())
        return [each for owner in owners for each, _ in list(owner.waiting.values())]

    def shed(self, at_most: int) -> list[tuple[int, T]]:
        """Take the youngest out, half or as many, of whoever has most waiting by weight.

        So that what waits is bounded, and nobody but who exceeds it has to do without (fq_codel
        drops from the fattest flow, several at a time, for the same reasons).
        """
        heaviest = max(self._owners.values(), key=lambda each: each.weight, default=None)
        if heaviest is None:
            return []
        at_most = min(at_most, len(heaviest.waiting) // 2 + 1)
        numbers = (number for number, (_, weight) in reversed(heaviest.waiting.items()) if weight)
        chosen = [number for number, _ in zip(numbers, range(at_most), strict=False)]
        return [(number, self._take(number)) for number in chosen]

    def _take(self, number: int) -> T:
        known = self._owners[self._owner_of.pop(number)]
        request, weight = known.waiting.pop(number)
        known.weight -= weight
        self.weight -= weight
        return request

    def _tidy(self, owner: Hashable, known: _Owner[T]) -> None:
        if not known.waiting and not known.at_work and not known.queued:
            del self._owners[owner]
