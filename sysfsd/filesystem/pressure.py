"""A directory of pressure files: each shows every caller its own pressure, and takes its triggers.

A mount of its own, in a process of its own (``sysfsd mount --pressure``), for two reasons. Only
open files of their own can have triggers, so OPEN must be answered, as the service does not. And
POLL must be, which has a price: the kernel asks again as the host goes to sleep, and if we sleep
by then, who polls cannot, and the host stays awake. So only pressure files are polled through us;
all others are the kernel's to answer (ENOSYS, once and for all).
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyfuse3

from sysfsd.errors import NoSuchView
from sysfsd.facts.placement import outermost, placement_of
from sysfsd.facts.pressure import own_cgroup, read_pressure
from sysfsd.filesystem import attributes
from sysfsd.filesystem.operations import Operations
from sysfsd.filesystem.snapshots import Opened
from sysfsd.filesystem.tree import ROOT_INODE
from sysfsd.filesystem.triggers import NO_TRIGGER
from sysfsd.kernel.cgroups import CgroupPaths, read_cgroup_paths
from sysfsd.views import pressure

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from sysfsd.filesystem.identity import Identity
    from sysfsd.filesystem.triggers import Trigger, Triggers
    from sysfsd.kernel.cgroups import CgroupTree
    from sysfsd.log import RateLimit

MAX_OPEN_FILES = 16384
"""Above this, open(2) gives ENFILE."""

MAX_OPEN_FILES_OF_ONE_OWNER = 1024
"""The same for a container with all that are in it."""

_MODE = 0o666
"""The kernel's /proc/pressure: everybody may set a trigger."""


@dataclass(frozen=True, slots=True)
class _OpenFile:
    data: bytes
    trigger: Trigger | None


class PressureOperations(Operations):
    """The file system: one directory, and a file for each resource."""

    def __init__(
        self,
        *,
        resources: Sequence[str],
        tree: CgroupTree,
        identity: Identity,
        triggers: Triggers,
        limit: RateLimit,
    ) -> None:
        super().__init__(limit)
        self._inodes = {name: inode for inode, name in enumerate(resources, ROOT_INODE + 1)}
        self._resources = {inode: name for name, inode in self._inodes.items()}
        self._tree = tree
        self._identity = identity
        self._triggers = triggers
        self._open: Opened[_OpenFile] = Opened(MAX_OPEN_FILES, MAX_OPEN_FILES_OF_ONE_OWNER)
        self._mounted_ns = time.time_ns()

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name in the directory."""
        inode = self._inodes.get(name.decode("ascii", "replace"))
        if parent_inode != ROOT_INODE or inode is None:
            raise NoSuchView("no such file")
        return await self.getattr(inode, ctx)

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Answer attributes; the size is that of the caller's file."""
        if inode == ROOT_INODE:
            return self._directory()
        resource = self._resource(inode)
        _, paths = await self._caller(ctx.pid)
        return self._file(inode, len(self._content(paths, resource)))

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Take a shell's ``>`` (truncate) for what it is in procfs: nothing."""
        others = (fields.update_mode, fields.update_uid, fields.update_gid)
        if not fields.update_size or any(others):
            raise pyfuse3.FUSEError(errno.EPERM)
        return await self.getattr(inode, ctx)

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open the caller's file; for writing, the kernel's own as well."""
        resource = self._resource(inode)
        owner, paths = await self._caller(ctx.pid)
        data, trigger = self._content(paths, resource), None
        if flags & os.O_ACCMODE != os.O_RDONLY:
            cgroup = own_cgroup(self._tree, paths)
            trigger = self._triggers.open(owner, cgroup, f"{resource}.pressure")
        handle = self._open.add(owner, _OpenFile(data, trigger))
        if handle is None:
            if trigger is not None:
                await self._triggers.close(trigger)
            raise pyfuse3.FUSEError(errno.ENFILE)
        return pyfuse3.FileInfo(fh=handle, direct_io=True, keep_cache=False)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read what was true on opening; of a file with a trigger, what is now."""
        file = self._of(fh)
        data = None if file.trigger is None else self._triggers.read(file.trigger)
        return (file.data if data is None else data)[off : off + size]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Set a trigger."""
        trigger = self._of(fh).trigger
        if trigger is None:
            raise pyfuse3.FUSEError(errno.EBADF)
        return await self._triggers.write(trigger, buf)

    async def poll(
        self,
        inode: int,
        fh: int,
        poll_handle: pyfuse3.PollHandle | None,
        ctx: pyfuse3.RequestContext,
    ) -> int:
        """Say whether the trigger has fired since it was last asked for."""
        trigger = self._of(fh).trigger
        return NO_TRIGGER if trigger is None else self._triggers.poll(trigger, poll_handle)

    async def release(self, fh: int) -> None:
        """Close it, and with it the trigger."""
        file = self._open.close(fh)
        if file is not None and file.trigger is not None:
            await self._triggers.close(file.trigger)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """There is but one."""
        return inode

    async def releasedir(self, fh: int) -> None:
        """Nothing to release."""

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List the directory. Sizes are not known here: this request does not say who asks."""
        files = list(self._inodes.items())
        begin = attributes.begin_listing(fh, start_id, token)
        if begin is None:
            return
        for position, (name, inode) in enumerate(files[begin:], attributes.after(begin)):
            if not pyfuse3.readdir_reply(token, name.encode(), self._file(inode, 0), position):
                break

    async def _caller(self, tid: int) -> tuple[Hashable, CgroupPaths]:
        """Whose files a caller's count as, and whose pressure it is shown.

        That of its container, registered or not, if it is in one.
        """
        if tid == 0:  # not in our pid namespace: nothing is known about it
            return None, CgroupPaths()
        container = await self._identity.container_of(tid)
        if container is not None:
            paths = await self._identity.cgroup_of(container)
            if paths is not None:
                return container, paths
        return outermost(read_cgroup_paths(tid)), placement_of(tid).cgroup

    def _content(self, paths: CgroupPaths, resource: str) -> bytes:
        return pressure.text(pressure.items(read_pressure(self._tree, paths, resource))).encode()

    def _of(self, fh: int) -> _OpenFile:
        file = self._open.get(fh)
        if file is None:
            raise pyfuse3.FUSEError(errno.EBADF)
        return file

    def _resource(self, inode: int) -> str:
        resource = self._resources.get(inode)
        if resource is None:
            raise NoSuchView("no such file")
        return resource

    def _directory(self) -> pyfuse3.EntryAttributes:
        return attributes.directory(
            ROOT_INODE,
            mode=0o555,
            changed_ns=self._mounted_ns,
        )

    @staticmethod
    def _file(inode: int, size: int) -> pyfuse3.EntryAttributes:
        return attributes.file(
            inode,
            size=size,
            changed_ns=time.time_ns(),
            mode=_MODE,
        )
