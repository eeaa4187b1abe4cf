"""Many containers: ``crowd.c`` makes them, and this puts each into a cgroup of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from sysfsd.kernel.cgroups import CgroupTree, read_cgroup_paths
from tests.support.containers import UID_BASE
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTROLLERS = ("memory", "cpu", "cpuacct")


@dataclass
class Crowd:
    """The containers that there are."""

    process: subprocess.Popen[str]
    parents: tuple[Path, ...]
    """Cgroups, one a hierarchy, below which each has its own."""
    pids: dict[str, int] = field(default_factory=dict)
    """Their inits, by their ids."""

    def add(self, count: int) -> dict[str, int]:
        """Make more of them; returns the new ones."""
        found = [int(pid) for pid in self._ask(str(count)).split()]
        assert len(found) == count, f"{len(found)} containers instead of {count}"
        new = {f"bench-{len(self.pids) + each}": pid for each, pid in enumerate(found)}
        for name, pid in new.items():
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{kind}").write_text(f"0 {UID_BASE} 65536\n")
            for parent in self.parents:
                (parent / name).mkdir()
                (parent / name / "cgroup.procs").write_text(str(pid))
        self.pids |= new
        assert self._ask("go") == "ready", "some containers did not start"
        return new

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextmanager
def crowd(program: Path) -> Iterator[Crowd]:
    """None at first; all are gone in the end."""
    parents = tuple(_parents(f"sysfsd-bench-{os.getpid()}"))
    made = Crowd(
        subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True),
        parents,
    )
    try:
        for parent in parents:
            parent.mkdir()
            _divide(parent)
        yield made
    finally:
        _end(made.process)
        for parent in parents:
            for each in (*(parent / name for name in made.pids), parent):
                until(lambda each=each: _removed(each), f"the end of {each}")  # type: ignore[misc]


def _parents(name: str) -> Iterator[Path]:
    tree, own = CgroupTree.of_host(), read_cgroup_paths(os.getpid())
    found = [*(tree.controller(own, each) for each in CONTROLLERS), tree.unified(own)]
    yield from dict.fromkeys(Path(cgroup.mountpoint, name) for cgroup in found if cgroup)


def _divide(parent: Path) -> None:
    """Have those below it counted on their own, on cgroup v2, by whatever may be had."""
    for controller in CONTROLLERS:
        with suppress(OSError):
            (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def _end(process: subprocess.Popen[str]) -> None:
    inits = [child.pid for child in psutil.Process(process.pid).children()]
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    # They are told to go with it; whoever had not come as far as to ask for that, is not.
    for pid in inits:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
