"""``sysfsd attach`` and ``sysfsd detach``: views for a container that runs already."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.attach import attach_registered, detach
from sysfsd.children import in_children
from sysfsd.containers.record import check_id
from sysfsd.control.client import Client
from sysfsd.errors import InvalidRequest, NoSuchContainer, Refused
from sysfsd.facts.placement import placement_of
from sysfsd.kernel import namespaces, syscalls
from sysfsd.kernel.cgroups import read_cgroup_paths
from sysfsd.kernel.procfs import init_of_pid_namespace, pid_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sysfsd.attach import BindSource, FileKey
    from sysfsd.kernel.cgroups import CgroupPaths

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
        covered = attach_registered(client, registered, init=init)
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
    """Detach every registered container's views and drop their records; returns who kept them."""
    return in_children(
        client.call("list", {})["containers"],
        lambda each: _with_own_client(client.path, lambda own: take_views(own, each["pid"])),
        patience,
    )


def give_all_views(client: Client, patience: float = 5.0) -> list[str]:
    """Attach every registered container's views, as far as they aren't; returns who lacks some.

    For a daemon that begins with containers of a predecessor: that may have had other files, or
    have taken all away.
    """
    return in_children(
        client.call("list", {})["containers"],
        lambda each: _with_own_client(
            client.path, lambda own: give_views(own, each["pid"], each["id"], {})
        ),
        patience,
    )


def _with_own_client(control: str, work: Callable[[Client], object]) -> None:
    with Client(control) as client:
        work(client)


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
    init_pid = (_init_of_child(pid) if shared else init_of_pid_namespace(pid)) or pid
    if init_pid != pid and _in_another_container(pid, init_pid):
        init_pid = pid
    init = pidfd if init_pid == pid else os.pidfd_open(init_pid)
    if not namespaces.pidfd_alive(pidfd) or not namespaces.pidfd_alive(init):
        raise InvalidRequest(f"process {pid} is gone")
    return init_pid, init


def _init_of_child(pid: int) -> int | None:
    """The init of the container that a process made for its child, as unshare(1) does.

    It is in all of its namespaces but that of pids.
    """
    try:
        other = pid_namespace(pid, of_children=True) != pid_namespace(pid)
    except OSError:  # it has had no child yet
        return None
    init = init_of_pid_namespace(pid, of_children=True) if other else None
    return init if init is not None and _mount_namespace(init) == _mount_namespace(pid) else None


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
