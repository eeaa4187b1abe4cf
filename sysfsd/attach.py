"""Putting views into a container's mount namespace, and taking them away.

A view is a bind of one file over the kernel's file of the same name: of a file of the pinned
subtree, or of one that can do more (``binds``). Leaf files only: a FUSE *directory* over /proc/sys
is what makes today's runc refuse a procfs, and a leaf leaves everything else the kernel's. (Where a
name is to be added, its directory is covered as well, see ``additions``; and by one of ours, far
from what runtimes look at, where no other will do, see ``filesystem.interfaces``.) The
binds are made from outside the container's user namespace but in its own mount namespace, which
leaves them unlocked (mount_namespaces(7)): its root may unmount them and then sees the kernel's
file, and inner runtimes may still mount a procfs.

Both functions move *the whole process* into other mount namespaces for a moment, which the kernel
allows to a process with one thread only (setns(2)): the hook and the command line. They come back
before they return or raise. As long as we are in a container's, nothing may be imported, since
Python would look for the module in the container's files and run it as the host's root; so no
signal handler runs there, which might raise on the way back.

On the hook's path: standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import os

from sysfsd.additions import DEAD, extend, withdraw
from sysfsd.errors import Refused
from sysfsd.kernel import namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from typing import Any, TypeAlias

    from sysfsd.control.client import Client

    BindSource: TypeAlias = Mapping[str, Any]
    """An absolute ``directory``, the ``path`` of a file below it, and the file system that it must
    be on (``magic``, linux/magic.h)."""

    FileKey: TypeAlias = tuple[int, int]
    """``(st_dev, st_ino)``. A file of a cgroup has a number that none had before it (kernfs)."""
else:
    import _signal as signal  # without the enumerations on top, which take 6 ms

_FROM_CGROUP = "proc/pressure/"
"""The views that may be bound from a cgroup."""

_MAX_LAYERS = 64
"""So many mounts on top of each other are taken off one file. A running container may add more as
fast as we take them off, and no signal ends us while we are in there."""

_OURS = syscalls.FUSE_SUPER_MAGIC

_WORTH_LISTING = 3
"""So many names of one directory make a listing cheaper: its messages are larger, too."""

_KERNEL_FILE_SYSTEMS = {"proc": syscalls.PROC_SUPER_MAGIC, "sys": syscalls.SYSFS_MAGIC}


def attach_registered(
    client: Client, registered: Mapping[str, Any], *, init: int, rootfs: str = "/"
) -> list[str]:
    """`attach` as the daemon's answer to ``register`` says, or its successor's."""
    return client.with_daemon(
        lambda daemon, hello: attach(
            daemon=daemon,
            subtree=os.path.join(hello["mountpoint"], registered["directory"]),
            views=registered["views"],
            binds=registered.get("binds", {}),
            additions=registered.get("additions", ()),
            init=init,
            rootfs=rootfs,
        )
    )


def attach(
    *,
    daemon: int,
    subtree: str,
    views: Sequence[str],
    binds: Mapping[str, BindSource],
    additions: Iterable[str] = (),
    init: int,
    rootfs: str = "/",
) -> list[str]:
    """Bind ``views`` over a container's files and return the paths that were there to cover.

    Those that ``binds`` names get that file, if it is there; all others get theirs of ``subtree``.
    In the directories ``additions`` they need not be there.

    ``daemon`` and ``init`` are pidfds: of the daemon, in whose mount namespace ``subtree``
    (``/var/lib/sysfsd/containers/<id>``) is an absolute path and so are those in ``binds``, and of
    the container's init, in whose mount namespace ``rootfs`` is one. Before pivot_root(2) that is
    the bundle's root file system, later ``/``. A file that the container does not have is left out;
    one that is covered as it should be stays as it is.

    Raises ``Refused`` when a target is not what the kernel put there (a symlink, another file
    system), ``OSError`` when the kernel refuses.
    """
    trees, device, turn = _clone_views(daemon, subtree, views, binds)

    def work(root: int) -> list[str]:
        added = {extend(root, each, trees, _mark(subtree)) for each in additions}
        return [view for view, tree in trees.items() if _cover(root, view, tree, device, added)]

    try:
        return in_container(init, rootfs, work)
    finally:
        for tree in trees.values():
            os.close(tree)
        os.close(turn)


def detach(
    *,
    devices: Collection[int],
    subtree: str,
    views: Sequence[str],
    bound: Mapping[str, FileKey],
    additions: Iterable[str] = (),
    init: int,
) -> list[str]:
    """Uncover a running container's files and return the paths that were covered.

    ``devices`` are the ``st_dev`` of the daemon's own mounts, and ``bound`` says which files from
    elsewhere `attach` may have bound: nobody else's mount is touched.
    """

    def work(root: int) -> list[str]:
        gone: set[str] = set()
        for each in additions:
            gone.update(withdraw(root, each, views, devices, _mark(subtree)))
        return [
            view for view in views if _uncover(root, view, devices, bound.get(view)) or view in gone
        ]

    return in_container(init, "/", work)


def _mark(subtree: str) -> str:
    """What our own directories bear: where the daemon is mounted, which it is after a restart."""
    return os.path.dirname(os.path.dirname(subtree))


def _clone_views(
    daemon: int, subtree: str, views: Sequence[str], binds: Mapping[str, BindSource]
) -> tuple[dict[str, int], int, int]:
    """Return detached clones of the files to bind, and the ``st_dev`` of the subtree.

    And a descriptor that makes it our turn while it is open: two at once would both find a file not
    covered, and cover it twice.
    """
    # open_tree(2) clones only mounts of the caller's own mount namespace, and the daemon's may not
    # be ours: engines run with private ones, and so does a hook below sysfsd-runc.
    home = namespaces.open_namespace(os.getpid(), "mnt")
    trees: dict[str, int] = {}
    bases: dict[str, int] = {}
    try:
        syscalls.setns(daemon, syscalls.CLONE_NEWNS)
        # Each directory once: many files are in a few.
        magics = {source["directory"]: source["magic"] for source in binds.values()}
        for directory in {subtree, *magics}:
            how = os.O_RDONLY if directory == subtree else os.O_PATH  # flock(2) takes no O_PATH
            bases[directory] = fd = os.open(
                directory, how | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            if syscalls.filesystem_magic(fd) != magics.get(directory, syscalls.FUSE_SUPER_MAGIC):
                raise Refused(
                    f"{directory} is not what was mounted there: not attached; "
                    "restart the sysfsd daemon, so that it looks again"
                )
        fcntl.flock(bases[subtree], fcntl.LOCK_EX)
        device = os.fstat(bases[subtree]).st_dev
        _make_known(bases, subtree, views, binds)
        for view in views:
            tree = _clone_from_elsewhere(bases, binds[view]) if view in binds else None
            ours = tree is None
            trees[view] = tree = syscalls.open_tree(bases[subtree], view) if tree is None else tree
            # A clone stays in the peer group of its original, and a systemd host shares all it
            # mounts: what the container mounts over its view would be mounted on the host, too.
            # Ours read-only, because an ordinary container's root is the host's: it opens what
            # has no permission bits for it, too, and would be told so only when it writes.
            syscalls.make_private(tree, read_only=ours)
    except BaseException:
        for fd in (*trees.values(), *bases.values()):
            os.close(fd)
        bases.clear()
        raise
    finally:
        turn = bases.pop(subtree, -1)
        for fd in bases.values():
            os.close(fd)
        _come_back(home)
    return trees, device, turn


def _make_known(
    bases: Mapping[str, int], subtree: str, views: Sequence[str], binds: Mapping[str, BindSource]
) -> None:
    """Have the kernel learn the names of our files by the directory, not one by one.

    Listing a FUSE directory tells it about each entry what looking it up would (READDIRPLUS,
    ``fuse_direntplus_link`` in fs/fuse/readdir.c): a few messages to the daemon for a hundred.
    """
    # What is wanted of each directory; those above come before those below.
    wanted: dict[tuple[int, str], set[str]] = {}
    for view in views:
        source = binds.get(view)
        if source is None:
            base, path = bases[subtree], view
        elif source["magic"] == _OURS:
            base, path = bases[source["directory"]], source["path"]
        else:
            continue
        names = path.split("/")
        for depth, name in enumerate(names):
            wanted.setdefault((base, "/".join(names[:depth]) or "."), set()).add(name)
    for (base, path), children in wanted.items():
        if len(children) < _WORTH_LISTING:
            continue
        try:
            fd = os.open(
                path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base
            )
        except OSError:
            continue  # looking the files up will say what is the matter
        try:
            # Not to the end, which would be one more message.
            with os.scandir(fd) as entries:
                missing = set(children)
                for entry in entries:
                    missing.discard(entry.name)
                    if not missing:
                        break
        finally:
            os.close(fd)


def _clone_from_elsewhere(bases: Mapping[str, int], source: BindSource) -> int | None:
    """Clone a file; None if it is not there.

    A cgroup's counters may be switched off, and the process behind a mount may have ended.
    """
    base, path = bases[source["directory"]], source["path"]
    try:
        if source["magic"] == _OURS:
            return syscalls.open_tree(base, path)
        # Whoever a cgroup is delegated to names what is below: no way leads out of the hierarchy.
        found = syscalls.openat2(
            base,
            path,
            os.O_PATH,
            syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV,
        )
    except OSError as error:
        if error.errno in {errno.ENOENT, *syscalls.FUSE_GONE}:
            return None
        raise
    try:
        return syscalls.open_tree(found, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
    finally:
        os.close(found)


def in_container(init: int, rootfs: str, work: Callable[[int], list[str]]) -> list[str]:
    """Do something in a container's mount namespace, given a descriptor of its root.

    In its network namespace as well: what is below /proc/sys/net is found, and covered, for those
    who look from there (``fs/proc/proc_sysctl.c``).
    """
    home = namespaces.open_namespace(os.getpid(), "mnt")
    network = namespaces.open_namespace(os.getpid(), "net")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        syscalls.setns(init, syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET)
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return work(root)
        finally:
            os.close(root)
    finally:
        _come_back(home, network)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _come_back(*homes: int) -> None:
    # A handler's TimeoutError is an OSError, too: none may run before we are back.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    for home in homes:
        try:
            syscalls.setns(home, 0)
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


def _cover(
    root: int, view: str, tree: int, device: int, added: Collection[int | None] = ()
) -> bool:
    for _ in range(_MAX_LAYERS):
        target = _open_beneath(root, view)
        if target is None:
            return False
        try:
            found, wanted = os.fstat(target), os.fstat(tree)
            if found.st_dev == device or _key(found) == _key(wanted):
                return True
            # One of our other mounts, which were looked at: the same file of an earlier record.
            if found.st_dev == wanted.st_dev and _is_fuse(tree):
                return True
            magic = syscalls.filesystem_magic(target)
            if magic == syscalls.CGROUP2_SUPER_MAGIC and view.startswith(_FROM_CGROUP):
                # Of an earlier daemon, and of the cgroup that it knew the container to be in.
                syscalls.umount_at(root, view)
                continue
            kernels = magic == _KERNEL_FILE_SYSTEMS[view.partition("/")[0]]
            if not kernels and found.st_dev not in added:
                raise Refused(
                    f"/{view} of the container is not the kernel's file: not attached; "
                    "leave out the mount that covers it"
                )
            syscalls.move_mount(tree, target)
        except OSError as error:
            # What a daemon leaves that was killed, or a record: out of the way, and look again.
            if error.errno not in DEAD:
                raise
            syscalls.umount_at(root, view)
        else:
            return True
        finally:
            os.close(target)
    raise _too_many(view)


def _uncover(root: int, view: str, devices: Collection[int], bound: FileKey | None) -> bool:
    os.fchdir(root)
    covered = refused = False
    for _ in range(_MAX_LAYERS):
        try:
            found = os.stat(view, follow_symlinks=False)
            if found.st_dev not in devices and _key(found) != bound:
                return covered
        except FileNotFoundError:
            return covered
        except OSError as error:
            if error.errno not in DEAD:  # as above
                raise
        try:
            syscalls.umount_at(root, view)
        except OSError as error:
            # No mount any more, if somebody else was faster.
            if error.errno != errno.EINVAL or refused:
                raise
            refused = True
        else:
            refused = False
        covered = True
    raise _too_many(view)


def _is_fuse(fd: int) -> bool:
    return syscalls.filesystem_magic(fd) == syscalls.FUSE_SUPER_MAGIC


def _too_many(view: str) -> Refused:
    return Refused(
        f"/{view} of the container is covered more than {_MAX_LAYERS} times, or again and again by "
        "its processes: given up; stop the container"
    )


def _key(found: os.stat_result) -> FileKey:
    return found.st_dev, found.st_ino
