"""Whose request is next: requests wait in a queue for each owner, and owners take turns; pure.

The kernel has one queue for a whole mount, so that whoever asks ten thousand things at once comes
first ten thousand times. Requests are therefore taken out of it as soon as they are there, and wait
here. An owner that had nothing waiting is *new* and comes before those that have (as sparse flows
do in RFC 8290, fq_codel), once: then it waits its turn like all others.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")


@dataclass(slots=True)
class _Owner(Generic[T]):
    waiting: OrderedDict[int, T] = field(default_factory=OrderedDict)
    """By number, the oldest first."""
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

    def __len__(self) -> int:
        """How many wait."""
        return len(self._owner_of)

    def push(self, owner: Hashable, number: int, request: T) -> None:
        """Have a request wait."""
        known = self._owners.get(owner)
        if known is None:
            known = self._owners[owner] = _Owner()
        known.waiting[number] = request
        self._owner_of[number] = owner
        if not known.queued and known.at_work < self._at_once:
            known.queued = True
            (self._old if known.at_work else self._new).append(owner)

    def pop(self) -> tuple[Hashable, int, T] | None:
        """Take the next one out, to work on it until `done`; None if nobody may have a turn."""
        while self._new or self._old:
            owner = (self._new or self._old).popleft()
            known = self._owners[owner]
            if not known.waiting:  # given up meanwhile
                known.queued = False
                self._tidy(owner, known)
                continue
            number, request = known.waiting.popitem(last=False)
            del self._owner_of[number]
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
        if number not in self._owner_of:
            return None
        owner = self._owner_of.pop(number)
        return self._owners[owner].waiting.pop(number)

    def _tidy(self, owner: Hashable, known: _Owner[T]) -> None:
        if not known.waiting and not known.at_work and not known.queued:
            del self._owners[owner]
