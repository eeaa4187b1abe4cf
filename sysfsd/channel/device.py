"""The kernel's end: ``/dev/fuse``, the mount, and what a crashed predecessor left behind."""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.channel import packets
from sysfsd.errors import SysfsdError, UsageError
from sysfsd.kernel import mounts, syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sysfsd.handover.store import Store

FSTYPE = "fuse.sysfsd"
_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_SO_SNDBUFFORCE = 32


class Connection(NamedTuple):
    """One connection to the kernel: a descriptor of ``/dev/fuse``, non-blocking, and its mount."""

    device: int
    mountpoint: str
    resumed: bool
    """Another process began it."""


@contextmanager
def mounted(mountpoint: str, *, make: bool) -> Iterator[Connection]:
    """Mount at a directory, and unmount on leaving; ``make`` the directory, or not.

    Raises ``OSError``, and what `prepare_mountpoint` does.
    """
    with _mounted_anew(mountpoint, make=make) as connection:
        try:
            yield connection
        finally:
            unmount(mountpoint)


@contextmanager
def taken_over(store: Store, name: str, mountpoint: str) -> Iterator[Connection]:
    """Go on with a predecessor's mount at a directory, or mount anew; leave it to a successor.

    Raises as `mounted` does.
    """
    device = store.take(name)
    if device is not None:
        if _is_served_by(device, mountpoint):
            try:
                yield Connection(device, mountpoint, resumed=True)
            finally:
                os.close(device)
            return
        os.close(device)
        store.drop(name)
    with _mounted_anew(mountpoint, make=True) as connection:
        store.keep(name, connection.device)
        yield connection


@contextmanager
def _mounted_anew(mountpoint: str, *, make: bool) -> Iterator[Connection]:
    """Mount without fusermount: we are root, and its AppArmor profile is one thing less in the way.

    ``allow_other`` lets callers of any uid and user namespace in, ``default_permissions`` has the
    kernel check owners and modes.
    """
    prepare_mountpoint(mountpoint, make=make)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        syscalls.mount("sysfsd", mountpoint, FSTYPE, _FLAGS, options)
        yield Connection(device, mountpoint, resumed=False)
    finally:
        os.close(device)


def _is_served_by(device: int, mountpoint: str) -> bool:
    """Whether a connection still stands and its mount is where it was.

    Nothing of the mount is looked at but the mount table: nobody would answer yet.
    """
    poller = select.poll()
    poller.register(device, select.POLLIN)
    # A connection that has ended says POLLERR (fuse_dev_poll).
    if any(events & select.POLLERR for _, events in poller.poll(0)):
        return False
    return mount_there(mountpoint) is not None


def mount_there(mountpoint: str) -> mounts.Mount | None:
    """What is mounted there; None if that is nothing of ours."""
    there = mounts.mount_at(mounts.read_mounts(), _real(mountpoint))
    return there if there is not None and there.fstype == FSTYPE else None


def _real(mountpoint: str) -> str:
    """Resolve all links on the way, without lstat(2) on what is there: it may not answer."""
    directory, name = os.path.split(mountpoint)
    path = os.path.join(os.path.realpath(directory), name)
    try:
        return os.path.realpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    except OSError:  # no link
        return path


def unmount(mountpoint: str) -> None:
    """Unmount; a mount that is busy or gone already is not an error.

    Detached rather than refused when somebody's working directory is in it. Clones in containers
    are mounts of their own and stay.
    """
    try:
        syscalls.umount(mountpoint, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        # ENOTCONN: it is inside of another mount of ours, and that one is dead.
        if error.errno not in {errno.EINVAL, errno.ENOENT, *syscalls.FUSE_GONE}:
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
            if error.errno not in syscalls.FUSE_GONE:
                raise
            syscalls.umount(mountpoint, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    if not os.path.isdir(mountpoint):
        raise UsageError(f"{mountpoint} is not a directory")
    if mount_there(mountpoint) is not None:
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
