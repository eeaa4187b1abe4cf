"""``sysfsd serve``: a subtree for each container, ``containers/<id>/proc/...``.

Whose view it is, is in the inode. So the kernel may keep the pages of each file, and opening one
sends no message at all (OPEN is answered with ENOSYS once): as long as attributes have not expired,
reading a file again does not even wake us.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pyfuse3

from sysfsd.errors import NoSuchContainer, NoSuchView
from sysfsd.filesystem import attributes
from sysfsd.filesystem.attributes import HOST_ROOT, Owner
from sysfsd.filesystem.operations import STATIC_TIMEOUT, Operations
from sysfsd.filesystem.snapshots import PinnedSnapshots
from sysfsd.filesystem.tree import (
    CONTAINERS_INODE,
    MOUNT_SERIAL,
    ROOT_INODE,
    ROOT_NODE,
    inode_of,
    parts_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sysfsd.containers.record import ContainerRecord
    from sysfsd.containers.registry import Registry
    from sysfsd.facts.collector import FactsCollector
    from sysfsd.filesystem.rendering import Renderer
    from sysfsd.filesystem.tree import Members, Node, Tree
    from sysfsd.log import RateLimit

MEMBER_SECONDS = 0.5
"""For so long the kernel may believe in ``cpu3`` after a container has lost it."""


class PinnedOperations(Operations):
    """The file system of the service. To be used behind a relay that puts nodes in handles."""

    def __init__(
        self,
        *,
        tree: Tree,
        registry: Registry,
        collector: FactsCollector,
        renderer: Renderer,
        limit: RateLimit,
    ) -> None:
        super().__init__(limit)
        self._tree = tree
        self._registry = registry
        self._collector = collector
        self._renderer = renderer
        self.snapshots = PinnedSnapshots()

    def forget_container(self, record: ContainerRecord) -> None:
        """Drop what is kept for a container that is gone."""
        self.snapshots.forget(record.serial)

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name in a directory."""
        if parent_inode == ROOT_INODE:
            if name != b"containers":
                raise NoSuchView("only containers is here")
            return self._attributes(CONTAINERS_INODE)
        if parent_inode == CONTAINERS_INODE:
            # Not ESTALE: the name itself is what does not exist.
            record = self._registry.find(name.decode("ascii", "replace"))
            if record is None:
                raise NoSuchView("no such container")
            return self._attributes(inode_of(record.serial, ROOT_NODE))
        record, node = self._resolve(parent_inode)
        child = self._tree.child(node, name, self._members_of(record))
        return self._attributes(inode_of(record.serial, child))

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Answer attributes; for a file this is where it is refreshed."""
        return self._attributes(inode)

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """Say where a link points to."""
        return self.target_of(self._resolve(inode)[1])

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Ask the kernel never to ask again (FUSE_NO_OPEN_SUPPORT)."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """The same for directories (FUSE_NO_OPENDIR_SUPPORT)."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read; the relay has put the inode where the file handle goes."""
        record, node = self._resolve(fh)
        if node.view is None:
            raise pyfuse3.FUSEError(errno.EISDIR)
        snapshot = self.snapshots.last(record.serial, node.number, self._renderer_of(record, node))
        return snapshot.read(off, size)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory, again by inode."""
        entries = self._children(fh)
        for position, (name, inode) in enumerate(entries[start_id:], start_id + 1):
            try:
                entry = self._attributes(inode)
            except (NoSuchContainer, NoSuchView):  # gone since the list was made
                continue
            if not pyfuse3.readdir_reply(token, name, entry, position):
                break

    def _children(self, inode: int) -> list[tuple[bytes, int]]:
        if inode == ROOT_INODE:
            return [(b"containers", CONTAINERS_INODE)]
        if inode == CONTAINERS_INODE:
            return [
                (record.id.encode(), inode_of(record.serial, ROOT_NODE))
                for record in self._registry.records()
            ]
        record, node = self._resolve(inode)
        children = self._tree.children(node, self._members_of(record))
        return [(name, inode_of(record.serial, child)) for name, child in children]

    def _resolve(self, inode: int) -> tuple[ContainerRecord, Node]:
        serial, number = parts_of(inode)
        record = self._registry.by_serial(serial)
        if record is None:
            raise NoSuchContainer("the container is gone")
        node = self._tree.node(number)
        if node is None:
            raise NoSuchView("no such node")
        return record, node

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        if parts_of(inode).serial == MOUNT_SERIAL:
            return self._mount_attributes(inode)
        record, node = self._resolve(inode)
        if not self._tree.exists(node, self._members_of(record)):
            raise NoSuchView(f"no {node.path} any more")
        owner = Owner(record.uid_base, record.gid_base)
        if node.link is not None:
            return attributes.link(
                inode,
                target=node.link,
                owner=owner,
                changed_ns=record.registered_ns,
                entry_timeout=MEMBER_SECONDS,
                attr_timeout=STATIC_TIMEOUT,
            )
        if node.view is None and not node.lists:
            return attributes.directory(
                inode,
                mode=0o555,
                owner=owner,
                changed_ns=record.registered_ns,
                # The names of containers come back for others; what is below has the serial. A
                # member's name may go at any time, and all below it with it.
                entry_timeout=(
                    0
                    if node.number == ROOT_NODE
                    else MEMBER_SECONDS
                    if node.listed
                    else STATIC_TIMEOUT
                ),
                attr_timeout=STATIC_TIMEOUT,
            )
        snapshot, lifetime = self.snapshots.refresh(
            record.serial, node.number, self._renderer_of(record, node)
        )
        if node.view is None:
            return attributes.directory(
                inode,
                mode=0o555,
                owner=owner,
                changed_ns=snapshot.changed_ns,
                entry_timeout=MEMBER_SECONDS if node.listed else STATIC_TIMEOUT,
                attr_timeout=lifetime,
            )
        return attributes.file(
            inode,
            size=len(snapshot.data),
            mode=node.view.mode,
            owner=owner,
            changed_ns=snapshot.changed_ns,
            entry_timeout=STATIC_TIMEOUT,
            attr_timeout=lifetime,
        )

    def _members_of(self, record: ContainerRecord) -> Members:
        return self._tree.members_by(lambda: self._collector.facts(record))

    def _mount_attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        if inode not in {ROOT_INODE, CONTAINERS_INODE}:
            raise NoSuchView("no such node")
        return attributes.directory(
            inode,
            # Other users of the host have no business in the containers' numbers.
            mode=0o755 if inode == ROOT_INODE else 0o700,
            owner=HOST_ROOT,
            # The kernel keeps listings of directories until this changes.
            changed_ns=self._registry.changed_ns,
            entry_timeout=STATIC_TIMEOUT,
            attr_timeout=0 if inode == CONTAINERS_INODE else STATIC_TIMEOUT,
        )

    def _renderer_of(self, record: ContainerRecord, node: Node) -> Callable[[], tuple[bytes, int]]:
        """How to make the content of a file, or what stands for that of a directory: its names."""

        def render() -> tuple[bytes, int]:
            facts = self._collector.facts(record)
            if node.view is None:
                members = self._tree.members_by(lambda: facts)
                names = [name for name, _ in self._tree.children(node, members)]
                return b"\n".join(names), facts.current_until
            data = self._renderer.render(node.view, lambda: facts, record.id)
            return data, facts.current_until

        return render
