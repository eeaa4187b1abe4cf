"""Somebody else on the host: work that a container must not see in its own numbers."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.programs import host
from tests.programs.rules import NEIGHBOURS, OWN_LOAD
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

_BURN = "for i in $(seq {tasks}); do while :; do :; done & done; wait"


@contextmanager
def busy_neighbour(tasks: int = NEIGHBOURS) -> Iterator[None]:
    """Keep all CPUs busy in a cgroup of the smallest weight: whoever else wants them gets them.

    Begins when the host's load average is well above what a container of ours may show.
    """
    script = f"read go; {_BURN.format(tasks=tasks)}"
    with _light_cgroup() as cgroup:
        process = subprocess.Popen(
            ["nice", "-n", "19", "setpriv", "--pdeathsig", "TERM", "sh", "-c", script],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        try:
            if cgroup is not None:
                (cgroup / "cgroup.procs").write_text(str(process.pid))
            process.stdin.write(b"go\n")
            process.stdin.close()
            until(lambda: host.load() > 2 * OWN_LOAD, "load on the host", deadline=120)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _light_cgroup() -> Iterator[Path | None]:
    """A cgroup of the CPU controller with the smallest weight; None without such a controller."""
    for root, file, smallest in (
        ("/sys/fs/cgroup/cpu", "cpu.shares", "2"),
        ("/sys/fs/cgroup", "cpu.weight", "1"),
    ):
        cgroup = Path(root, f"sysfsd-test-neighbour-{os.getpid()}")
        with suppress(OSError):
            cgroup.mkdir()
            if (cgroup / file).exists():
                (cgroup / file).write_text(smallest)
                break
            cgroup.rmdir()
    else:
        yield None
        return
    try:
        yield cgroup
    finally:
        until(lambda: not (cgroup / "cgroup.procs").read_text(), "an empty cgroup")
        cgroup.rmdir()
