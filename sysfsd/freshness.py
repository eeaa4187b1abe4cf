"""How long an answer lives: as long as its numbers are fresh, and longer when there is much to do.

Readers cost us nothing as long as an answer lives, so the time that we take is the number of files
that are read, divided by their lives. `Freshness` measures the one and moves the other: where our
share of a CPU is larger than the budget all lives are stretched by one factor, up to `LONGEST_NS`
for numbers that move; once the load is gone they go back.

Pure arithmetic, and two clocks.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from sysfsd.facts.host import boottime_ns

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_NS = 1_000_000_000
"""How old a number that moves may get, however much there is to do."""

WINDOW_NS = 100_000_000
"""Our share of a CPU is measured over so long at the least."""

LONGEST_LIMITS_NS = 60_000_000_000
"""The same for what changes with limits only, of which the kernel tells us."""

_MORE = 1.5
"""Of such files' lives the factor is taken to this power: they are many, and lose little by it."""

_AIM = 0.85
"""Of the budget: what is aimed at, so that ups and downs stay within it."""

_MOST_AT_ONCE = 2.0
_LEAST_AT_ONCE = 0.96
"""The factor changes by so much in a window at most; down it goes slowly, because where others take
the CPU from us we use less of it, and have no less to do."""

_SMOOTH_WINDOWS = 4
"""Our share is averaged over about so many windows."""


def stretched(stretch: float, used: float, budget: float, windows: float, largest: float) -> float:
    """Return the next factor, after `windows` in which `used` was our share of a CPU; pure.

    What we use is inverse to the factor, so that its error says what to multiply by; the root of
    that, because some of it is not ours to move (a burst of first reads).
    """
    error = used / (budget * _AIM) if budget > 0 else _MOST_AT_ONCE**2
    step = min(max(math.sqrt(error), _LEAST_AT_ONCE), _MOST_AT_ONCE)
    # A long time without any request is many windows, in all of which there was less to do.
    if step < 1:
        step = math.pow(step, min(max(windows, 1.0), 1000.0))
    return min(max(stretch * step, 1.0), max(1.0, largest))


class Freshness:
    """What lives how long, at present."""

    def __init__(
        self,
        *,
        moving_ns: int = 50_000_000,
        limits_ns: int = 1_000_000_000,
        budget: float = 0.5,
        clock: Callable[[], int] = boottime_ns,
        used: Callable[[], int] = time.process_time_ns,
    ) -> None:
        """Begin with the given lives: of what moves, and of what changes with limits only.

        `budget` is a share of one CPU. `used` tells how much CPU time this process has had, in ns.
        """
        self._moving_ns = moving_ns
        self._limits_ns = limits_ns
        self._budget = budget
        self._largest = LONGEST_NS / max(1, moving_ns)
        self._clock = clock
        self._read_used = used
        self._since = clock()
        self._used_then = used()
        self._share = 0.0
        self._stretch = 1.0

    @property
    def moving_ns(self) -> int:
        """How long numbers that move are good for."""
        self._measure()
        return int(self._moving_ns * self._stretch)

    @property
    def limits_ns(self) -> int:
        """How long what changes with limits only is good for, if nobody says that it changed."""
        self._measure()
        return self._limits()

    def stats(self) -> dict[str, float]:
        """Budget and use as shares of a CPU, the factor, and the lives that it makes, in ms."""
        self._measure()
        return {
            "cpu_budget": self._budget,
            "cpu_used": round(self._share, 3),
            "stretch": round(self._stretch, 2),
            "moving_ms": round(self._moving_ns * self._stretch / 1e6, 1),
            "limits_ms": round(self._limits() / 1e6, 1),
        }

    def _limits(self) -> int:
        longest = max(LONGEST_LIMITS_NS, self._limits_ns)
        return min(int(self._limits_ns * math.pow(self._stretch, _MORE)), longest)

    def _measure(self) -> None:
        now = self._clock()
        elapsed = now - self._since
        if elapsed < WINDOW_NS:
            return
        used = self._read_used()
        windows = elapsed / WINDOW_NS
        share = (used - self._used_then) / elapsed
        self._share += (share - self._share) * -math.expm1(-windows / _SMOOTH_WINDOWS)
        self._since, self._used_then = now, used
        self._stretch = stretched(self._stretch, self._share, self._budget, windows, self._largest)
