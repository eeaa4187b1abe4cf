"""Putting views into a container's mount namespace, and taking them away.

A view is a bind of one file of the pinned subtree over the kernel's file of the same name. Leaf
files only: a FUSE *directory* over /proc/sys is what makes today's runc refuse a procfs, and a leaf
leaves everything else the kernel's. The binds are made from outside the container's user namespace
but in its own mount namespace, which leaves them unlocked (mount_namespaces(7)): its root may
unmount them and then sees the kernel's file, and inner runtimes may still mount a procfs.

Both functions move *the whole process* into other mount namespaces for a moment, which the kernel
allows to a process with one thread only (setns(2)): the hook and the command line. They come back
before they return or raise. As long as we are in a container's, nothing may be imported, since
Python would look for the module in the container's files and run it as the host's root; so no
signal handler runs there, which might raise on the way back.

On the hook's path: standard library only.
"""

from __future__ import annotations

import errno
import os
import signal

from sysfsd.errors import Refused
from sysfsd.kernel import namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_KERNEL_FILE_SYSTEMS = {"proc": syscalls.PROC_SUPER_MAGIC, "sys": syscalls.SYSFS_MAGIC}


def attach(
    *, daemon: int, subtree: str, views: Sequence[str], init: int, rootfs: str = "/"
) -> list[str]:
    """Bind ``views`` over a container's files and return the paths that were there to cover.

    ``daemon`` and ``init`` are pidfds: of the daemon, in whose mount namespace ``subtree``
    (``/var/lib/sysfsd/containers/<id>``) is an absolute path, and of the container's init, in whose
    mount namespace ``rootfs`` is one. Before pivot_root(2) that is the bundle's root file system,
    later ``/``. A file that the container does not have is left out; one that is covered by this
    very daemon stays as it is.

    Raises ``Refused`` when a target is not what the kernel put there (a symlink, another file
    system), ``OSError`` when the kernel refuses.
    """
    trees = _clone_views(daemon, subtree, views)
    try:
        return _in_container(
            init,
            rootfs,
            lambda root: [view for view, tree in trees.items() if _cover(root, view, tree)],
        )
    finally:
        for tree in trees.values():
            os.close(tree)


def detach(*, device: int, views: Sequence[str], init: int) -> list[str]:
    """Uncover a running container's files and return the paths that were covered.

    ``device`` is the ``st_dev`` of the daemon's file system: nobody else's mount is touched.
    """
    return _in_container(
        init, "/", lambda root: [view for view in views if _uncover(root, view, device)]
    )


def _clone_views(daemon: int, subtree: str, views: Sequence[str]) -> dict[str, int]:
    # open_tree(2) clones only mounts of the caller's own mount namespace, and the daemon's may not
    # be ours: engines run with private ones, and so does a hook below sysfsd-runc.
    home = namespaces.open_namespace(os.getpid(), "mnt")
    trees: dict[str, int] = {}
    try:
        syscalls.setns(daemon, syscalls.CLONE_NEWNS)
        base = os.open(subtree, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for view in views:
                tree = trees[view] = syscalls.open_tree(base, view)
                # A clone stays in the peer group of its original, and a systemd host shares all it
                # mounts: what the container mounts over its view would be mounted on the host, too.
                # Read-only, because an ordinary container's root is the host's: it opens what has
                # no permission bits for it, too, and would be told so only when it writes.
                syscalls.make_private(tree, read_only=True)
        finally:
            os.close(base)
    except BaseException:
        for tree in trees.values():
            os.close(tree)
        raise
    finally:
        _come_back(home)
    return trees


def _in_container(init: int, rootfs: str, work: Callable[[int], list[str]]) -> list[str]:
    """Do something in a container's mount namespace, given a descriptor of its root."""
    home = namespaces.open_namespace(os.getpid(), "mnt")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        syscalls.setns(init, syscalls.CLONE_NEWNS)
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return work(root)
        finally:
            os.close(root)
    finally:
        _come_back(home)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _come_back(home: int) -> None:
    # A handler's TimeoutError is an OSError, too: none may run before we are back.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        syscalls.setns(home, syscalls.CLONE_NEWNS)
    except OSError:
        os._exit(1)  # better no message than one that is made of a container's files
    os.close(home)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _open_beneath(root: int, view: str) -> int | None:
    """Open a container's file without following anything that its image may have put there."""
    try:
        return syscalls.openat2(
            root,
            view,
            os.O_PATH,
            syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS,
        )
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return None
        if error.errno == errno.ELOOP:
            raise Refused(
                f"/{view} of the container goes through a symbolic link: not attached; "
                "remove the link from its image"
            ) from None
        raise


def _cover(root: int, view: str, tree: int) -> bool:
    while (target := _open_beneath(root, view)) is not None:
        try:
            if os.fstat(target).st_dev == os.fstat(tree).st_dev:
                return True
            wanted = _KERNEL_FILE_SYSTEMS[view.partition("/")[0]]
            if syscalls.filesystem_magic(target) != wanted:
                raise Refused(
                    f"/{view} of the container is not the kernel's file: not attached; "
                    "leave out the mount that covers it"
                )
            syscalls.move_mount(tree, target)
        except OSError as error:
            # What a daemon leaves that was killed: out of the way, and look again.
            if error.errno != errno.ENOTCONN:
                raise
            os.fchdir(root)
            syscalls.umount(view, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        else:
            return True
        finally:
            os.close(target)
    return False


def _uncover(root: int, view: str, device: int) -> bool:
    os.fchdir(root)
    covered = False
    while True:
        try:
            if os.stat(view, follow_symlinks=False).st_dev != device:
                return covered
            # By its path, because umount2(2) knows no descriptors. Whoever exchanges the path
            # meanwhile is the container, and loses a mount of its own.
            syscalls.umount(view, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except FileNotFoundError:
            return covered
        covered = True
