"""Whose request is next, of those whose answers live on and of those whose answers don't; pure.

The former share the event loop (`fairness`). The latter do so as well, in a queue of their own that
is closed while the budget is used up (`allowance`): it stays as it is, so that nobody loses their
place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.channel.fairness import FairQueue
from sysfsd.channel.packets import is_bounded

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sysfsd.channel.allowance import Allowance


class Turns:
    """Requests that wait, by their numbers, which are never the same for two."""

    def __init__(self, at_once: int, allowance: Allowance | None = None) -> None:
        """Make it, with ``at_once`` requests of an owner at work at most; see `FairQueue`."""
        self._free: FairQueue[bytes] = FairQueue(at_once)
        self._bounded: FairQueue[bytes] = FairQueue(at_once)
        self._allowance = allowance
        self._bounded_next = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._free) + len(self._bounded)

    @property
    def weight(self) -> int:
        """Of all that wait."""
        return self._free.weight + self._bounded.weight

    @property
    def left(self) -> bool:
        """Whether somebody is left who may have a turn in this window or the next."""
        return not self._bounded.is_idle()

    @property
    def waits_for_window(self) -> bool:
        """Whether somebody waits for the next window, and nobody else may have a turn."""
        return self._free.is_idle() and not self._bounded.is_idle() and not self._is_open()

    def is_next(self, owner: Hashable, *, early: bool = True) -> bool:
        """Whether somebody who asks just now may be answered at once.

        Not ``early`` it is one of many who ask, who should all have had a look in before.
        """
        allowance = self._allowance_of(owner)
        if allowance is None:
            idle = not self._free or (self._free.is_idle() and not self._free.waits(owner))
            return early and idle
        if self._bounded.waits(owner):
            return False
        now = early and self._bounded.is_idle() and self._is_open()
        return now or allowance.exempts(owner)

    def push(self, owner: Hashable, number: int, request: bytes, weight: int) -> None:
        """Have a request wait."""
        self._of(owner).push(owner, number, request, weight)

    def begin(self, owner: Hashable) -> bool:
        """Work on something at once, until `done`, that does not wait; False if it must."""
        if not self._of(owner).begin(owner):
            return False
        allowance = self._allowance_of(owner)
        if allowance is not None:
            allowance.begin()
        return True

    def pop(self) -> tuple[Hashable, int, bytes] | None:
        """Take the next one out, to work on it until `done`; None if nobody may have a turn."""
        queues = [self._free]
        if not self._bounded.is_idle() and self._is_open():
            queues.append(self._bounded)
            self._bounded_next = not self._bounded_next
            if self._bounded_next:
                queues.reverse()
        for queue in queues:
            chosen = queue.pop()
            if chosen is not None:
                allowance = self._allowance_of(chosen[0])
                if allowance is not None:
                    allowance.begin()
                    allowance.waited(chosen[0])
                return chosen
        return None

    def done(self, owner: Hashable, nanoseconds: int | None = None) -> None:
        """Say that a request is answered: at once, and what that took, or else later."""
        self._of(owner).done(owner)
        allowance = self._allowance_of(owner)
        if allowance is not None:
            allowance.end(owner, nanoseconds)

    def took(self, owner: Hashable, nanoseconds: int) -> None:
        """Say what it took to answer a request at once that was `is_next`."""
        allowance = self._allowance_of(owner)
        if allowance is not None:
            allowance.took(owner, nanoseconds)

    def seconds_left(self) -> float:
        """Until the next window."""
        return 0 if self._allowance is None else self._allowance.seconds_left()

    def give_up(self, number: int) -> bytes | None:
        """Take out a request that nobody waits for any more; None if it is not here."""
        found = self._free.give_up(number)
        return self._bounded.give_up(number) if found is None else found

    def get(self, number: int) -> bytes | None:
        """Return a request that waits, and leave it there; None if it is not here."""
        found = self._free.get(number)
        return self._bounded.get(number) if found is None else found

    def requests(self) -> list[bytes]:
        """All that wait and whose answers live on; see `FairQueue.requests`."""
        return self._free.requests()

    def shed(self, at_most: int) -> list[tuple[int, bytes]]:
        """Take some out of whoever has most waiting, see `FairQueue.shed`."""
        return max((self._free, self._bounded), key=lambda each: each.weight).shed(at_most)

    def _of(self, owner: Hashable) -> FairQueue[bytes]:
        return self._bounded if is_bounded(owner) else self._free

    def _allowance_of(self, owner: Hashable) -> Allowance | None:
        return self._allowance if is_bounded(owner) else None

    def _is_open(self) -> bool:
        return self._allowance is None or self._allowance.is_open()
