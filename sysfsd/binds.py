"""Which files of a container are bound from elsewhere than its subtree: a plan, as data.

Sysctls come from the exact mount (``filesystem.pinned``), since what can be written must not be
kept by the kernel.

Pressure has triggers, and those belong to an open file, which the service's connection never gets
to see. So what is bound over /proc/pressure is

* the kernel's own file of the container's cgroup. Nobody is in between, and nothing ends with us.
* But that can't be written from within a cgroup namespace that has this cgroup for its root, where
  the hierarchy makes namespaces a boundary (cgroup v2's ``nsdelegate``, as systemd mounts it). Then
  it is a file of the pressure mount (``filesystem.pressure``), if there is one.
* Neither, where the kernel counts no pressure for the container. The subtree's says so.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sysfsd.facts.pressure import RESOURCES, own_cgroup
from sysfsd.kernel import syscalls
from sysfsd.sysctls.probe import ADDABLE, passed_on

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sysfsd.attach import BindSource
    from sysfsd.containers.record import ContainerRecord
    from sysfsd.facts.collector import Container
    from sysfsd.kernel.cgroups import CgroupTree
    from sysfsd.sysctls.node import Sysctl


def plan(
    tree: CgroupTree, container: Container, *, pressure: str | None, proc: str = "/proc"
) -> Mapping[str, BindSource]:
    """Return what to bind over which view; ``pressure`` is where the pressure mount is.

    What is named need not be there: a kernel without ``irq.pressure`` has no such view either.
    """
    cgroup = own_cgroup(tree, container.cgroup)
    if cgroup is None:
        return {}
    if pressure is not None and tree.nsdelegate and _has_cgroup_namespace(container.pid, proc):
        return {
            f"proc/pressure/{name}": {
                "directory": pressure,
                "path": name,
                "magic": syscalls.FUSE_SUPER_MAGIC,
            }
            for name in RESOURCES
        }
    return {
        f"proc/pressure/{name}": {
            "directory": cgroup.mountpoint,
            "path": f"{cgroup.path.strip('/')}/{name}.pressure",
            "magic": syscalls.CGROUP2_SUPER_MAGIC,
        }
        for name in RESOURCES
    }


def plan_sysctls(
    container: ContainerRecord, nodes: Iterable[Sysctl], exact: str, *, own_network: bool
) -> Mapping[str, BindSource]:
    """Return what to bind over sysctls; ``exact`` is where the exact mount is.

    In a network namespace that is the container's own, directories that are `passed_on` instead of
    what is in them. On the host's that is there.
    """
    paths = {(own_network and passed_on(node.path)) or node.path: None for node in nodes}
    return {
        path: {
            "directory": f"{exact}/containers/{container.id}",
            "path": path,
            "magic": syscalls.FUSE_SUPER_MAGIC,
        }
        for path in paths
    }


def plan_additions(nodes: Iterable[Sysctl]) -> list[str]:
    """Return the directories in which sysctls may have to be added."""
    directories = {os.path.dirname(node.path) for node in nodes}
    return [each for each in ADDABLE if each in directories]


def _has_cgroup_namespace(pid: int, proc: str) -> bool:
    own = os.stat(f"{proc}/self/ns/cgroup")
    try:
        other = os.stat(f"{proc}/{pid}/ns/cgroup")
    except OSError:  # gone: nothing will be attached
        return False
    return (own.st_dev, own.st_ino) != (other.st_dev, other.st_ino)
