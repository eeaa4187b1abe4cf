"""System calls that Python's ``os`` does not offer, one small function each.

Every function raises ``OSError`` with the call's name and, where there is one, the path. Numbers
and constants are the kernel's own (``include/uapi/linux/*.h``); system calls newer than 5.2 carry
the same number on every architecture (``scripts/syscall.tbl``). File descriptors that these
functions return are close-on-exec.

On the hook's path: standard library only, and ``ctypes`` is the heaviest import.
"""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FUSE_GONE = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
"""What a FUSE file system says whose other end nobody holds any more (``fuse_get_req``,
``FUSE_ABORT_ERROR``)."""

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x00000001
MOUNT_ATTR_NOSUID = 0x00000002
MOUNT_ATTR_NODEV = 0x00000004
MOUNT_ATTR_NOEXEC = 0x00000008
MOUNT_ATTR_IDMAP = 0x00100000
_FSPICK_CLOEXEC = 0x01
_FSPICK_EMPTY_PATH = 0x08
_FSOPEN_CLOEXEC = 0x01
_FSMOUNT_CLOEXEC = 0x01
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSCONFIG_CMD_RECONFIGURE = 7

# linux/fcntl.h
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/securebits.h, linux/prctl.h
PR_SET_DUMPABLE = 4
PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2

# linux/magic.h
CGROUP_SUPER_MAGIC = 0x27E0EB
CGROUP2_SUPER_MAGIC = 0x63677270
PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
FUSE_SUPER_MAGIC = 0x65735546
OVERLAYFS_SUPER_MAGIC = 0x794C7630
TMPFS_MAGIC = 0x01021994

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_FSPICK = 433
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

_OPENAT2_TRIES = 128

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_mount = _libc.mount
_mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_umount2 = _libc.umount2
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_setns = _libc.setns
_setns.argtypes = (ctypes.c_int, ctypes.c_int)
_unshare = _libc.unshare
_unshare.argtypes = (ctypes.c_int,)
_setfsuid = _libc.setfsuid
_setfsuid.argtypes = (ctypes.c_uint32,)
_setfsgid = _libc.setfsgid
_setfsgid.argtypes = (ctypes.c_uint32,)
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_personality = _libc.personality
_personality.argtypes = (ctypes.c_ulong,)
_fstatfs = _libc.fstatfs64
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)

# struct statfs64 is 120 bytes at most on Linux; f_type is its first word everywhere.
_STATFS_BYTES = 256


class _MountAttr(ctypes.Structure):
    """``struct mount_attr``, linux/mount.h, its first published version (32 bytes)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    """``struct open_how``, linux/openat2.h."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _fail(call: str, path: str | None = None) -> OSError:
    number = ctypes.get_errno()
    text = f"{call}: {os.strerror(number)}"
    return OSError(number, text, path) if path is not None else OSError(number, text)


def _syscall(number: int, *args: object) -> int:
    """``syscall(2)``, again for as long as a signal interrupts it."""
    call: Callable[..., int] = _libc.syscall
    while True:
        result = call(ctypes.c_long(number), *args)
        if result >= 0 or ctypes.get_errno() != errno.EINTR:
            return result


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None) -> None:
    """mount(2)."""
    if (
        _mount(
            os.fsencode(source),
            os.fsencode(target),
            None if fstype is None else fstype.encode(),
            flags,
            None if data is None else os.fsencode(data),
        )
        < 0
    ):
        raise _fail("mount", target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    if _umount2(os.fsencode(target), flags) < 0:
        raise _fail("umount2", target)


def umount_at(root: int, path: str) -> None:
    """Take off the topmost mount at a path below a directory, into which we change.

    By its path, because umount2(2) knows no descriptors. Whoever exchanges the path meanwhile, in a
    container, loses a mount of its own.
    """
    os.fchdir(root)
    umount(path, MNT_DETACH | UMOUNT_NOFOLLOW)


def open_tree(dirfd: int, path: str, flags: int = OPEN_TREE_CLONE) -> int:
    """open_tree(2): with ``OPEN_TREE_CLONE`` a detached copy of the mount at ``path``."""
    fd = _syscall(
        _SYS_OPEN_TREE,
        ctypes.c_int(dirfd),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(flags | OPEN_TREE_CLOEXEC),
    )
    if fd < 0:
        raise _fail("open_tree", path)
    return fd


def move_mount(tree: int, target: int) -> None:
    """move_mount(2) from one descriptor onto another: no path is looked up again."""
    if (
        _syscall(
            _SYS_MOVE_MOUNT,
            ctypes.c_int(tree),
            ctypes.c_char_p(b""),
            ctypes.c_int(target),
            ctypes.c_char_p(b""),
            ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH),
        )
        < 0
    ):
        raise _fail("move_mount")


def idmap_mount(tree: int, userns: int, *, recursive: bool) -> None:
    """mount_setattr(2) with ``MOUNT_ATTR_IDMAP`` on a detached tree.

    Raises ``OSError`` EINVAL where the file system cannot be idmapped (overlay, procfs, FUSE
    without it), EPERM where it is idmapped already.
    """
    attr = _MountAttr(attr_set=MOUNT_ATTR_IDMAP, userns_fd=userns)
    _mount_setattr(tree, attr, AT_RECURSIVE if recursive else 0)


def make_private(tree: int, *, read_only: bool = False) -> None:
    """mount_setattr(2) with ``MS_PRIVATE`` on a detached tree of one mount."""
    attr = _MountAttr(attr_set=MOUNT_ATTR_RDONLY if read_only else 0, propagation=MS_PRIVATE)
    _mount_setattr(tree, attr, 0)


def _mount_setattr(tree: int, attr: _MountAttr, flags: int) -> None:
    if (
        _syscall(
            _SYS_MOUNT_SETATTR,
            ctypes.c_int(tree),
            ctypes.c_char_p(b""),
            ctypes.c_uint(AT_EMPTY_PATH | flags),
            ctypes.byref(attr),
            ctypes.c_size_t(ctypes.sizeof(attr)),
        )
        < 0
    ):
        raise _fail("mount_setattr")


def new_mount(fstype: str, options: Mapping[str, str], attributes: int) -> int:
    """Make a file system and a detached mount of it: fsopen(2), fsconfig(2) and fsmount(2)."""
    context = _syscall(
        _SYS_FSOPEN, ctypes.c_char_p(fstype.encode()), ctypes.c_uint(_FSOPEN_CLOEXEC)
    )
    if context < 0:
        raise _fail("fsopen")
    try:
        for name, value in {"source": "sysfsd", **options}.items():
            _fsconfig(context, _FSCONFIG_SET_STRING, name, value)
        _fsconfig(context, _FSCONFIG_CMD_CREATE)
        mount = _syscall(
            _SYS_FSMOUNT,
            ctypes.c_int(context),
            ctypes.c_uint(_FSMOUNT_CLOEXEC),
            ctypes.c_uint(attributes),
        )
        if mount < 0:
            raise _fail("fsmount")
        return mount
    finally:
        os.close(context)


def reconfigure(root: int, *flags: str) -> None:
    """Reconfigure the superblock of the mount whose root is ``root``; perhaps changing nothing.

    fspick(2) and fsconfig(2). The kernel first drops every cached name of that superblock that is
    not in use (reconfigure_super in fs/super.c). Waits for as long as somebody syncs that
    superblock. Raises ``OSError`` EINVAL where ``root`` is not the root of its mount, EPERM where
    the superblock is another user namespace's.
    """
    context = _syscall(
        _SYS_FSPICK,
        ctypes.c_int(root),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_FSPICK_EMPTY_PATH | _FSPICK_CLOEXEC),
    )
    if context < 0:
        raise _fail("fspick")
    try:
        for flag in flags:
            _fsconfig(context, _FSCONFIG_SET_FLAG, flag)
        _fsconfig(context, _FSCONFIG_CMD_RECONFIGURE)
    finally:
        os.close(context)


def _fsconfig(context: int, command: int, key: str | None = None, value: str | None = None) -> None:
    if (
        _syscall(
            _SYS_FSCONFIG,
            ctypes.c_int(context),
            ctypes.c_uint(command),
            None if key is None else ctypes.c_char_p(key.encode()),
            None if value is None else ctypes.c_char_p(value.encode()),
            ctypes.c_int(0),
        )
        < 0
    ):
        raise _fail("fsconfig")


def openat2(dirfd: int, path: str, flags: int, resolve: int) -> int:
    """openat2(2): the only way to say how a path may be resolved."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, resolve=resolve)
    for _ in range(_OPENAT2_TRIES):
        fd = _syscall(
            _SYS_OPENAT2,
            ctypes.c_int(dirfd),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        # Something was renamed anywhere while ".." was followed within a root: try again.
        if fd >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
    if fd < 0:
        raise _fail("openat2", path)
    return fd


def setns(fd: int, kinds: int) -> None:
    """setns(2); ``fd`` is a namespace or, with one or more ``CLONE_NEW*`` kinds, a pidfd."""
    if _setns(fd, kinds) < 0:
        raise _fail("setns")


def unshare(kinds: int) -> None:
    """unshare(2)."""
    if _unshare(kinds) < 0:
        raise _fail("unshare")


def set_fs_ids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2) of this thread, checked, capabilities kept.

    Without ``SECBIT_NO_SETUID_FIXUP`` leaving fsuid 0 drops the file capabilities that mounting
    and creating files need (capabilities(7)).
    """
    bits = prctl(PR_GET_SECUREBITS)
    if not bits & SECBIT_NO_SETUID_FIXUP:
        prctl(PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP)
    try:
        # Both calls answer the former id and never fail aloud; a second call tells.
        _setfsgid(gid)
        _setfsuid(uid)
        if _setfsgid(0xFFFFFFFF) != gid or _setfsuid(0xFFFFFFFF) != uid:
            raise OSError(errno.EPERM, "setfsuid: the ids were not taken")
    finally:
        prctl(PR_SET_SECUREBITS, bits)


def prctl(option: int, value: int = 0) -> int:
    """prctl(2)."""
    result: int = _prctl(option, value, 0, 0, 0)
    if result < 0:
        raise _fail("prctl")
    return result


def personality(value: int) -> int:
    """personality(2) of this thread: set it and return the former one; 0xffffffff only asks."""
    result: int = _personality(value)
    if result < 0:
        raise _fail("personality")
    return result


def filesystem_magic(fd: int) -> int:
    """``f_type`` of fstatfs(2): what kind of file system ``fd`` is on (linux/magic.h)."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _fstatfs(fd, buffer) < 0:
        raise _fail("fstatfs")
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
