"""What a refresh costs in system calls: counted, not timed."""

from __future__ import annotations

import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.containers import container
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Serving

FILES = ("proc/meminfo", "proc/stat", "proc/cpuinfo", "proc/uptime")
MOST_READS = 30
"""Of cgroups and the host, for one refresh of these four files; 19 on v1, two levels deep."""


@contextmanager
def traced(pid: int, output: Path) -> Iterator[None]:
    """Have strace write a process's system calls to a file meanwhile."""
    command = ["strace", "-f", "-qq", "-e", "signal=none", "-o", str(output), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: _tracer_of(pid) == process.pid, "strace")
            yield
        finally:
            process.send_signal(signal.SIGINT)
    until(lambda: _tracer_of(pid) == 0, "strace to be gone")


def _tracer_of(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        (line,) = [line for line in status if line.startswith("TracerPid:")]
    return int(line.split()[1])


def _refreshes(daemon: Serving, directory: Path, count: int) -> int:
    """Read the files until all were made anew so many times; returns how many were, in all."""
    before: int = daemon.call("stats")["views"]["rendered"]
    for _ in range(count):
        mtimes = [(directory / name).stat().st_mtime_ns for name in FILES]
        until(
            lambda mtimes=mtimes: all(  # type: ignore[misc]
                name == "proc/cpuinfo" or (directory / name).stat().st_mtime_ns != mtime
                for name, mtime in zip(FILES, mtimes, strict=True)
                if name in {"proc/uptime", "proc/stat"}
            ),
            "a refresh",
        )
        for name in FILES:
            assert (directory / name).read_bytes()
    after: int = daemon.call("stats")["views"]["rendered"]
    return after - before


def test_system_calls_of_a_refresh(daemon: Serving, tmp_path: Path) -> None:
    output = tmp_path / "calls"
    with container(memory=96 << 20, cpus=0.5, cpuset="0") as box:
        directory = daemon.mountpoint / daemon.register("counted", box.pid)["directory"]
        _refreshes(daemon, directory, 2)
        with traced(daemon.process.pid, output):
            rendered = _refreshes(daemon, directory, 20)
        daemon.call("release", id="counted")
    calls = [line.split(None, 1)[1].partition("(")[0] for line in output.read_text().splitlines()]
    kinds = {name: calls.count(name) for name in set(calls)}
    print(rendered, kinds)
    assert rendered >= 40
    # Nothing is looked up by its path; what the control socket needs is not for refreshes.
    assert kinds.get("openat", 0) <= 5, kinds
    assert 0 < kinds["pread64"] <= MOST_READS * rendered / len(FILES), kinds
