"""``sysfsd attach`` and ``sysfsd detach``: views for a container that runs already."""

from __future__ import annotations

import os
import re
import select
import signal
from typing import TYPE_CHECKING

from sysfsd.attach import attach, detach
from sysfsd.containers.record import check_id
from sysfsd.control.client import Client
from sysfsd.errors import InvalidRequest, NoSuchContainer, Refused
from sysfsd.kernel import namespaces
from sysfsd.kernel.cgroups import read_cgroup_paths
from sysfsd.kernel.procfs import init_of_pid_namespace, pid_namespace

if TYPE_CHECKING:
    from typing import NoReturn

    from sysfsd.kernel.cgroups import CgroupPaths

_ENGINE_ID = re.compile(r"[0-9a-f]{64}")


def give_views(client: Client, pid: int, container: str | None) -> tuple[str, list[str]]:
    """Register the container of a process and attach its views; returns its id and the views."""
    init_pid, init = _open_init(pid)
    known = _registered_id(client, init_pid)
    container = check_id(container or known or _id_of(init_pid))
    registered = client.call("register", {"id": container}, [init])
    try:
        covered = attach(
            daemon=client.daemon_pidfd(),
            subtree=os.path.join(client.call("hello", {})["mountpoint"], registered["directory"]),
            views=registered["views"],
            init=init,
        )
    except BaseException:
        if known is None:
            client.call("release", {"id": container})
        raise
    return container, covered


def take_views(client: Client, pid: int) -> tuple[str, list[str]]:
    """Detach the views of a process's container and drop its record."""
    init_pid, init = _open_init(pid)
    container = _registered_id(client, init_pid)
    if container is None:
        raise NoSuchContainer(f"the container of process {pid} is not registered; see: sysfsd ps")
    views = client.call("register", {"id": container}, [init])["views"]  # the same again
    hello = client.call("hello", {})
    # The daemon may live in another mount namespace than we do.
    device = os.stat(f"/proc/{hello['pid']}/root{hello['mountpoint']}").st_dev
    uncovered = detach(device=device, views=views, init=init)
    client.call("release", {"id": container})
    return container, uncovered


def take_all_views(client: Client, patience: float = 1.0) -> list[str]:
    """Detach every registered container's views, for a daemon that stops; returns who kept them.

    A container that stays covered by a daemon that is gone reads ENOTCONN. Each is seen to by a
    process of its own: one that mounted a file system of its own over /proc can make whoever looks
    there wait, but only for ``patience`` seconds, and only for itself.
    """
    left = []
    for each in client.call("list", {})["containers"]:
        child = os.fork()
        if child == 0:
            _take_in_child(client.path, each["pid"])
        pidfd = os.pidfd_open(child)
        try:
            if not select.select([pidfd], [], [], patience)[0]:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                left.append(str(each["id"]))
            elif os.waitpid(child, 0)[1] != 0:
                left.append(str(each["id"]))
        finally:
            os.close(pidfd)
    return left


def _take_in_child(control: str, pid: int) -> NoReturn:
    status = 1
    try:
        with Client(control) as client:
            take_views(client, pid)
        status = 0
    finally:
        os._exit(status)


def id_from_cgroup(cgroup: CgroupPaths) -> str | None:
    """The id that an engine gave a container, as the name of its cgroup has it; pure.

    Docker: ``/docker/<id>`` or ``docker-<id>.scope``; Podman, CRI-O and containerd are alike.
    """
    for _controller, path in cgroup.entries:
        found = _ENGINE_ID.findall(path)
        if found:
            return str(found[-1])
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
    init = pidfd if init_pid == pid else os.pidfd_open(init_pid)
    if not namespaces.pidfd_alive(pidfd) or not namespaces.pidfd_alive(init):
        raise InvalidRequest(f"process {pid} is gone")
    return init_pid, init


def _mount_namespace(pid: int) -> tuple[int, int]:
    status = os.stat(f"/proc/{pid}/ns/mnt")
    return status.st_dev, status.st_ino


def _registered_id(client: Client, init_pid: int) -> str | None:
    for each in client.call("list", {})["containers"]:
        if each["pid"] == init_pid:
            return str(each["id"])
    return None


def _id_of(init_pid: int) -> str:
    return id_from_cgroup(read_cgroup_paths(init_pid)) or f"pid-{init_pid}"
