"""Where a process's cgroup namespace begins, as a path of our own.

/proc/<pid>/cgroup is written for its reader: relative to the root of the *reader's* cgroup
namespace (cgroup_namespaces(7)). Whoever reads it both at home and inside the process's namespace
learns where that one is rooted. Entering it takes CAP_SYS_ADMIN there, and moves the calling thread
alone.
"""

from __future__ import annotations

import os
import threading

from sysfsd.kernel import namespaces, syscalls
from sysfsd.kernel.cgroups import CgroupPaths, read_cgroup_paths


def namespace_root(pid: int, proc: str = "/proc") -> CgroupPaths | None:
    """The root of the cgroup namespace of a process, in each hierarchy, as we name cgroups.

    None where the process shares our namespace, where we may not enter its own, and where it sits
    outside of its own, so that its path says nothing about the root. Raises OSError if the process
    is gone.

    The process may move between two reads, and its root is for others to trust: so how *deep* that
    is comes from our own path, which it cannot change, and only the names from the path of its.
    Somebody who moves within his namespace can therefore not make it look wider than it is.
    """
    try:
        theirs = namespaces.open_namespace(pid, "cgroup", proc)
    except FileNotFoundError:
        if os.path.exists(f"{proc}/{pid}"):  # a kernel without cgroup namespaces
            return None
        raise
    except PermissionError:
        return None
    try:
        us = threading.get_native_id()  # a thread's namespaces are its own
        home = namespaces.open_namespace(us, "cgroup")
        try:
            if namespaces.namespace_key(theirs) == namespaces.namespace_key(home):
                return None
            own, path = read_cgroup_paths(us), read_cgroup_paths(pid, proc)
            try:
                syscalls.setns(theirs, syscalls.CLONE_NEWCGROUP)
            except PermissionError:
                return None
            try:
                own_inside, inside = read_cgroup_paths(us), read_cgroup_paths(pid, proc)
            finally:
                _come_back(home)
        finally:
            os.close(home)
    finally:
        os.close(theirs)
    return roots(own, own_inside, path, inside)


def roots(
    own: CgroupPaths, own_inside: CgroupPaths, path: CgroupPaths, inside: CgroupPaths
) -> CgroupPaths | None:
    """Work the root out of our own and a process's paths, from home and from inside; pure.

    None if it cannot be told for some hierarchy.
    """
    found: list[tuple[str, str]] = []
    for name, each in path.entries:
        ours, ours_inside, theirs = own.get(name), own_inside.get(name), inside.get(name)
        if ours is None or ours_inside is None or theirs is None:
            return None
        root = _root(_names(ours), _names(ours_inside), _names(each), _names(theirs))
        if root is None:
            return None
        found.append((name, root))
    return CgroupPaths(tuple(found))


def _root(own: list[str], own_inside: list[str], path: list[str], inside: list[str]) -> str | None:
    # From inside we are at "/../../ours": up from the root to the nearest common ancestor, then
    # down again. What goes down is the end of our path at home.
    up = own_inside.count("..")
    down = own_inside[up:]
    common = len(own) - len(down)
    if ".." in own + path + inside or common < 0 or own[common:] != down:
        return None
    depth = common + up
    return None if depth > len(path) else "/" + "/".join(path[:depth])


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _come_back(home: int) -> None:
    try:
        syscalls.setns(home, syscalls.CLONE_NEWCGROUP)
    except OSError:
        # Every path read from now on would be another one's. This is the memory for one small
        # object of the kernel's; without it nothing else goes on, either.
        os._exit(1)
