"""The kernel's end: ``/dev/fuse``, the mount, and what a crashed predecessor left behind."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sysfsd.channel import packets
from sysfsd.errors import SysfsdError, UsageError
from sysfsd.kernel import mounts, syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

FSTYPE = "fuse.sysfsd"
_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_SO_SNDBUFFORCE = 32


@contextmanager
def opened() -> Iterator[int]:
    """Yield a non-blocking descriptor of ``/dev/fuse``: one connection to the kernel."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield device
    finally:
        os.close(device)


@contextmanager
def mounted(device: int, mountpoint: str) -> Iterator[None]:
    """Mount a connection at a directory, and unmount on leaving. Raises ``OSError``.

    Without fusermount: we are root, and its AppArmor profile is one thing less in the way.
    ``allow_other`` lets callers of any uid and user namespace in, ``default_permissions`` has the
    kernel check owners and modes.
    """
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    syscalls.mount("sysfsd", mountpoint, FSTYPE, _FLAGS, options)
    try:
        yield
    finally:
        unmount(mountpoint)


def unmount(mountpoint: str) -> None:
    """Unmount; a mount that is busy or gone already is not an error.

    Detached rather than refused when somebody's working directory is in it. Clones in containers
    are mounts of their own and stay.
    """
    try:
        syscalls.umount(mountpoint, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        # ENOTCONN: it is inside of another mount of ours, and that one is dead.
        if error.errno not in {errno.EINVAL, errno.ENOENT, errno.ENOTCONN}:
            raise


def prepare_mountpoint(mountpoint: str, *, make: bool) -> None:
    """Clear away the dead mount of a predecessor that was killed; ``make`` the directory, or not.

    Raises ``UsageError`` when there is no directory, ``SysfsdError`` when something alive is
    mounted there.
    """
    while True:
        try:
            # Not stat(2): the kernel knows a directory's attributes by heart, and answers for the
            # dead. This it asks each time.
            os.statvfs(mountpoint)
            break
        except FileNotFoundError:
            if not make:
                raise UsageError(
                    f"{mountpoint} is not there; make it first: mkdir {mountpoint}"
                ) from None
            os.makedirs(mountpoint, mode=0o755)
        except NotADirectoryError:
            break
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            syscalls.umount(mountpoint, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    if not os.path.isdir(mountpoint):
        raise UsageError(f"{mountpoint} is not a directory")
    there = mounts.mount_at(mounts.read_mounts(), os.path.realpath(mountpoint))
    if there is not None and there.fstype == FSTYPE:
        raise SysfsdError(
            f"another sysfsd is mounted at {mountpoint}; stop it, or choose another directory"
        )


@contextmanager
def socket_pair(max_in_flight: int) -> Iterator[tuple[socket.socket, int]]:
    """Yield the relay's end of a packet socket pair, and the descriptor for pyfuse3.

    The descriptor becomes libfuse's own (it closes it with the session). libfuse gives a reply up
    when it cannot be sent at once, and its caller would wait for ever: there is room for as many
    replies, of the largest size, as there can be requests.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        for end in (ours, theirs):
            end.setblocking(False)
            # The kernel doubles this, for what it needs itself (socket(7)).
            room = max_in_flight * packets.BUFFER_BYTES
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, room)
        yield ours, theirs.detach()
