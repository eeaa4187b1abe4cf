"""What ``--runtime=sysfsd`` adds to a ``docker run``, on an engine of our own."""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.engine.overhead import IMAGE, samples
from tests.engine.throwaway import throwaway

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOAD = Path(__file__).parent.parent / "images" / "load.sh"
ROUNDS = 15


def measure(rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Start containers, plain and ours in turn."""
    tell("starts: an engine of our own")
    with throwaway() as own:
        subprocess.run(
            ["sh", str(LOAD), IMAGE],
            env=own.environment(),
            check=True,
            capture_output=True,
            timeout=1800,  # it builds the image, if need be
        )
        tell(f"starts: {rounds} rounds")
        plain, ours = samples(own.docker, rounds)
        version = own.docker("version", "--format", "{{.Server.Version}}")
    return {"docker": version, "plain": _described(plain), "sysfsd": _described(ours)}


def _described(milliseconds: Sequence[float]) -> dict[str, Any]:
    return {
        "median_ms": round(statistics.median(milliseconds), 1),
        "all_ms": [round(each, 1) for each in milliseconds],
    }
