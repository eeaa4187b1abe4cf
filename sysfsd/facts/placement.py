"""Which cgroup is *the container's*, given a process of it.

Not simply the one that the process sits in: systemd and docker:dind move their processes into
leaves, and where containers share a pid namespace (Kubernetes, ``shareProcessNamespace``) its init
is another container's. A container's cgroup is, innermost first,

1. the one below the root of the process's cgroup namespace that carries an engine's name for a
   container (an engine inside, whose containers share its namespace);
2. the root of its cgroup namespace, where it has one of its own: made by the engine, with the
   container's cgroup as its root;
3. without one (Docker's and Podman's default on cgroup v1, ``--cgroupns=host``): the cgroup that
   carries an engine's name for a container;
4. its own cgroup, save for the leaf that init systems make for themselves.

What a hostile container can do with it: make a cgroup namespace in, or give an engine-like name to,
a cgroup below its own, and be shown that one, which its numbers are part of anyway. Never one
further out, and limits are in any case the smallest of all ancestors. Registered containers' are
decided when they are registered, by the hook before any process of theirs has run.

systemd marks units with ``Delegate=`` by the attribute ``trusted.delegate``. It is not asked for:
a user's session is such a unit without being a container, and those that are have a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sysfsd.kernel.cgroup_namespaces import namespace_root
from sysfsd.kernel.cgroups import UNIFIED, CgroupPaths, read_cgroup_paths

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENGINE_ID = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{64}(?![0-9A-Za-z])")
"""Docker, containerd, CRI-O, Podman: ``<id>``, ``docker-<id>.scope``, ``libpod-<id>.scope``,
``cri-containerd-<id>.scope``, ``crio-<id>``, ``kubepods-….slice:cri-containerd:<id>``."""

_MACHINE = re.compile(r"lxc\.payload\..+|machine-.+\.scope|systemd-nspawn@.+\.service")
"""LXC, LXD and Incus; systemd-nspawn and libvirt."""

_PARENTS = frozenset({"lxc", "lxc.payload"})
"""LXC before 4.0: ``/lxc/<name>``."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a process's container is in the hierarchies."""

    cgroup: CgroupPaths
    bounded: bool
    """Whether these are known to be a container's: not merely those that the process sits in."""


def placement_of(pid: int, proc: str = "/proc", container: str | None = None) -> Placement:
    """Read which cgroups are those of the container of a process (or thread).

    ``container`` is its id, where that is known. Raises OSError if the process is gone; the caller
    answers for it being the same process all the time.
    """
    root = namespace_root(pid, proc)
    return place(read_cgroup_paths(pid, proc), root, container)


def place(paths: CgroupPaths, root: CgroupPaths | None, container: str | None = None) -> Placement:
    """Decide, given where the process sits and the root of its cgroup namespace; pure.

    ``root`` is None where the process shares our cgroup namespace or its root is not known.
    """
    chosen: list[tuple[str, str]] = []
    bounded = named = False
    leaf = paths.without_init_scope()
    for name, path in paths.entries:
        top = "/" if root is None else root.get(name) or "/"
        if not is_within(path, top):
            top = "/"
        by_name = container_ancestor(path, top, container)
        has_name = container_ancestor(by_name or top, "/", container) is not None
        if name == UNIFIED and named and not has_name:
            # Engines of v1 need not use v2's hierarchy beside it, where a container then is in its
            # engine's own cgroup, with all others of that. (The kernel lists that one last.)
            chosen.append((name, "/"))
            continue
        named = named or has_name
        # A namespace rooted at the very top bounds nothing.
        found = by_name or (None if top == "/" else top)
        bounded = bounded or found is not None
        chosen.append((name, found or leaf.get(name) or path))
    return Placement(CgroupPaths(tuple(chosen)), bounded)


def container_ancestor(path: str, top: str = "/", container: str | None = None) -> str | None:
    """The innermost cgroup on the way down from ``top`` that has a container's name; pure.

    Innermost, because engines nest, and the names further out are then those of other containers.
    ``container`` is an id to look for besides the engines' patterns: a runtime's default is a
    cgroup of the container's name.
    """
    names = path.split("/")
    above = len(top.rstrip("/").split("/"))
    for position in range(len(names) - 1, above - 1, -1):
        if _is_container(names, position, container):
            return "/".join(names[: position + 1])
    return None


def outermost(paths: CgroupPaths) -> CgroupPaths:
    """Whose share of something bounded a process takes, wherever below its cgroups it sits; pure.

    Down to the first name of a container. Whatever a container makes, and calls, is below that: it
    has one share, not as many as it makes cgroups. Without such a name the first two count, which
    are a user's, a service's or an administrator's.
    """
    return CgroupPaths(tuple((name, _outermost(path)) for name, path in paths.entries))


def _outermost(path: str) -> str:
    names = path.split("/")
    for position in range(1, len(names)):
        if _is_container(names, position, None):
            return "/".join(names[: position + 1])
    return "/".join(names[:3])


def is_within(path: str, top: str) -> bool:
    """Whether a cgroup is another one or below it; pure."""
    return top in {"/", path} or path.startswith(f"{top}/")


def _is_container(names: Sequence[str], position: int, container: str | None) -> bool:
    name = names[position]
    if container is not None and _has_id(name, container):
        return True
    if "conmon" in name:  # Podman's and CRI-O's monitor of a container, beside it
        return False
    return (
        _ENGINE_ID.search(name) is not None
        or _MACHINE.fullmatch(name) is not None
        or names[position - 1] in _PARENTS
    )


def _has_id(name: str, container: str) -> bool:
    """Whether a name is an id, alone or as systemd's units have it: ``<prefix>-<id>.scope``."""
    return name == container or name.removesuffix(".scope").endswith(f"-{container}")
