"""Files that the host has in ``/proc/sys/net`` and a network namespace lacks: put beside its own.

The kernel shows some settings to the host's network only, because they are everybody's
(``net/core/sysctl_net_core.c``, ``netns_core_table`` beside ``net_core_table``). A file can't be
bound where there is none, so its directory is covered: by a tmpfs with the names of both, over each
of which is the kernel's own file, or ours. Not by a FUSE directory: what the kernel has stays when
the daemon is gone, and nobody but the kernel is asked for it.

Like all that is below ``/proc/sys/net``, the covered directory is one of a network namespace
(``proc_sys_compare`` of ``fs/proc/proc_sysctl.c``): who is in another one sees the kernel's own
there. It is for directories only in which no names come and go (`sysctls.probe.ADDABLE`).

On the hook's path: standard library only.
"""

from __future__ import annotations

import errno
import os

from sysfsd.kernel import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

_MARK = "trusted.sysfsd"
"""An attribute of the directory: where its daemon is mounted. Only who is root on the host may set
one of these (xattr(7)), so that a container's own mount is never taken for ours."""

DEAD = syscalls.FUSE_GONE | {errno.ESTALE}
"""What a file of ours says whose daemon is gone, or whose container's record is."""

_FLAGS = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC


def extend(root: int, directory: str, trees: Mapping[str, int], mark: str) -> int | None:
    """Cover a directory of a container, if names are missing there; returns our ``st_dev``.

    ``trees`` are detached mounts of files by their paths: those below ``directory`` are put into
    it. ``root`` is the container's, in whose namespaces we are. None where there is nothing to do,
    or nothing that we understand. Raises ``OSError``.
    """
    ours = {view.rpartition("/")[2]: tree for view, tree in trees.items() if _in(view, directory)}
    top = _open_directory(root, directory)
    if top is None or not ours:
        return None
    kernels: dict[str, int] = {}
    try:
        magic = syscalls.filesystem_magic(top)
        if magic == syscalls.TMPFS_MAGIC and _mark_of(top) is not None:
            return os.fstat(top).st_dev
        if magic != syscalls.PROC_SUPER_MAGIC:
            return None  # whoever is to cover a file there says so
        with os.scandir(top) as entries:
            found = {each.name: each.is_file(follow_symlinks=False) for each in entries}
        if ours.keys() <= found.keys() or not all(found.values()):
            return None
        for name in found.keys() - ours.keys():
            kernels[name] = tree = syscalls.open_tree(top, name)
            syscalls.make_private(tree)
        return _cover(root, directory, top, {**kernels, **ours}, mark)
    finally:
        for fd in (top, *kernels.values()):
            os.close(fd)


def withdraw(
    root: int, directory: str, views: Iterable[str], devices: Collection[int], mark: str
) -> list[str]:
    """Uncover a directory, if it is one daemon's; returns those of ``views`` that were there.

    ``devices`` are the ``st_dev`` of that daemon's mounts. Raises ``OSError``.
    """
    top = _open_directory(root, directory)
    if top is None:
        return []
    try:
        if syscalls.filesystem_magic(top) != syscalls.TMPFS_MAGIC or _mark_of(top) != mark.encode():
            return []
        gone = [view for view in views if _in(view, directory) and _is_on(top, view, devices)]
    finally:
        os.close(top)
    syscalls.umount_at(root, directory)
    return gone


def _cover(root: int, directory: str, top: int, files: Mapping[str, int], mark: str) -> int | None:
    status = os.fstat(top)
    options = {"size": str(os.sysconf("SC_PAGE_SIZE")), "nr_inodes": str(len(files) + 8)}
    mount = syscalls.new_mount("tmpfs", options, _FLAGS)
    try:
        own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        try:
            for name in files:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400, dir_fd=own))
            try:
                os.setxattr(own, _MARK, mark.encode())
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:  # no CONFIG_TMPFS_XATTR
                    return None
                raise
            os.fchown(own, status.st_uid, status.st_gid)
            os.fchmod(own, status.st_mode & 0o7777)
            # Not the mount, which its root may change back: the file system is the host's.
            syscalls.reconfigure(own, "ro")
            device = os.fstat(own).st_dev
            try:
                # All at once, for those who look meanwhile: since Linux 6.15.
                _fill(own, files)
                filled = True
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                filled = False
            syscalls.move_mount(mount, top)
            if not filled:
                try:
                    _fill(own, files)
                except BaseException:
                    syscalls.umount_at(root, directory)
                    raise
        finally:
            os.close(own)
    finally:
        os.close(mount)
    return device


def _fill(own: int, files: Mapping[str, int]) -> None:
    for name, tree in files.items():
        target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=own)
        try:
            syscalls.move_mount(tree, target)
        finally:
            os.close(target)


def _open_directory(root: int, directory: str) -> int | None:
    try:
        return syscalls.openat2(
            root,
            directory,
            os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK,
            syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS,
        )
    except OSError as error:
        # Covering the files in it says what is wrong with the way there.
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, *DEAD}:
            return None
        raise


def _mark_of(top: int) -> bytes | None:
    try:
        return os.getxattr(top, _MARK)
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.EOPNOTSUPP}:
            return None
        raise


def _is_on(top: int, view: str, devices: Collection[int]) -> bool:
    try:
        name = view.rpartition("/")[2]
        return os.stat(name, dir_fd=top, follow_symlinks=False).st_dev in devices
    except OSError:  # the daemon's, and gone with it; or nothing
        return False


def _in(view: str, directory: str) -> bool:
    return view.rpartition("/")[0] == directory
