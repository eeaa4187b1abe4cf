"""User namespaces and the processes that live in them.

A namespace is known by the device and inode number of its file on nsfs. The kernel gives such a
number to another namespace once the last reference is gone (ioctl_nsfs(2)), so whoever keeps a key
keeps a descriptor of the namespace or a pidfd of its init as well.

On the hook's path: standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    UsernsKey: TypeAlias = tuple[int, int]
    """``(st_dev, st_ino)`` of a namespace's file."""

# linux/nsfs.h
_NS_GET_USERNS = 0xB701
_NS_GET_PARENT = 0xB702

_MAX_DEPTH = 33
"""User namespaces nest 32 levels deep at most (user_namespaces(7))."""


def namespace_key(fd: int) -> UsernsKey:
    """Name the namespace behind an open nsfs file."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def open_namespace(pid: int, kind: str, proc: str = "/proc") -> int:
    """Open ``/proc/<pid>/ns/<kind>`` (``user``, ``mnt``, ``net``…).

    The caller answers for ``pid``: it holds a pidfd and asks ``pidfd_alive`` afterwards, or the
    process is blocked in a request that it has not answered yet.
    """
    return os.open(f"{proc}/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def parent_namespace(fd: int) -> int | None:
    """Open the parent of a user namespace; ``None`` when it is out of our sight."""
    try:
        return fcntl.ioctl(fd, _NS_GET_PARENT)
    except OSError as error:
        if error.errno == errno.EPERM:
            return None
        raise


def owning_user_namespace(fd: int) -> int:
    """Open the user namespace that owns a namespace of any kind (NS_GET_USERNS)."""
    return fcntl.ioctl(fd, _NS_GET_USERNS)


def own_user_namespace(proc: str = "/proc") -> UsernsKey:
    """The key of the user namespace that we are in."""
    fd = open_namespace(os.getpid(), "user", proc)
    try:
        return namespace_key(fd)
    finally:
        os.close(fd)


def user_namespace_lineage(fd: int) -> list[UsernsKey]:
    """Keys of a user namespace and its ancestors, nearest first, as far up as we can see."""
    keys: list[UsernsKey] = []
    current = os.dup(fd)
    try:
        for _ in range(_MAX_DEPTH):
            keys.append(namespace_key(current))
            parent = parent_namespace(current)
            if parent is None:
                break
            os.close(current)
            current = parent
    finally:
        os.close(current)
    return keys


def open_in_lineage(fd: int, key: UsernsKey) -> int | None:
    """Open the user namespace of that key, which is ours or an ancestor; None if it is neither."""
    current = os.dup(fd)
    for _ in range(_MAX_DEPTH):
        if namespace_key(current) == key:
            return current
        parent = parent_namespace(current)
        os.close(current)
        if parent is None:
            return None
        current = parent
    os.close(current)
    return None


def pidfd_pid(pidfd: int, proc: str = "/proc") -> int:
    """The pid behind a pidfd, as our pid namespace numbers it (pidfd_open(2), fdinfo).

    Raises ``ProcessLookupError`` when the process is gone or is not in our pid namespace, and
    ``OSError`` EBADF when the descriptor is no pidfd.
    """
    with open(f"{proc}/self/fdinfo/{pidfd}", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Pid:"):
                pid = int(line.split()[1])
                if pid <= 0:
                    raise ProcessLookupError(errno.ESRCH, "pidfd: the process is gone")
                return pid
    raise OSError(errno.EBADF, "not a pidfd")


def pidfd_alive(pidfd: int) -> bool:
    """Whether the process behind a pidfd still runs (a pidfd polls readable once it ended)."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return not poller.poll(0)


def container_root(pid: int, proc: str = "/proc") -> tuple[int, int]:
    """Host uid and gid of id 0 in the user namespace of ``pid``.

    Read from ``uid_map`` and ``gid_map`` (user_namespaces(7)), as our own namespace numbers ids.
    Raises ``LookupError`` when the namespace maps no id 0.
    """
    return _outside_id(f"{proc}/{pid}/uid_map"), _outside_id(f"{proc}/{pid}/gid_map")


def _outside_id(path: str) -> int:
    with open(path, encoding="ascii") as file:
        for line in file:
            inside, outside, _count = (int(field) for field in line.split())
            if inside == 0:
                return outside
    raise LookupError(f"{path} maps no id 0: the container has no root user")
