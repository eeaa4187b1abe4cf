"""From one container to a thousand: what the daemon takes, and what a reader notices."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from sysfsd.config import Config
from sysfsd.control.client import Client
from tests.bench.contenders import alike
from tests.bench.crowd import crowd
from tests.bench.figures import Tally, bucket_of, total
from tests.bench.generator import CAT, THREADS, compiled, generating_in
from tests.bench.processes import resident_bytes, spent_ns, tree
from tests.support.attached import attach
from tests.support.daemon import serving
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.bench.generator import Generator
    from tests.support.daemon import Serving

SIZES = (1, 10, 100, 1000)
IDLE_SECONDS = 10.0
"""The daemon looks at each container every 5 s: this has two such rounds in it."""

_RUNS = 4
_RUN_SECONDS = 0.25


def measure(
    directory: Path,
    tell: Callable[[str], None],
    *,
    sizes: Sequence[int] = SIZES,
    idle: float = IDLE_SECONDS,
) -> list[dict[str, Any]]:
    """Measure at each size."""
    home = directory / "scale"
    home.mkdir(mode=0o711)
    load, many = compiled("load.c", directory), compiled("crowd.c", directory)
    with serving(home) as serve, alike() as one, generating_in(one, load) as reader:
        attach(serve, "first", one)
        with crowd(many) as others:
            results: list[dict[str, Any]] = []
            for size in sizes:
                tell(f"scale: {size} containers")
                new = others.add(size - 1 - len(others.pids))
                results.append({"containers": size, **_at(serve, size, new, reader, idle)})
    return results


def _at(
    serve: Serving, size: int, new: Mapping[str, int], reader: Generator, idle: float
) -> dict[str, Any]:
    daemon = tree(serve.process.pid)
    before, began = spent_ns(daemon), time.perf_counter()
    for name, pid in new.items():
        _register(serve, name, pid)
    seconds, cpu = time.perf_counter() - began, spent_ns(daemon) - before
    first = _first_reads(serve, new)
    reads = _read(reader)
    resident = resident_bytes(daemon)
    # Idle is after all tasks were counted for the first time, which is part of their coming.
    until(lambda: _has_settled(serve, size), "a round of samples with little in it", 30, 0.5)
    before = spent_ns(daemon)
    time.sleep(idle)  # nothing to wait for: this is what is measured
    spent = spent_ns(daemon) - before
    return {
        "registered": len(new),
        "register_seconds": round(seconds, 4),
        "register_cpu_seconds": round(cpu / 1e9, 4),
        "first_read": first.as_dict() if first.operations else None,
        "cat": reads.as_dict(),
        "rss_bytes": resident,
        "idle_cpu_percent": round(100 * spent / 1e9 / idle, 3),
    }


def _has_settled(serve: Serving, containers: int) -> bool:
    sampled = serve.call("stats")["load_sampler"]
    return bool(sampled["containers"] == containers and sampled["counted"] <= containers // 4)


def _register(serve: Serving, name: str, pid: int) -> None:
    """As the hook does: a connection for each."""
    pidfd = os.pidfd_open(pid)
    try:
        with Client(serve.control) as client:
            client.call("register", {"id": name}, [pidfd])
    finally:
        os.close(pidfd)


def _first_reads(serve: Serving, new: Mapping[str, int]) -> Tally:
    """Read a file of each for the first time, found already: attaching does that, once."""
    with ExitStack() as stack:
        found = []
        for name in new:
            found.append(os.open(serve.containers / name / "proc/meminfo", os.O_PATH))
            stack.callback(os.close, found[-1])
        # What was found out on the way is old by then, and nothing else is known.
        time.sleep(2 * Config().freshness_ms / 1000)
        return total(map(_first_read, found))


def _first_read(found: int) -> Tally:
    path, buffer = f"/proc/self/fd/{found}", bytearray(1 << 17)
    began = time.perf_counter_ns()
    fd = os.open(path, os.O_RDONLY)
    length = os.readv(fd, [buffer])
    while os.readv(fd, [buffer]):
        pass
    os.close(fd)
    took = time.perf_counter_ns() - began
    return Tally(took, 1, length, _one(took))


def _one(nanoseconds: int) -> Counter[int]:
    return Counter({bucket_of(nanoseconds): 1})


def _read(reader: Generator) -> Tally:
    return total(
        reader.run(CAT, "/proc/meminfo", clients=1, kind=THREADS, seconds=_RUN_SECONDS)
        for _ in range(_RUNS)
    )
