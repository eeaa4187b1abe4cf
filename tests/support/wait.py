"""Waiting for a condition, with a deadline instead of a sleep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

DEADLINE = 20.0


def until(condition: Callable[[], T], what: str, deadline: float = DEADLINE) -> T:
    """Return the first true value of a condition; fails with ``what`` when there is none."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.005)
    return value
