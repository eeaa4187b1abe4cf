"""Giving a container's cgroups to its root, so that an inner engine can divide them further.

What delegation is, is the kernel's definition (Documentation/admin-guide/cgroup-v2.rst, "Model of
Delegation"): the directory and the files that move processes, never the files that carry limits.
Those stay the host's, so the limits can't be raised from inside.

The pressure files of cgroup v2 are given as well. Writing there sets no limit: it asks to be woken
when tasks wait too long, for as long as the file is open, and one trigger an open file. The same
is allowed to everybody in /proc/pressure, and to the container's root in each cgroup that it makes
itself; this is the one in between. (psi_trigger_create asks whether the opener has CAP_SYS_RESOURCE
in whichever user namespace, so root of any may set windows below 2 s, for which the kernel runs a
real-time thread a cgroup. It may in those other files, too: nothing is gained here.)

On the hook's path: standard library only.
"""

from __future__ import annotations

import errno
import os

from sysfsd.kernel import mounts, namespaces, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGICS = frozenset({syscalls.CGROUP_SUPER_MAGIC, syscalls.CGROUP2_SUPER_MAGIC})

V1_FILES = ("cgroup.procs", "tasks")
"""cgroup v1 knows no list of its own; these are its two files that move processes."""

V2_FILES_LIST = "/sys/kernel/cgroup/delegate"
"""Where the kernel (4.15 and later) names the delegatable files, one a line."""


PRESSURE_FILES = ("cpu.pressure", "memory.pressure", "io.pressure", "irq.pressure")


def delegate(pid: int, pidfd: int) -> list[str]:
    """Chown the cgroups of a container's init to its root and return their directories.

    Raises ``ProcessLookupError`` when the process behind ``pidfd`` is gone: what was read about
    ``pid`` may then have been somebody else's.

    Only a cgroup that holds nothing but this process is given away: a runtime may have left init
    in a hierarchy's root, or in a cgroup that it shares with others.
    """
    uid, gid = namespaces.container_root(pid)
    if uid == 0:
        return []
    cgroups = list(cgroups_of(pid))
    if not namespaces.pidfd_alive(pidfd):
        raise ProcessLookupError(errno.ESRCH, f"the container's process {pid} is gone")
    given = []
    for directory, files in cgroups:
        try:
            base = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if syscalls.filesystem_magic(base) in _MAGICS and _processes(base) == [pid]:
                _chown(base, files, uid, gid)
                given.append(directory)
        finally:
            os.close(base)
    return given


def cgroups_of(pid: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Directory of each of a process's cgroups, hierarchy roots left out, and what to give."""
    with open(
        f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n"
    ) as file:
        paths = dict(_controllers_and_path(line.rstrip("\n")) for line in file)
    for mount in mounts.read_mounts():
        if mount.root != "/" or mount.fstype not in {"cgroup", "cgroup2"}:
            continue
        path = next(
            (path for names, path in paths.items() if _same_hierarchy(mount, names)),
            "/",
        )
        if path != "/" and ".." not in path.split("/"):
            files = V1_FILES if mount.fstype == "cgroup" else (*_v2_files(), *PRESSURE_FILES)
            yield mount.point + path, files


def _controllers_and_path(line: str) -> tuple[frozenset[str], str]:
    _, names, path = line.split(":", 2)
    return frozenset(names.split(",")) if names else frozenset(), path


def _same_hierarchy(mount: mounts.Mount, names: frozenset[str]) -> bool:
    """Whether a mount shows the hierarchy with these controllers (none: cgroup v2's)."""
    if mount.fstype == "cgroup2":
        return not names
    return bool(names) and names <= set(mount.options.split(","))


def _v2_files() -> tuple[str, ...]:
    try:
        with open(V2_FILES_LIST, encoding="ascii") as file:
            return tuple(file.read().split())
    except FileNotFoundError:
        return ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")


def _processes(base: int) -> list[int]:
    fd = os.open("cgroup.procs", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
    with open(fd, encoding="ascii") as file:
        return [int(line) for line in file]


def _chown(base: int, files: tuple[str, ...], uid: int, gid: int) -> None:
    os.chown(base, uid, gid)
    for name in files:
        try:
            os.chown(name, uid, gid, dir_fd=base, follow_symlinks=False)
        except OSError as error:
            # A v2 file of a controller that is not enabled here, or that this kernel has not.
            if error.errno != errno.ENOENT:
                raise
