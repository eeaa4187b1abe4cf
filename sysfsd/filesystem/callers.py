"""``sysfsd mount``: the same files show every caller its own view.

Who asks decides what is in a file, so the kernel may keep nothing of that: files are read with
direct_io, and READ, which does not say who reads, is answered from what OPEN rendered. An open file
that is passed on keeps its opener's view. What the kernel may keep are the names, and the
directories, that are there for everybody, and attributes: for that the size is nobody's own, as
with most of sysfs, but whole pages that hold whatever anybody is shown: sendfile(2) cuts off the
rest.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, NamedTuple

import pyfuse3

from sysfsd.channel import packets
from sysfsd.channel.packets import Opcode
from sysfsd.errors import NoSuchView
from sysfsd.facts.placement import outermost
from sysfsd.filesystem import attributes
from sysfsd.filesystem.operations import STATIC_TIMEOUT, Operations
from sysfsd.filesystem.snapshots import Opened, Recent
from sysfsd.filesystem.tree import MOUNT_SERIAL, ROOT_INODE, anybody, inode_of, members_in, parts_of
from sysfsd.kernel.cgroups import CgroupPaths, read_cgroup_paths
from sysfsd.kernel.procfs import read_text

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from sysfsd.facts.callers import Caller
    from sysfsd.facts.collector import FactsCollector
    from sysfsd.filesystem.identity import Identity
    from sysfsd.filesystem.rendering import Renderer
    from sysfsd.filesystem.tree import Members, Node, Tree
    from sysfsd.log import RateLimit
    from sysfsd.views import View

MAX_OPEN = 1 << 16
"""Above this, open(2) gives ENFILE: 256 MB, in units of `UNIT_BYTES`. A snapshot has a few kB."""

MAX_OPEN_OF_ONE_OWNER = MAX_OPEN // 16
"""The same for a container with all that are in it."""

_ENTRY_BYTES = 128
"""About so many an entry of a directory takes."""

_PAGE = 4096
_ATTRIBUTES_SECONDS = 1.0
"""For how long the kernel may believe in a size that was too small; by reading it sees no end."""

RECENT_SECONDS = 0.05
MAX_RECENT = 1024

_NAMESPACES = ("cgroup", "pid", "user")


class _Marks(NamedTuple):
    """What tells a caller apart: who has the same ones is shown the same."""

    cgroup: str
    """Its /proc/<pid>/cgroup."""
    namespaces: tuple[str, ...]
    domain: int | None
    """Its execution domain, where that makes a difference."""


class _Asking(NamedTuple):
    """Who asks, for as long as the request lasts: it waits for us, and is still that thread."""

    tid: int
    """0 if it is not in our pid namespace: nothing is known about it."""
    marks: _Marks | None
    """None where they can't be read: some are only for those who may trace it."""


class CallersOperations(Operations):
    """The file system of ``sysfsd mount``."""

    def __init__(
        self,
        *,
        tree: Tree,
        identity: Identity,
        collector: FactsCollector,
        renderer: Renderer,
        limit: RateLimit,
    ) -> None:
        super().__init__(limit)
        self._tree = tree
        self._identity = identity
        self._collector = collector
        self._renderer = renderer
        self._open: Opened[bytes] = Opened(MAX_OPEN, MAX_OPEN_OF_ONE_OWNER)
        self._listings: Opened[tuple[tuple[bytes, int], ...]] = Opened(
            MAX_OPEN, MAX_OPEN_OF_ONE_OWNER
        )
        self._opened: Recent[bytes] = Recent(RECENT_SECONDS, MAX_RECENT)
        self._looked_at: Recent[bytes] = Recent(RECENT_SECONDS, MAX_RECENT)
        # By their marks. Telling who a caller is takes ten times as long as reading those.
        self._callers: Recent[Caller] = Recent(RECENT_SECONDS, MAX_RECENT)
        self._containers: Recent[str] = Recent(RECENT_SECONDS, MAX_RECENT)
        self._owners: Recent[CgroupPaths] = Recent(RECENT_SECONDS, MAX_RECENT)
        self._sizes: dict[str, int] = {}
        self._mounted_ns = time.time_ns()

    def answer(self, opcode: int, packet: memoryview, its_turn: bool) -> bytes | None:
        """Answer READ and RELEASE without a detour (`channel.relay`): all is known since OPEN.

        And OPEN itself when it has its turn, if nobody has to be asked for it.
        """
        if opcode == Opcode.READ:
            read = packets.parse_read(packet)
            data = self._open.get(read.handle)
            return None if data is None else data[read.offset : read.offset + read.size]
        if opcode == Opcode.RELEASE and self._open.close(packets.parse_handle(packet)) is not None:
            return b""
        if opcode == Opcode.OPEN and its_turn:
            try:
                return self._open_at_once(packet)
            except Exception:  # noqa: BLE001 - `open` comes to the same, and says what is wrong
                return None
        return None

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name in a directory."""
        parent = self._node(parent_inode)
        members = await self._members(parent.lists, self._asking(ctx.pid))
        child = self._tree.child(parent, name, members)
        return await self.getattr(inode_of(MOUNT_SERIAL, child), ctx)

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Answer attributes; the size is no caller's."""
        node = self._node(inode)
        if node.listed is not None:
            members = await self._members((node.listed,), self._asking(ctx.pid))
            if not self._tree.exists(node, members):
                raise NoSuchView(f"the caller has no {node.path}")
        if node.link is not None:
            return self._link(inode, node.link)
        if node.view is None:
            return self._directory(inode, node)
        return self._file(inode, node)

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """Say where a link points to; it is the same for all who have it."""
        return self.target_of(self._node(inode))

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Render the caller's view, for as long as the file is open."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EACCES)
        node = self._node(inode)
        if node.view is None:
            raise pyfuse3.FUSEError(errno.EISDIR)
        asking = self._asking(ctx.pid)
        data = await self._content(node.view, asking, opening=True)
        handle = self._opened_with(node.view, asking, data)
        if handle is None:
            raise pyfuse3.FUSEError(errno.ENFILE)
        return pyfuse3.FileInfo(fh=handle, direct_io=True, keep_cache=False)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read what was rendered then."""
        data = self._open.get(fh)
        if data is None:
            raise pyfuse3.FUSEError(errno.EBADF)
        return data[off : off + size]

    async def release(self, fh: int) -> None:
        """Forget it."""
        self._open.close(fh)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """List what the caller has in a directory, for as long as that is open."""
        node = self._node(inode)
        asking = self._asking(ctx.pid)
        children = self._tree.children(node, await self._members(node.lists, asking))
        size = _ENTRY_BYTES * len(children)
        handle = self._listings.add(self._owner_of(asking), tuple(children), size)
        if handle is None:
            raise pyfuse3.FUSEError(errno.ENFILE)
        return handle

    async def releasedir(self, fh: int) -> None:
        """Forget it."""
        self._listings.close(fh)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory, as it was opened: this request does not say who asks."""
        children = self._listings.get(fh)
        if children is None:
            raise pyfuse3.FUSEError(errno.EBADF)
        begin = attributes.begin_listing(ROOT_INODE, start_id, token)
        if begin is None:
            return
        for position, (name, number) in enumerate(children[begin:], attributes.after(begin)):
            inode = inode_of(MOUNT_SERIAL, number)
            node = self._node(inode)
            if node.link is not None:
                entry = self._link(inode, node.link)
            elif node.view is None:
                entry = self._directory(inode, node)
            else:
                entry = self._file(inode, node)
            if not pyfuse3.readdir_reply(token, name, entry, position):
                break

    async def _members(self, lists: Sequence[str], asking: _Asking) -> Members:
        """Look the caller's members up, in the very files that list them for it."""
        found = {}
        for path in lists:
            view = self._tree.view(path, anybody)
            found[path] = members_in(await self._content(view, asking))
        return found.__getitem__

    async def _content(self, view: View, asking: _Asking, *, opening: bool = False) -> bytes:
        """A view for a caller, as it is or was a moment ago.

        What it was when somebody asked for its size is not what open(2) finds. A container's
        runtime does so in the container's cgroup while it binds files, before it sets the limits;
        the program that it becomes sizes itself by what it reads first.
        """
        if asking.tid == 0:
            return self._renderer.kernels_own(view)
        recent = self._recent(opening=opening)
        domain = self._collector.callers.domain_of(asking.tid)
        container, shown = self._container_of(asking), None
        if not container:
            container, shown = await self._identity.shown_to(asking.tid, view.path, domain)
            # That it has none is not kept: one may be registered any time, before its first program
            # opens a file.
            if container is not None and asking.marks is not None:
                self._containers.put(asking.marks, container)
        if container:
            key: Hashable = (container, domain, view.path)
            known = _first(recent, key)
            if known is not None:
                return known
            if shown is None:
                shown = await self._identity.view_of(container, view.path, domain)
            if shown is not None:
                return recent[-1].put(key, shown)
        return self._own(view, asking, opening=opening)

    def _open_at_once(self, packet: memoryview) -> bytes | None:
        """Answer OPEN, if nobody has to be asked for it."""
        node = self._node(packets.parse_request(packet).node)
        tid = packets.thread_of(packet)
        flags = packets.parse_open(packet)
        if node.view is None or tid == 0 or flags & os.O_ACCMODE != os.O_RDONLY:
            return None
        asking = self._asking(tid)
        container, data = self._container_of(asking), None
        if container:
            domain = self._collector.callers.domain_of(tid)
            data = self._opened.get((container, domain, node.view.path))
        elif self._identity.is_silent():
            data = self._own(node.view, asking, opening=True)
        handle = None if data is None else self._opened_with(node.view, asking, data)
        return None if handle is None else packets.opened(handle)

    def _opened_with(self, view: View, asking: _Asking, data: bytes) -> int | None:
        """Keep what an open file shows; returns its handle, or None if too much is open."""
        self._size_of(view, data)
        return self._open.add(self._owner_of(asking), data, len(data))

    def _container_of(self, asking: _Asking) -> str | None:
        """A caller's container, if that is known from a moment ago."""
        return None if asking.marks is None else self._containers.get(asking.marks)

    def _recent(self, *, opening: bool) -> Sequence[Recent[bytes]]:
        return (self._opened,) if opening else (self._opened, self._looked_at)

    def _own(self, view: View, asking: _Asking, *, opening: bool) -> bytes:
        """A view for a caller that belongs to no container that the daemon knows."""
        recent, caller = self._recent(opening=opening), self._caller(asking)
        key = (caller, view.path)
        known = _first(recent, key)
        if known is not None:
            return known
        data = self._renderer.render(
            view,
            lambda: self._collector.facts_of_caller(caller, opening=opening),
            f"caller {asking.tid}",
        )
        return recent[-1].put(key, data)

    def _asking(self, tid: int) -> _Asking:
        if tid == 0:
            return _Asking(tid, None)
        try:
            marks = _Marks(
                read_text(f"/proc/{tid}/cgroup"),
                tuple([os.readlink(f"/proc/{tid}/ns/{kind}") for kind in _NAMESPACES]),
                self._collector.callers.domain_of(tid),
            )
        except OSError:
            return _Asking(tid, None)
        return _Asking(tid, marks)

    def _caller(self, asking: _Asking) -> Caller:
        known = asking.marks and self._callers.get(asking.marks)
        if known:
            return known
        caller = self._collector.callers.identify(asking.tid)
        return caller if asking.marks is None else self._callers.put(asking.marks, caller)

    def _owner_of(self, asking: _Asking) -> Hashable:
        """Whose open files a caller's count as."""
        if asking.tid == 0:
            return None
        if asking.marks is None:
            return outermost(read_cgroup_paths(asking.tid))
        text = asking.marks.cgroup
        known = self._owners.get(text)
        if known is not None:
            return known
        return self._owners.put(text, outermost(CgroupPaths.parse(text)))

    def _node(self, inode: int) -> Node:
        serial, number = parts_of(inode)
        node = self._tree.node(number)
        if serial != MOUNT_SERIAL or node is None:
            raise NoSuchView("no such node")
        return node

    def _link(self, inode: int, target: str) -> pyfuse3.EntryAttributes:
        return attributes.link(
            inode,
            target=target,
            changed_ns=self._mounted_ns,
        )

    def _directory(self, inode: int, node: Node) -> pyfuse3.EntryAttributes:
        return attributes.directory(
            inode,
            mode=0o555,
            changed_ns=self._mounted_ns,
            entry_timeout=_name_seconds(node),
            attr_timeout=_name_seconds(node),
        )

    def _file(self, inode: int, node: Node) -> pyfuse3.EntryAttributes:
        assert node.view is not None
        return attributes.file(
            inode,
            size=self._size_of(node.view),
            mode=node.view.mode,
            changed_ns=self._mounted_ns,
            entry_timeout=_name_seconds(node),
            attr_timeout=_ATTRIBUTES_SECONDS if node.listed is None else 0,
        )

    def _size_of(self, view: View, data: bytes = b"") -> int:
        """Whole pages with room for what anybody was shown so far, and for the host's."""
        known = self._sizes.get(view.path)
        if known is None:
            try:
                known = len(self._renderer.kernels_own(view))
            except OSError:
                known = 0
        size = max(known, -(-max(len(data), known, 1) // _PAGE) * _PAGE)
        self._sizes[view.path] = size
        return size


def _name_seconds(node: Node) -> float:
    """For how long the kernel may believe in a name: not where one has it and another has not."""
    return STATIC_TIMEOUT if node.listed is None else 0


def _first(recent: Sequence[Recent[bytes]], key: Hashable) -> bytes | None:
    return next((data for each in recent if (data := each.get(key)) is not None), None)
