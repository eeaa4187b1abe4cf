"""Very many containers, as cheap as they come: a sleeping process, namespaces, a cgroup of its own.

All are made by one process, which they end with. None has a pid namespace: nothing of it is looked
at here, and each would take a second process.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sysfsd.kernel.cgroups import CgroupTree, read_cgroup_paths
from tests.support.containers import UID_BASE
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCES = Path(__file__).parent.parent.parent
_numbers = itertools.count()

# Prints the pids, waits for a line, then lets all of them go to sleep.
_MAKER = """
import os, signal, sys
from sysfsd.kernel import syscalls
count = int(sys.argv[1])
kinds = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS
maker = os.getpid()
made, say = os.pipe()
hold, go = os.pipe()
pids = []
for number in range(count):
    pid = os.fork()
    if pid == 0:
        os.close(go)
        syscalls.prctl(1, signal.SIGKILL)
        syscalls.unshare(kinds)
        os.write(say, b"x")
        os.read(hold, 1)
        if os.getppid() == maker:
            os.execvp("sleep", ["sleep", "infinity"])
        os._exit(1)
    pids.append(pid)
    os.read(made, 1)
print(*pids, flush=True)
assert sys.stdin.readline()
os.close(go)
for pid in pids:
    os.waitpid(pid, 0)
"""


@dataclass(frozen=True)
class Cheap:
    """One of them."""

    pid: int
    cgroups: tuple[Path, ...]


@contextmanager
def many(count: int, *, memory: int = 64 << 20) -> Iterator[list[Cheap]]:
    """Run ``count`` containers, each limited to ``memory`` bytes and with ids of its own."""
    tree, own = CgroupTree.of_host(), read_cgroup_paths(os.getpid())
    name = f"sysfsd-test-{os.getpid()}-m{next(_numbers)}"
    tops = []
    for found in (tree.controller(own, "memory"), tree.controller(own, "cpuacct")):
        if found is not None and (top := Path(found.mountpoint, name)) not in tops:
            top.mkdir()
            tops.append(top)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", _MAKER, str(count)],
            cwd=_SOURCES,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as maker:
            try:
                assert maker.stdin is not None
                assert maker.stdout is not None
                pids = [int(word) for word in maker.stdout.readline().split()]
                assert len(pids) == count
                yield [_place(pid, number, tops, memory) for number, pid in enumerate(pids)]
            finally:
                maker.kill()
    finally:
        for top in tops:
            for cgroup in (*top.iterdir(), top):
                if cgroup.is_dir():
                    until(partial(_removed, cgroup), f"an empty {cgroup}")


def _place(pid: int, number: int, tops: list[Path], memory: int) -> Cheap:
    cgroups = []
    for top in tops:
        cgroup = top / str(number)
        cgroup.mkdir()
        for limit in ("memory.limit_in_bytes", "memory.max"):
            with suppress(FileNotFoundError, PermissionError):
                (cgroup / limit).write_text(str(memory))
        (cgroup / "cgroup.procs").write_text(str(pid))
        cgroups.append(cgroup)
    for map_ in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{map_}").write_text(f"0 {UID_BASE + number * 65536} 65536\n")
    return Cheap(pid, tuple(cgroups))


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except OSError:
        return False
    return True
