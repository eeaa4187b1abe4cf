"""How much of a CPU goes to answers that can't be kept: who asks much waits, others don't; pure.

What is exact is made for each reader, so that readers take as much of a CPU as they like; nothing
can be stretched (`sysfsd.freshness`), but they can be made to wait. Time is cut into windows, and
once the daemon has had its budget in one, it is closed: until the next, nobody is answered but who
has had clearly less than others, or did not ask in the window before. Whoever asks now and then
hardly ever waits for those who ask all the time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

WINDOW_NS = 20_000_000
"""So long somebody waits at most whose turn it would be otherwise, if few ask."""

_LITTLE, _MUCH = 0.75, 4.0
"""Who has had less than this part of what they all have had on average goes on; and of those who
did not ask in the window before, who has had less than that."""

_REQUEST_NS = 100_000
"""A request, about: by less nobody has had less than others."""

LONG_NS = 300_000
"""What is not answered at once is taken to cost, until it has been answered."""

_ON_TOP = 0.25
"""So much of the budget may those have, all together, who go on in a closed window."""

_LEAST = 0.25
"""So much of the budget is theirs in any window."""

_AIM = 0.7
"""Of the budget: what is aimed at. Less than `sysfsd.freshness` does, so that numbers don't get
older because of those who ask for others."""


class Allowance:
    """What is left of the budget in this window, and for whom."""

    def __init__(
        self,
        budget: float,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        used: Callable[[], int] = time.process_time_ns,
    ) -> None:
        """Allow for ``budget``, a share of one CPU.

        ``used`` tells how much CPU time this process has had, in ns.
        """
        self._allowed_ns = int(budget * _AIM * WINDOW_NS)
        self._clock = clock
        self._used = used
        self._ends = clock() + WINDOW_NS
        self._used_then = used()
        self._closed = False
        self._begun = 0
        """How many are being answered."""
        self._taken: dict[Hashable, int] = {}
        self._taken_by_all = 0
        self._before: set[Hashable] = set()
        """Who asked in the window before, or has waited since."""

    def is_open(self) -> bool:
        """Whether there is anything left for whoever has their turn."""
        self._turn()
        if not self._closed:
            begun = self._begun * LONG_NS
            # Something at least, whatever else the process has to do.
            self._closed = (
                self._used() - self._used_then + begun >= self._allowed_ns
                and self._taken_by_all + begun >= self._allowed_ns * _LEAST
            )
        return not self._closed

    def exempts(self, owner: Hashable) -> bool:
        """Whether somebody need not wait for their turn, nor for the next window."""
        self._turn()
        taken = self._taken.setdefault(owner, 0)
        taken_by_all = self._taken_by_all + self._begun * LONG_NS
        if taken_by_all >= self._allowed_ns * (1 + _ON_TOP):
            return False
        average = self._taken_by_all / max(len(self._taken), len(self._before))
        if owner in self._before:
            return taken + _REQUEST_NS < average * _LITTLE
        return taken < average * _MUCH

    def took(self, owner: Hashable, nanoseconds: int) -> None:
        """Say what answering somebody at once took."""
        self._turn()
        self._taken[owner] = self._taken.get(owner, 0) + nanoseconds
        self._taken_by_all += nanoseconds

    def waited(self, owner: Hashable) -> None:
        """Say that somebody has their turn who had to wait for it."""
        self._before.add(owner)

    def begin(self) -> None:
        """Say that an answer is being made; until `end` it is taken to cost as much as any."""
        self._begun += 1

    def end(self, owner: Hashable, nanoseconds: int | None = None) -> None:
        """Say that it has been made, and what that took, if it was made at once."""
        self._begun -= 1
        self.took(owner, LONG_NS if nanoseconds is None else nanoseconds)

    def seconds_left(self) -> float:
        """Until the next window."""
        return max(0, self._ends - self._clock()) / 1e9

    def _turn(self) -> None:
        now = self._clock()
        if now < self._ends:
            return
        recent = now < self._ends + WINDOW_NS
        self._before = set(self._taken) if recent else set()
        self._taken = {}
        self._taken_by_all = 0
        self._used_then = self._used()
        self._closed = False
        self._ends = now + WINDOW_NS
