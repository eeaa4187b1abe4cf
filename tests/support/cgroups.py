"""Real cgroups for tests, in the hierarchy that has the memory controller: v1 or v2."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sysfsd.kernel.cgroups import UNIFIED, CgroupTree, read_cgroup_paths
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count()


@dataclass(frozen=True)
class TestCgroup:
    """A cgroup of a test's own, and the ones below it that were asked for."""

    __test__ = False

    directory: Path
    path: str
    """As /proc/<pid>/cgroup has it."""
    controller: str
    """Whose line there: the controller's on v1, `UNIFIED` on v2."""

    def divide(self) -> None:
        """Have those below it counted and limited on their own.

        On v2 this asks for an own decision, and for no process to be in the cgroup itself.
        """
        if self.controller == UNIFIED:
            (self.directory / "cgroup.subtree_control").write_text("+memory")

    def limit(self, memory: int, below: str = "") -> None:
        """Set its limit, or that of one below it, in bytes."""
        self.limit_file(below).write_text(str(memory))

    def limit_file(self, below: str = "") -> Path:
        """The file with that limit."""
        v1 = self.directory / below / "memory.limit_in_bytes"
        return v1 if v1.exists() else v1.with_name("memory.max")

    def put(self, pid: int, below: str = "") -> None:
        """Move a process into it, or into one below it."""
        (self.directory / below / "cgroup.procs").write_text(str(pid))


@contextmanager
def cgroup(*below: str, memory: int | None = None) -> Iterator[TestCgroup]:
    """Make a cgroup with a limit in bytes and some below it: ``a``, ``a/b``.

    All processes in them must have been ended when the context is left.
    """
    found = CgroupTree.of_host().controller(read_cgroup_paths(os.getpid()), "memory")
    if found is None:
        pytest.skip("no memory controller on this host")
    path = f"/sysfsd-test-{os.getpid()}-c{next(_numbers)}"
    top = Path(f"{found.mountpoint}{path}")
    made: list[Path] = []
    try:
        for each in (top, *(top / name for name in below)):
            each.mkdir()
            made.append(each)
        group = TestCgroup(top, path, "memory" if found.version == 1 else UNIFIED)
        if memory is not None:
            group.limit(memory)
        yield group
    finally:
        for each in reversed(made):
            until(lambda each=each: not (each / "cgroup.procs").read_text(), "an empty cgroup")  # type: ignore[misc]
            each.rmdir()
