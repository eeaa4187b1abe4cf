"""Which daemons run for the tests, so that ``tidy`` can look after them.

Apart from it because the examples start daemons with the same code, and have no pytest.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

daemons: dict[int, Path] = {}
"""Pids, and the files that they log to."""


@contextmanager
def watched(pid: int, log: Path) -> Iterator[None]:
    """Let the checks know of a daemon for as long as this lasts."""
    daemons[pid] = log
    try:
        yield
    finally:
        del daemons[pid]
