"""Taking everything back from containers without the daemon, when it is gone or about to go.

From what it left in its state directory (``documents``). Nobody may look at one of its files
meanwhile: there is no one who answers, and whoever asks waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from sysfsd.additions import withdraw
from sysfsd.attach import in_container
from sysfsd.channel.device import FSTYPE, mount_there, unmount
from sysfsd.children import in_children
from sysfsd.containers import saved
from sysfsd.documents import Documents
from sysfsd.kernel import mounts, namespaces, syscalls
from sysfsd.kernel.cgroups import UNIFIED
from sysfsd.kernel.procfs import is_running
from sysfsd.sysctls.probe import ADDABLE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sysfsd.containers.record import ContainerRecord
    from sysfsd.kernel.mounts import Mount

RECORDS = "records"
MOUNTS = "mounts"
"""Directories of documents in the state directory: of records, and of the daemon's own mounts."""

_PATIENCE_SECONDS = 15.0

_MAX_POINTS = 1 << 14
"""Places in one container; it has some two hundred unless it binds our files elsewhere."""


def take_left_views(state_dir: str, *, abort: bool = False) -> list[str]:
    """Take a daemon's views from all its containers, and its mounts; returns who kept some.

    Those read ENOTCONN once nobody holds the connection any more. With ``abort`` it ends at once:
    for when somebody has it who answers nothing. Records stay: a daemon that comes back gives the
    views again.
    """
    mounted = list(Documents(os.path.join(state_dir, MOUNTS)).all().values())
    devices = frozenset(str(each["device"]) for each in mounted)
    marks = [str(each["point"]) for each in mounted]
    if abort:
        _abort_all(devices)
    records = []
    for document in Documents(os.path.join(state_dir, RECORDS)).all().values():
        with contextlib.suppress(ValueError):  # the one that has the last serial
            records.append(saved.decode(document))
    left = in_children(
        [{"id": record.id, "record": record} for record in records],
        lambda each: _take(each["record"], devices, marks),
        _PATIENCE_SECONDS,
    )
    for each in mounted:
        there = mount_there(str(each["point"]))
        if there is not None and there.device in devices:
            if left:
                # Who still has files of ours would wait for ever, as long as somebody keeps the
                # connection (systemd's store): better an error.
                _abort_all([there.device])
            unmount(there.point)
    return left


def _abort_all(devices: Iterable[str]) -> None:
    """End connections, by the numbers of their file systems (fuse.rst, "Control filesystem")."""
    try:
        control = syscalls.new_mount("fusectl", {}, 0)  # of our own: not every host has one
    except OSError:  # something forbids it; what can be taken away is taken nevertheless
        return
    try:
        for device in devices:
            path = f"{device.rpartition(':')[2]}/abort"
            with contextlib.suppress(OSError):  # it has ended
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=control)
                try:
                    os.write(fd, b"1")
                finally:
                    os.close(fd)
    finally:
        os.close(control)


def _is_ours(mount: Mount, devices: Collection[str]) -> bool:
    """By number and type: the numbers of file systems that are gone become others'."""
    return mount.device in devices and mount.fstype == FSTYPE


def _take(record: ContainerRecord, devices: Collection[str], marks: Collection[str]) -> None:
    init = os.pidfd_open(record.pid)
    try:
        if is_running(record.pid, record.start_ticks) and namespaces.pidfd_alive(init):
            uncover_all(devices=devices, marks=marks, cgroup=record.cgroup.get(UNIFIED), init=init)
    finally:
        os.close(init)


def _mounts_below(own: int) -> Iterator[Mount]:
    """Mounts of the namespace and the root that we are in now (proc_mounts_open).

    ``own`` is a descriptor of our directory in /proc.
    """
    fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=own)
    with open(fd, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for line in file:
            yield from mounts.parse_mountinfo([line])


def uncover_all(
    *, devices: Collection[str], marks: Collection[str], cgroup: str | None, init: int
) -> list[str]:
    """Uncover whatever file systems of ours cover in a container, and return the paths.

    ``devices`` are their numbers as in a mount table, ``major:minor``, and ``marks`` those of our
    ``additions``; the pressure files of the cgroup are ours as well, see ``binds``. What somebody
    else mounted over a file of ours stays, and so does what is below that. ``init`` is a pidfd.
    """

    def is_ours(mount: Mount) -> bool:
        name = mount.point.removeprefix("/proc/pressure/")
        bound = cgroup is not None and mount.root == f"{cgroup.rstrip('/')}/{name}.pressure"
        return _is_ours(mount, devices) or (mount.fstype == "cgroup2" and bound)

    own = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def uncover(root: int) -> list[str]:
        # Of the mount namespace and the root that we are in when it is opened (proc_mounts_open).
        for directory in ADDABLE:
            for mark in marks:
                withdraw(root, directory, (), (), mark)
        # Line by line, and twice: a container has as many mounts as it likes, with long names.
        points: set[str] = set()
        for mount in _mounts_below(own):
            if len(points) < _MAX_POINTS and is_ours(mount):
                points.add(mount.point)
        layers: dict[str, list[bool]] = {}
        for mount in _mounts_below(own):
            if mount.point in points:
                layers.setdefault(mount.point, []).append(is_ours(mount))
        uncovered = []
        for point, there in layers.items():
            while there and there.pop():
                try:
                    syscalls.umount_at(root, point.lstrip("/"))
                except OSError as error:
                    # Below a mount of the container's own.
                    if error.errno not in {errno.EINVAL, errno.ENOENT, errno.ENOTDIR}:
                        raise
                    break
                uncovered.append(point)
        return uncovered

    try:
        return in_container(init, "/", uncover)
    finally:
        os.close(own)
