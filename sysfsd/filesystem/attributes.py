"""What stat(2) says about our files and directories.

They are the host's root's, and the kernel may keep nothing of them, unless somebody says otherwise.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

import pyfuse3


class Owner(NamedTuple):
    """Host ids of a container's root, so that inside its user namespace files look root's."""

    uid: int
    gid: int


HOST_ROOT = Owner(0, 0)

EXACT_BYTES = 4096
"""The size of an exact file, like most of sysfs: what it has is known when it is read."""

_LEAST_BLOCK = 4096
_LARGEST_BLOCK = 128 << 10
"""As much as one READ of ours answers."""


def directory(
    inode: int,
    *,
    mode: int,
    changed_ns: int,
    owner: Owner = HOST_ROOT,
    entry_timeout: float = 0,
    attr_timeout: float = 0,
    links: int = 2,
) -> pyfuse3.EntryAttributes:
    """Attributes of a directory."""
    entry = _entry(inode, stat.S_IFDIR | mode, owner, changed_ns)
    entry.st_nlink = links
    entry.entry_timeout, entry.attr_timeout = entry_timeout, attr_timeout
    return entry


FIRST = (b".", b"..")
"""What any listing of a directory begins with."""


def begin_listing(inode: int, start: int, token: pyfuse3.ReaddirToken) -> int | None:
    """List the `FIRST`, but for those before ``start``; returns which of its own comes next.

    Its own follow those, so that the one at ``index`` has the position ``after(index)``. None if
    there is no more room.

    Programs pass over them, and some over the first two names, whatever they are (procps' sysctl).
    The kernel takes nothing from these entries but that they are directories
    (``fuse_direntplus_link``).
    """
    entry = directory(inode, mode=0o555, changed_ns=0)
    for position, name in enumerate(FIRST[start:], start + 1):
        if not pyfuse3.readdir_reply(token, name, entry, position):
            return None
    return max(start - len(FIRST), 0)


def after(index: int) -> int:
    """Where a listing goes on after the directory's own entry of that index."""
    return len(FIRST) + index + 1


def file(
    inode: int,
    *,
    size: int,
    mode: int,
    changed_ns: int,
    owner: Owner = HOST_ROOT,
    entry_timeout: float = 0,
    attr_timeout: float = 0,
) -> pyfuse3.EntryAttributes:
    """Attributes of a view's file. The size is real, or sendfile(2) would copy nothing."""
    entry = _entry(inode, stat.S_IFREG | mode, owner, changed_ns)
    entry.st_size = size
    # stdio reads in pieces of this size: the whole file, so that it is of one moment.
    entry.st_blksize = min(max(_LEAST_BLOCK, 1 << size.bit_length()), _LARGEST_BLOCK)
    entry.entry_timeout, entry.attr_timeout = entry_timeout, attr_timeout
    return entry


def link(
    inode: int,
    *,
    target: str,
    changed_ns: int,
    owner: Owner = HOST_ROOT,
    entry_timeout: float = 0,
    attr_timeout: float = 0,
) -> pyfuse3.EntryAttributes:
    """Attributes of a symbolic link."""
    entry = _entry(inode, stat.S_IFLNK | 0o777, owner, changed_ns)
    entry.st_size = len(target)
    entry.entry_timeout, entry.attr_timeout = entry_timeout, attr_timeout
    return entry


def _entry(inode: int, mode: int, owner: Owner, changed_ns: int) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode
    entry.st_mode = mode
    entry.st_nlink = 1
    entry.st_uid, entry.st_gid = owner
    entry.st_blksize = 4096
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = changed_ns
    return entry
