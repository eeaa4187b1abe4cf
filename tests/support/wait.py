"""Waiting for a condition, with a deadline instead of a sleep."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

DEADLINE = 60.0
"""Long, as it costs only a test that fails: a machine shared with others may stand still."""

_SLOWNESS = float(os.environ.get("SYSFSD_TEST_SLOWNESS", "1"))
"""How many times as long things may take here: an emulated processor is slow."""


def patient(seconds: float) -> float:
    """Return a deadline that suits this machine; ``seconds`` is what suits an ordinary one."""
    return seconds * _SLOWNESS


def until(
    condition: Callable[[], T], what: str, deadline: float = DEADLINE, interval: float = 0.005
) -> T:
    """Return the first true value of a condition; fails with ``what`` when there is none.

    It is looked at every `interval` seconds: seldom, if looking is work that counts.
    """
    end = time.monotonic() + patient(deadline)
    while not (value := condition()):
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(interval)
    return value
