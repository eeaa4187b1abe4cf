"""``sysfsd attach`` and ``sysfsd detach``: views for a container that runs already."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.attach import attach, detach
from sysfsd.containers.record import check_id
from sysfsd.control.client import Client
from sysfsd.errors import InvalidRequest, NoSuchContainer, Refused
from sysfsd.facts.placement import placement_of
from sysfsd.kernel import namespaces, syscalls
from sysfsd.kernel.cgroups import read_cgroup_paths
from sysfsd.kernel.procfs import init_of_pid_namespace, pid_namespace

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sysfsd.attach import BindSource, FileKey
    from sysfsd.kernel.cgroups import CgroupPaths

_AT_ONCE = 32
"""Processes that `take_all_views` has at work."""

_ENGINE_ID = re.compile(r"[0-9a-f]{64}")


class Given(NamedTuple):
    """What `give_views` did."""

    container: str
    views: list[str]
    warning: str | None
    """Why its policy is not what it should be."""


def give_views(
    client: Client, pid: int, container: str | None, settings: Mapping[str, str]
) -> Given:
    """Register the container of a process and attach its views.

    ``settings`` are those of its policy that the user named.
    """
    init_pid, init = _open_init(pid)
    ids = _registered_ids(client)
    known = ids.get(init_pid)
    container = check_id(container or known or _id_of(init_pid, ids.values()))
    registered = client.call("register", {"id": container, "policy": dict(settings)}, [init])
    try:
        covered = attach(
            daemon=client.daemon_pidfd(),
            subtree=os.path.join(client.call("hello", {})["mountpoint"], registered["directory"]),
            views=registered["views"],
            binds=registered.get("binds", {}),
            additions=registered.get("additions", ()),
            init=init,
        )
    except BaseException:
        if known is None:
            client.call("release", {"id": container})
        raise
    return Given(container, covered, registered.get("warning"))


def take_views(client: Client, pid: int) -> tuple[str, list[str]]:
    """Detach the views of a process's container and drop its record."""
    init_pid, init = _open_init(pid)
    container = _registered_ids(client).get(init_pid)
    if container is None:
        raise NoSuchContainer(f"the container of process {pid} is not registered; see: sysfsd ps")
    registered = client.call("register", {"id": container}, [init])  # the same again
    hello = client.call("hello", {})
    # The daemon may live in another mount namespace than we do.
    root = f"/proc/{hello['pid']}/root"
    binds: Mapping[str, BindSource] = registered.get("binds", {})
    elsewhere = {
        view: source
        for view, source in binds.items()
        if source["magic"] != syscalls.FUSE_SUPER_MAGIC
    }
    own = {hello["mountpoint"], *(binds[view]["directory"] for view in binds.keys() - elsewhere)}
    uncovered = detach(
        devices=_devices(root, own),
        subtree=os.path.join(hello["mountpoint"], registered["directory"]),
        views=registered["views"],
        bound=_keys(root, elsewhere),
        additions=registered.get("additions", ()),
        init=init,
    )
    client.call("release", {"id": container})
    return container, uncovered


def _devices(root: str, directories: Collection[str]) -> set[int]:
    devices = set()
    for directory in directories:
        with contextlib.suppress(OSError):  # the process behind it has ended
            devices.add(os.stat(f"{root}{directory}").st_dev)
    return devices


def _keys(root: str, binds: Mapping[str, BindSource]) -> dict[str, FileKey]:
    keys = {}
    for view, source in binds.items():
        with contextlib.suppress(OSError):  # gone, or never there
            found = os.lstat(f"{root}{source['directory']}/{source['path']}")
            keys[view] = (found.st_dev, found.st_ino)
    return keys


def take_all_views(client: Client, patience: float = 2.0) -> list[str]:
    """Detach every registered container's views, for a daemon that stops; returns who kept them.

    A container that stays covered by a daemon that is gone reads ENOTCONN. Each is seen to by a
    process of its own: one that mounted a file system of its own over /proc can make whoever looks
    there wait, but only for ``patience`` seconds, and only for itself.
    """
    containers = client.call("list", {})["containers"]
    left: list[str] = []
    for start in range(0, len(containers), _AT_ONCE):
        children = {
            _take_in_child(client.path, each["pid"]): str(each["id"])
            for each in containers[start : start + _AT_ONCE]
        }
        deadline = time.monotonic() + patience
        for child, container in children.items():
            pidfd = os.pidfd_open(child)
            try:
                if not select.select([pidfd], [], [], max(0, deadline - time.monotonic()))[0]:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    left.append(container)
                elif os.waitpid(child, 0)[1] != 0:
                    left.append(container)
            finally:
                os.close(pidfd)
    return left


def _take_in_child(control: str, pid: int) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with Client(control) as client:
                take_views(client, pid)
            status = 0
        finally:
            os._exit(status)
    return child


def id_from_cgroup(cgroup: CgroupPaths) -> str | None:
    """The id that an engine gave a container, as the name of its cgroup has it; pure.

    The first name on the way down: those below it are the container's own choice.

    Docker: ``/docker/<id>`` or ``docker-<id>.scope``; Podman, CRI-O and containerd are alike.
    """
    for _controller, path in cgroup.entries:
        found = _ENGINE_ID.findall(path)
        if found:
            return str(found[0])
    return None


def _open_init(pid: int) -> tuple[int, int]:
    """Pid and pidfd of the init of a process's container; raises ``Refused`` for the host's."""
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError, OSError):
        raise InvalidRequest(f"there is no process {pid}; name one of the container's") from None
    if _mount_namespace(pid) == _mount_namespace(os.getpid()):
        raise Refused(f"process {pid} is not in a container: it sees the host's own files")
    # A container that shares the host's pid namespace has no init of its own: the process will do.
    shared = pid_namespace(pid) == pid_namespace("self")
    init_pid = pid if shared else init_of_pid_namespace(pid) or pid
    if init_pid != pid and _in_another_container(pid, init_pid):
        init_pid = pid
    init = pidfd if init_pid == pid else os.pidfd_open(init_pid)
    if not namespaces.pidfd_alive(pidfd) or not namespaces.pidfd_alive(init):
        raise InvalidRequest(f"process {pid} is gone")
    return init_pid, init


def _in_another_container(pid: int, init: int) -> bool:
    """Whether the init of a process's pid namespace is not its container's: a pod may share one."""
    place = placement_of(pid)
    return place.bounded and place.cgroup != placement_of(init).cgroup


def _mount_namespace(pid: int) -> tuple[int, int]:
    status = os.stat(f"/proc/{pid}/ns/mnt")
    return status.st_dev, status.st_ino


def _registered_ids(client: Client) -> dict[int, str]:
    """Pids of the registered containers' inits, and their ids."""
    containers = client.call("list", {})["containers"]
    # Of two that were registered for one init, the first.
    return {each["pid"]: str(each["id"]) for each in reversed(containers)}


def _id_of(init_pid: int, taken: Collection[str]) -> str:
    found = id_from_cgroup(read_cgroup_paths(init_pid))
    # One that is taken is the container's around this one.
    return f"pid-{init_pid}" if found is None or found in taken else found
