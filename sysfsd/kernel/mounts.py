"""The mount table, and mounts whose owners are shifted.

On the hook's path: standard library only.
"""

from __future__ import annotations

import errno
import os

from sysfsd.kernel import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Mount:
    """One line of ``/proc/<pid>/mountinfo`` (proc_pid_mountinfo(5)).

    ``root`` is the directory of the file system that is mounted, ``point`` where; both decoded.
    ``options`` are the file system's own, still encoded, because a comma inside a value is.
    ``device`` is the file system's ``st_dev``, as ``major:minor``, and ``number`` the mount's own.
    """

    __slots__ = ("device", "fstype", "number", "options", "point", "root")

    def __init__(
        self,
        root: str,
        point: str,
        fstype: str,
        options: str,
        device: str = "",
        number: int = 0,
    ) -> None:
        self.device = device
        self.number = number
        self.root = root
        self.point = point
        self.fstype = fstype
        self.options = options


def decode(text: str) -> str:
    r"""Undo the octal escapes (``\040`` for a space) of the kernel's mount tables."""
    if "\\" not in text:
        return text
    import re  # noqa: PLC0415 - 8 ms, and hardly any mount has such a name

    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def parse_mountinfo(lines: Iterable[str]) -> list[Mount]:
    """Parse a mount table, in its order: of two mounts at one place the later is on top."""
    mounts = []
    for line in lines:
        # By spaces and nothing else: the kernel escapes the characters that it separates by
        # (show_mountinfo), and a user with fusermount may have all others in a mount point.
        fields = line.rstrip("\n").split(" ")
        separator = fields.index("-", 6)
        mounts.append(
            Mount(
                root=decode(fields[3]),
                point=decode(fields[4]),
                fstype=fields[separator + 1],
                options=fields[separator + 3] if len(fields) > separator + 3 else "",
                device=fields[2],
                number=int(fields[0]),
            )
        )
    return mounts


def read_mounts(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """Read our own mount namespace's table."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return parse_mountinfo(file)


def mount_at(mounts: list[Mount], path: str) -> Mount | None:
    """The topmost mount exactly at ``path``."""
    return next((mount for mount in reversed(mounts) if mount.point == path), None)


def device_of_root(pid: int, root: int) -> str:
    """The ``st_dev``, as ``major:minor``, of the file system that a descriptor is on.

    Asks the kernel's mount table of a process, in whose mount namespace it is, and not the file
    system, which may be one that never answers. Raises ``OSError``; ``ValueError`` if the mount is
    not in the table.
    """
    with open(f"/proc/self/fdinfo/{root}", encoding="ascii") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                number = line.split()[1]
                return _device_of_mount(pid, number)
    raise ValueError(f"descriptor {root} has no mount")


def _device_of_mount(pid: int, number: str) -> str:
    # A container has as many mounts as it likes (fs.mount-max): the table is not parsed for one.
    with open(f"/proc/{pid}/mountinfo", "rb") as table:
        for entry in table:
            fields = entry.split(b" ", 3)
            if fields[0] == number.encode():
                return fields[2].decode()
    raise ValueError(f"process {pid} has no mount {number}")


def parse_overlay(options: str) -> tuple[list[str], dict[str, str]]:
    r"""Split an overlay's options into its lower layers, topmost first, and all the others.

    Flags without a value get ``""``. A colon inside a layer's name comes as ``\\:``
    (Documentation/filesystems/overlayfs.rst, "Multiple lower layers").
    """
    lowers: list[str] = []
    others: dict[str, str] = {}
    for option in options.split(","):
        name, _, value = option.partition("=")
        if name in {"lowerdir", "lowerdir+"}:
            layers = _split_layers(decode(value)) if name == "lowerdir" else [decode(value)]
            lowers += [layer.replace("\\:", ":").replace("\\\\", "\\") for layer in layers]
        elif name:
            others[name] = decode(value)
    return lowers, others


def _split_layers(text: str) -> list[str]:
    if "\\" not in text:
        return text.split(":")
    import re  # noqa: PLC0415 - as above

    return re.split(r"(?<!\\):", text)


def make_private_namespace() -> None:
    """Leave the host's mount namespace: what we mount from here on, nobody else sees.

    Slave, not private: an unmount on the host still reaches us, so that we keep nothing busy.
    Raises ``OSError`` when threads share our file system state.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE, None)


def clone_idmapped(path: str, userns: int, *, recursive: bool) -> int | None:
    """Clone the mount at ``path``, detached, with owners shifted into a user namespace.

    On disk an id stays what it is; through the clone, disk id *n* is the namespace's id *n*.
    With ``recursive`` the mounts below come along, each shifted if it can be. ``None`` when the
    file system cannot be idmapped (EINVAL), or is idmapped already (EPERM, mount_setattr(2)).
    """
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    tree = syscalls.open_tree(syscalls.AT_FDCWD, path, flags)
    try:
        # All of the tree in one go, or, if some mount below cannot follow, at least its top.
        for whole in (True, False) if recursive else (False,):
            try:
                syscalls.idmap_mount(tree, userns, recursive=whole)
            except OSError as error:
                if error.errno not in {errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP}:
                    raise
            else:
                return tree
    except BaseException:
        os.close(tree)
        raise
    os.close(tree)
    return None


def place(tree: int, target: str) -> None:
    """Put a detached tree at ``target``, a directory or file of our own, and close it."""
    try:
        point = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            syscalls.move_mount(tree, point)
        finally:
            os.close(point)
    finally:
        os.close(tree)


def user_namespace(uid_map: str, gid_map: str) -> int:
    """Make a user namespace with these maps and return its descriptor.

    An idmapped mount takes its mapping from a user namespace (mount_setattr(2)); one lives only
    as long as a process or a descriptor, so a child makes it and ends. The maps are written by us:
    the child has no right to map ids that are not its own (user_namespaces(7)).
    """
    hear, say = os.pipe2(os.O_CLOEXEC)
    hold, let_go = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.close(let_go)
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(say, b"x")
            os.read(hold, 1)  # until our parent closes its end, on purpose or by ending
        finally:
            os._exit(0)
    os.close(say)
    os.close(hold)
    try:
        if os.read(hear, 1) != b"x":
            raise OSError(
                errno.EPERM, "no user namespace can be made here: see user.max_user_namespaces"
            )
        for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
            with open(f"/proc/{child}/{name}", "w", encoding="ascii") as file:
                file.write(text)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(hear)
        os.close(let_go)
        os.waitpid(child, 0)
