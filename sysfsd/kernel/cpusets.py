"""The cpuset of one cgroup, v1 or v2, to read and to write.

Sources: the kernel's admin-guide/cgroup-v1/cpusets.rst and admin-guide/cgroup-v2.rst ("Cpuset").
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.kernel import syscalls
from sysfsd.kernel.procfs import parse_cpu_list

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sysfsd.kernel.cgroups import Cgroup, CgroupPaths, CgroupTree, Level

_REQUESTED = "cpuset.cpus"
_EFFECTIVE = {1: "cpuset.effective_cpus", 2: "cpuset.cpus.effective"}
_MAGICS = frozenset({syscalls.CGROUP_SUPER_MAGIC, syscalls.CGROUP2_SUPER_MAGIC})


class CpusetKey(NamedTuple):
    """Names a cgroup for as long as it exists: a path may come back, its inode number does not."""

    version: int
    mountpoint: str
    path: str
    device: int
    inode: int


class CpusetState(NamedTuple):
    """What a cpuset is at present."""

    requested: str
    """The text of cpuset.cpus, stripped. Empty in v2: whatever the parent has."""
    above: tuple[int, ...]
    """The CPUs that its parent may use: what it could have at most. Never empty."""


class OpenCpuset:
    """An open cpuset; valid inside `opened`."""

    def __init__(self, cgroup: Cgroup, own: Level, parent: Level) -> None:
        self._own = own
        self._parent = parent
        status = os.fstat(own.fd)
        self.key = CpusetKey(
            cgroup.version, cgroup.mountpoint, cgroup.path, status.st_dev, status.st_ino
        )

    def read(self) -> CpusetState | None:
        """Read it; None where cpusets are not enabled for this cgroup.

        Raises ``OSError`` if it is gone, ``ValueError`` if its lists are none.
        """
        requested = self._own.read(_REQUESTED)
        above = parse_cpu_list(self._parent.read(_EFFECTIVE[self.key.version]) or "")
        return CpusetState(requested.strip(), above) if requested is not None and above else None

    def processes(self) -> list[int]:
        """Return the pids in this cgroup itself."""
        return [int(pid) for pid in (self._own.read("cgroup.procs") or "").split()]

    def write(self, cpus: str) -> None:
        """Write cpuset.cpus, a list of CPUs in the kernel's format.

        Raises ``PermissionError`` for one that is not the host's root's: what a container makes
        below its own cgroup belongs to it. And ``OSError``: v1 gives EBUSY if a cgroup below has
        CPUs that would be missing here.
        """
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_REQUESTED, flags, dir_fd=self._own.fd)
        try:
            if syscalls.filesystem_magic(fd) not in _MAGICS or os.fstat(fd).st_uid != 0:
                raise PermissionError(errno.EPERM, "not a cpuset of the host's", self.key.path)
            os.write(fd, f"{cpus}\n".encode())
        finally:
            os.close(fd)


def own_cpuset(tree: CgroupTree, paths: CgroupPaths) -> Cgroup | None:
    """Return the cgroup of these paths that has a cpuset of its own; None if there is none.

    That is: not the root, and in v2 not an ancestor that the controller is enabled for instead.
    """
    cgroup = tree.controller(paths, "cpuset")
    if cgroup is None or cgroup.is_root:
        return None
    if cgroup.version == 2:
        unified = tree.unified(paths)
        if unified is None or unified.path != cgroup.path:
            return None
    return cgroup


@contextmanager
def opened(cgroup: Cgroup) -> Iterator[OpenCpuset]:
    """Open a cgroup that is not the root; raises ``OSError`` as `Cgroup.levels` does."""
    with cgroup.levels() as levels:
        yield OpenCpuset(cgroup, levels[0], levels[1])
