"""Directories of ``/proc/sys/net`` in which each network interface has one of its own.

``net/ipv4/neigh/eth0`` and its kin (``neigh_sysctl_register`` of ``net/core/neighbour.c``). They
are those of a network namespace, given by its descriptor, and so are the interfaces: known by their
index, since names are changed and come back for others. See `inside` for how we get there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from sysfsd.kernel import inside
from sysfsd.kernel.capabilities import give_up_all

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# linux/sockios.h, and struct ifreq of linux/if.h: a name, and a union that is 24 bytes long.
_SIOCGIFNAME = 0x8910
_SIOCGIFINDEX = 0x8933
_IFREQ = struct.Struct("=16si20x")
_MAX_NAME = 15


def interfaces(namespace: int, directory: str) -> list[tuple[bytes, int]]:
    """Return the names and indices of the interfaces that have one in ``directory``.

    That is an absolute path. Raises ``OSError``.
    """

    def look() -> list[tuple[bytes, int]]:
        found = []
        with _socket() as asked:
            for name in os.listdir(os.fsencode(directory)):
                with suppress(FileNotFoundError):  # gone since, or ``default``
                    found.append((name, _index_of(asked, name)))
        return found

    return _inside(namespace, look)


def index_of(namespace: int, directory: str, name: bytes) -> int:
    """Return the index of an interface that has one; raises ``OSError``, ENOENT for no such."""

    def look() -> int:
        os.stat(os.path.join(os.fsencode(directory), name))
        with _socket() as asked:
            return _index_of(asked, name)

    return _inside(namespace, look)


def read(namespace: int, directory: str, index: int, file: str) -> bytes:
    """Read a file of an interface's; raises ``OSError``, ENOENT if the interface is gone."""
    return _inside(namespace, lambda: inside.read_here(_path(directory, index, file)))


def write(namespace: int, directory: str, index: int, file: str, data: bytes, offset: int) -> int:
    """Write one and return how much the kernel took; raises as `read` does."""
    return _inside(
        namespace, lambda: inside.write_here(_path(directory, index, file), data, offset)
    )


def has(namespace: int, directory: str, index: int, file: str) -> bool:
    """Say whether an interface has such a file; raises ``OSError``."""
    return _inside(namespace, lambda: os.path.lexists(_path(directory, index, file)))


def files(namespace: int, directory: str, index: int) -> frozenset[str]:
    """Return the names of an interface's files; raises as `read` does."""
    return _inside(namespace, lambda: frozenset(os.listdir(_path(directory, index, ""))))


def _inside(namespace: int, work: Callable[[], T]) -> T:
    """Do something in a network namespace, as root without any capability.

    That is enough for what is below ``/proc/sys`` (``test_perm`` of ``fs/proc/proc_sysctl.c``). For
    the name of an interface that is not there the kernel loads a module of that name, if whoever
    asks has the capability to administer networks, or to load modules (``dev_load``): a container
    must not choose one.
    """

    def run() -> T:
        give_up_all()
        return work()

    return inside.call(namespace, run)


def _path(directory: str, index: int, file: str) -> str:
    with _socket() as asked:
        answer = _ask(asked, _SIOCGIFNAME, b"", index)
    # A name has no slash and is neither ``.`` nor ``..`` (dev_valid_name).
    name: bytes = _IFREQ.unpack(answer)[0].rstrip(b"\0")
    return os.path.join(directory, os.fsdecode(name), file)


def _index_of(asked: socket.socket, name: bytes) -> int:
    if len(name) > _MAX_NAME:
        raise _missing()
    index: int = _IFREQ.unpack(_ask(asked, _SIOCGIFINDEX, name, 0))[1]
    return index


def _socket() -> socket.socket:
    """A socket of the namespace that we are in: of any family (``sock_do_ioctl``), so of AF_UNIX.

    What if_nametoindex(3) takes is the C library's choice, and our unit allows no other.
    """
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def _ask(asked: socket.socket, request: int, name: bytes, index: int) -> bytes:
    try:
        return fcntl.ioctl(asked, request, _IFREQ.pack(name, index))
    except OSError as error:
        if error.errno in {errno.ENODEV, errno.ENXIO}:
            raise _missing() from None
        raise


def _missing() -> OSError:
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT))
