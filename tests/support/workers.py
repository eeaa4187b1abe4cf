"""Programs that read and write a container's files all the time, as its root, until told to stop.

They run in its namespaces with this Python: all they need is imported before they go in.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.wait import patient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SOURCES = Path(__file__).parent.parent.parent

ENTER = """
import encodings.ascii, encodings.utf_8, os, sys, threading, time
from sysfsd.kernel import syscalls
init = os.pidfd_open(int(sys.argv[1]))
paths = sys.stdin.read().split()
kinds = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWUTS
syscalls.setns(init, syscalls.CLONE_NEWUSER | kinds)
os.setgroups([])
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
os.chdir("/")
stop, number, longest = [], 0, 0.0
ending = int(os.environ["STOP"])
threading.Thread(target=lambda: stop.append(os.read(ending, 1)), daemon=True).start()
"""

# Fails on the first that cannot be read, is empty, has a NUL or does not end in a newline.
_READER = """
held = {path: os.open(path, os.O_RDONLY) for path in paths}
print("ready", flush=True)
while not stop:
    for path in paths:
        began = time.monotonic()
        with open(path, "rb", buffering=0) as file:
            data = file.read(1 << 20)
        again = os.pread(held[path], 1 << 20, 0)
        longest = max(longest, time.monotonic() - began)
        for each in (data, again):
            assert each.endswith(b"\\n") and b"\\0" not in each, (path, each)
        number += 2
print(number, longest, flush=True)
"""

# Ever larger numbers, read back each time: what was acknowledged is there.
_WRITER = """
names = ["vm/max_map_count", "kernel/panic", "fs/file-max", "fs/inotify/max_user_watches"]
paths = ["/proc/sys/" + name for name in names if os.path.exists("/proc/sys/" + name)]
held = {path: os.open(path, os.O_RDWR) for path in paths}
print("ready", flush=True)
number = 100000
while not stop:
    number += 1
    for path in paths:
        began = time.monotonic()
        if number % 2:
            os.pwrite(held[path], b"%d" % number, 0)
        else:
            with open(path, "wb", buffering=0) as file:
                file.write(b"%d" % number)
        with open(path, "rb", buffering=0) as file:
            found = file.read()
        assert found == b"%d\\n" % number, (path, found, number)
        found = os.pread(held[path], 100, 0)
        assert found == b"%d\\n" % number, (path, found, number)
        longest = max(longest, time.monotonic() - began)
print(number - 100000, longest, flush=True)
"""


class Worker:
    """One of these programs."""

    def __init__(self, process: subprocess.Popen[str], stop: int) -> None:
        self._process = process
        self._stop = stop

    def alive(self) -> bool:
        """Whether it has not failed so far."""
        return self._process.poll() is None

    def ask_to_stop(self) -> None:
        """Let it stop when it has been through its files once more."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._stop, b"!")

    def ended(self) -> tuple[int, float]:
        """Wait for it; returns how much it did, and what took it longest, in seconds."""
        out, said = self._process.communicate(timeout=patient(30))
        assert self._process.returncode == 0, said
        count, longest = out.split()
        return int(count), float(longest)


def stop(workers: Sequence[Worker]) -> tuple[int, float]:
    """Stop them; returns how much they did together, and what took longest, in seconds."""
    # All are asked first: they share a budget, and nobody waits for who goes on meanwhile.
    for worker in workers:
        worker.ask_to_stop()
    counts, longest = zip(*(worker.ended() for worker in workers), strict=True)
    assert all(count > 0 for count in counts)
    return sum(counts), max(longest)


def reader(pid: int, paths: Sequence[str]) -> contextlib.AbstractContextManager[Worker]:
    """Read files in the container of a process, opened each time and held open."""
    return worker(pid, _READER, paths)


def writer(pid: int) -> contextlib.AbstractContextManager[Worker]:
    """Write sysctls in the container of a process."""
    return worker(pid, _WRITER, [])


@contextlib.contextmanager
def worker(pid: int, source: str, paths: Sequence[str]) -> Iterator[Worker]:
    """Run a program in a process's container: it says ``ready``, and at its end two numbers."""
    stop, ours = os.pipe()
    python = [sys.executable, "-c", ENTER + source, str(pid)]
    with subprocess.Popen(
        python,
        env=os.environ | {"STOP": str(stop)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[stop],
        cwd=_SOURCES,
    ) as process:
        os.close(stop)
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n".join(paths))
            process.stdin.close()
            process.stdin = None
            assert process.stdout.readline() == "ready\n", process.communicate()
            yield Worker(process, ours)
        finally:
            os.close(ours)
            process.kill()
