"""What ``--runtime=sysfsd`` adds to a ``docker run``.

    python -m tests.engine.overhead [ROUNDS]

Plain and system containers of the same image in turn, so that whatever else the machine does falls
on both; medians, because starts have a long tail.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

from tests.engine.docker import Docker

IMAGE = "busybox:latest"


def samples(docker: Docker, rounds: int) -> tuple[list[float], list[float]]:
    """Return how long each ``docker run --rm IMAGE true`` took, in ms: plain, with our runtime."""
    plain: list[float] = []
    ours: list[float] = []
    for warm in range(-2, rounds):
        for options, times in (([], plain), (["--runtime=sysfsd"], ours)):
            start = time.perf_counter()
            docker("run", "--rm", *options, IMAGE, "true")
            if warm >= 0:
                times.append((time.perf_counter() - start) * 1000)
    return plain, ours


def measure(docker: Docker, rounds: int) -> tuple[float, float]:
    """Return the medians, in ms: plain, with our runtime."""
    plain, ours = samples(docker, rounds)
    return statistics.median(plain), statistics.median(ours)


def report(plain: float, ours: float, rounds: int) -> str:
    """Say it in a line."""
    return (
        f"docker run --rm {IMAGE} true: {plain:.0f} ms; with --runtime=sysfsd: {ours:.0f} ms "
        f"(+{ours - plain:.0f} ms; medians of {rounds} in turn)"
    )


def main() -> int:
    """Print the comparison."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    try:
        print(report(*measure(Docker(host.removeprefix("unix://")), rounds), rounds))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
