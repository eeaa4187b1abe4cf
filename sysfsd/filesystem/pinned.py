"""``sysfsd serve``: a subtree for each container, ``containers/<id>/proc/...``.

Whose view it is, is in the inode. So the kernel may keep the pages of each file, and opening one
sends no message at all (OPEN is answered with ENOSYS once): as long as attributes have not expired,
reading a file again does not even wake us.

The same tree has a second mount, behind the same relay, for the files that can be written. There
each open file is its own, and nothing is kept by the kernel: *exact*.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import pyfuse3

from sysfsd.channel import packets
from sysfsd.channel.packets import HANDLE, Opcode, handle_of
from sysfsd.errors import NoSuchContainer, NoSuchView
from sysfsd.filesystem import attributes
from sysfsd.filesystem.attributes import HOST_ROOT, Owner
from sysfsd.filesystem.operations import STATIC_TIMEOUT, Operations
from sysfsd.filesystem.pushing import Pushing
from sysfsd.filesystem.snapshots import Opened, PinnedSnapshots
from sysfsd.filesystem.tree import (
    CONTAINERS_INODE,
    EXACT,
    MOUNT_SERIAL,
    PASSED_ON,
    ROOT_INODE,
    ROOT_NODE,
    inode_of,
    parts_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sysfsd.containers.record import ContainerRecord
    from sysfsd.containers.registry import Registry
    from sysfsd.facts.collector import Facts, FactsCollector
    from sysfsd.facts.limits import LimitWatch
    from sysfsd.filesystem.interfaces import PassedOn
    from sysfsd.filesystem.rendering import Renderer
    from sysfsd.filesystem.snapshots import Snapshot
    from sysfsd.filesystem.tree import Members, Node, Tree
    from sysfsd.freshness import Freshness
    from sysfsd.log import RateLimit
    from sysfsd.sysctls.store import Store
    from sysfsd.views.view import Reserve

MAX_OPEN = 1 << 18
MAX_OPEN_OF_CONTAINER = 1 << 10
"""Exact files that are open at once, by its root and by all others; some 200 bytes each."""


_LISTED_AT_ONCE = 1024
"""More than there is room for in an answer."""

LAST_KNOWN_SECONDS = 1.0
"""For so long an answer from the last refresh holds, when the next one takes too long."""


def _invalidate_attributes(inode: int) -> None:
    pyfuse3.invalidate_inode(inode, attr_only=True)


@dataclass(slots=True)
class _Open:
    """An exact file that somebody has open."""

    inode: int
    elsewhere: bool
    """By somebody in another namespace than the container's; what that one has does not change."""
    data: bytes | None = None
    """What the last read from its start gave: the rest belongs to that."""


class PinnedOperations(Operations):
    """The file system of the service. To be used behind a relay that puts nodes in handles."""

    def __init__(
        self,
        *,
        tree: Tree,
        registry: Registry,
        collector: FactsCollector,
        renderer: Renderer,
        sysctls: Store,
        limit: RateLimit,
        life: int = 0,
        freshness: Freshness,
        limits: LimitWatch,
        passed_on: PassedOn,
        invalidate: Callable[[int], None] = _invalidate_attributes,
    ) -> None:
        """Make it; no two processes with the same mount have the same `life`."""
        super().__init__(limit)
        self._life = life
        self._freshness = freshness
        self._limits = limits
        self._known_limits: dict[int, dict[str, object]] = {}
        self.pushing = Pushing(invalidate)
        self._sysctls = sysctls
        self._passed_on = passed_on
        self._tree = tree
        self._registry = registry
        self._collector = collector
        self._renderer = renderer
        self.snapshots = PinnedSnapshots()
        self._opened: Opened[_Open] = Opened(MAX_OPEN, MAX_OPEN_OF_CONTAINER)

    def forget_container(self, record: ContainerRecord) -> None:
        """Drop what is kept for a container that is gone."""
        self.snapshots.forget(record.serial)
        self._limits.forget(record.serial)
        self._known_limits.pop(record.serial, None)

    def answer(self, opcode: int, packet: memoryview, its_turn: bool) -> bytes | None:
        """Answer what is asked most, without a detour (`Relay`).

        Before its turn, READ from the snapshot whose size the kernel knows, and RELEASE.
        """
        try:
            if opcode == Opcode.READ:
                read = packets.parse_read(packet)
                if read.handle & EXACT:
                    return self._read_at_once(read) if its_turn else None
                snapshot = self.snapshots.known(*parts_of(read.handle))
                return None if snapshot is None else snapshot.read(read.offset, read.size)
            if opcode == Opcode.RELEASE:
                self._opened.close(self._number_of(packets.parse_handle(packet)))
                return b""
            if opcode == Opcode.GETATTR and its_turn:
                request = packets.parse_request(packet)
                asking = packets.thread_of(packet), request.uid
                return packets.attributes(self._attributes(request.node, *asking))
            if opcode == Opcode.OPEN and its_turn:
                return self._open_at_once(packet)
        except Exception:  # noqa: BLE001 - the handler comes to the same, and says what is wrong
            return None
        return None

    def last_known(self, packet: bytes | bytearray) -> bytes | None:
        """Answer a request from the last refresh, if that can be done (`channel.standin`).

        In another thread, while nothing else can be asked for.
        """
        request = packets.parse_request(packet)
        serial, number = parts_of(request.node)
        if request.node & EXACT or request.opcode not in {Opcode.READ, Opcode.GETATTR}:
            return None
        record, node = self._registry.by_serial(serial), self._tree.node(number)
        if record is None or node is None or node.view is None:
            return None
        if request.opcode == Opcode.READ:
            read, known = packets.parse_read(packet), self.snapshots.known(serial, number)
            return None if known is None else known.read(read.offset, read.size)
        prolonged = self.snapshots.prolong(serial, number, LAST_KNOWN_SECONDS)
        if prolonged is None:
            return None
        return packets.attributes(_attributes_of(request.node, record, node.view.mode, *prolonged))

    def distrust(self, record: ContainerRecord) -> None:
        """Have the kernel ask anew for what a predecessor told it of a container."""
        members = self._members_of(record)
        numbers = [ROOT_NODE]
        for number in numbers:
            node = self._tree.node(number)
            if node is not None and node.is_directory:
                with suppress(OSError):  # it is about to go
                    numbers += [child for _, child in self._tree.children(node, members)]
        self.pushing.push(inode_of(record.serial, number) for number in numbers)

    def limits_written(self, serial: int) -> None:
        """Look at a container's limits anew, and pass it on at once if they are others."""
        record = self._registry.by_serial(serial)
        if record is None:
            return
        self._collector.expire(record)
        facts = self._collector.facts(record)
        with suppress(OSError):  # it is about to go
            assert facts.cpu.visible.value
            assert facts.memory.total.value
        self._compare(record, facts)

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name in a directory."""
        mount, parent = parent_inode & EXACT, parent_inode & ~EXACT
        if parent == ROOT_INODE:
            if name != b"containers":
                raise NoSuchView("only containers is here")
            return self._attributes(mount | CONTAINERS_INODE)
        if parent == CONTAINERS_INODE:
            # Not ESTALE: the name itself is what does not exist.
            record = self._registry.find(name.decode("ascii", "replace"))
            if record is None:
                raise NoSuchView("no such container")
            return self._attributes(mount | inode_of(record.serial, ROOT_NODE))
        return self._attributes(await self._child(parent_inode, name))

    async def _child(self, parent: int, name: bytes) -> int:
        if not self._is_passed_on(parent):
            record, node = self._resolve(parent)
            try:
                child = self._tree.child(node, name, self._members_of(record))
            except NoSuchView:
                if not self._is_top(parent):
                    raise
            else:
                return parent & EXACT | inode_of(record.serial, child)
        record, number = self._located(parent)
        child = await self._passed_on.child(record, number, name)
        return EXACT | inode_of(record.serial, child)

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Answer attributes; for a file this is where it is refreshed."""
        return self._attributes(inode, ctx.pid, ctx.uid)

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """Say where a link points to."""
        return self.target_of(self._resolve(inode)[1])

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Ask the kernel never to ask again (FUSE_NO_OPEN_SUPPORT), but for exact files.

        Those keep nothing in the page cache (FOPEN_DIRECT_IO): what one process writes goes there
        first, as it is, for others to read.
        """
        if not inode & EXACT:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        handle = self._open(inode, flags, ctx.pid, ctx.uid)
        return pyfuse3.FileInfo(fh=handle, direct_io=True)

    def _open(self, inode: int, flags: int, pid: int, uid: int) -> int:
        record, _ = self._located(inode)
        elsewhere = None
        writing, may_write = flags & os.O_ACCMODE != os.O_RDONLY, True
        if self._is_passed_on(inode):
            may_write = not writing or self._sysctls.may_administer(record, pid)
        elif (sysctl := self._resolve(inode)[1].sysctl) is not None:
            # Nothing is kept for a namespace inside, and the kernel lets its root write nothing.
            elsewhere = self._sysctls.elsewhere(record, sysctl, pid)
            may_write = elsewhere is None
        if writing and not may_write:
            raise pyfuse3.FUSEError(errno.EACCES)
        # Users inside can't keep the container's root from opening any.
        owner = record.serial, uid == record.uid_base
        handle = self._opened.add(owner, _Open(inode, elsewhere is not None, elsewhere))
        if handle is None:
            raise pyfuse3.FUSEError(errno.EMFILE)
        return EXACT | handle_of(self._life, handle)

    def _open_at_once(self, packet: memoryview) -> bytes | None:
        """Answer OPEN in the exact mount; pyfuse3 says ENOSYS in the other."""
        request = packets.parse_request(packet)
        if not request.node & EXACT:
            return None
        flags, pid = packets.parse_open(packet), packets.thread_of(packet)
        return packets.opened(self._open(request.node, flags, pid, request.uid))

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """The same for directories (FUSE_NO_OPENDIR_SUPPORT)."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read; the relay has put the inode where the file handle goes, but for exact files."""
        if fh & EXACT:
            opened = self._opened_by(fh)
            if self._is_passed_on(opened.inode) and (opened.data is None or off == 0):
                opened.data = await self._passed_on.read(*self._located(opened.inode))
                return opened.data[off : off + size]
            return self._read_exact(packets.Read(fh, off, size))
        record, node = self._resolve(fh)
        if node.is_directory:
            raise pyfuse3.FUSEError(errno.EISDIR)
        snapshot = self.snapshots.last(
            record.serial, node.number, self._renderer_of(record, node), _reserve_of(node)
        )
        return snapshot.read(off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write to a sysctl, whose mode and owner the kernel has looked at; see `read`.

        Files of views are 0444, but root's capabilities get it past open(2).
        """
        opened = self._opened_by(fh) if fh & EXACT else None
        if opened is not None and self._is_passed_on(opened.inode):
            return await self._passed_on.write(*self._located(opened.inode), buf, off)
        record, node = self._resolve(fh if opened is None else opened.inode)
        if opened is None or node.sysctl is None:
            raise pyfuse3.FUSEError(errno.EACCES)
        return self._sysctls.write(record, node.sysctl, buf, off)

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Let a sysctl be truncated (the shell's ``>``) and touched, which changes nothing.

        Neither owner nor mode: EPERM, as ``proc_sys_setattr`` has it.
        """
        touchable = self._is_passed_on(inode) or self._is_top(inode)
        if inode & EXACT and parts_of(inode).serial != MOUNT_SERIAL and not touchable:
            touchable = self._resolve(inode)[1].sysctl is not None
        if not touchable or fields.update_mode or fields.update_uid or fields.update_gid:
            self.refuse_change(fields)
        return self._attributes(inode)

    def refuse_name(self, directory: int) -> NoReturn:
        """Say no, as ``/proc/sys`` does: what is not there can't be made (``proc_sys_lookup``)."""
        raise pyfuse3.FUSEError(errno.ENOENT if directory & EXACT else errno.EPERM)

    def refuse_removal(self, directory: int) -> NoReturn:
        """Say no, as it does: its directories are 0555 for root, too (``proc_sys_permission``)."""
        raise pyfuse3.FUSEError(errno.EACCES if directory & EXACT else errno.EPERM)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory, again by inode."""
        begin = attributes.begin_listing(fh, start_id, token)
        if begin is None:
            return
        found = [(name, fh & EXACT | inode) for name, inode in self._children(fh)]
        entries = found[begin : begin + _LISTED_AT_ONCE]
        if self._is_top(fh) or self._is_passed_on(fh):
            record, number = self._located(fh)
            passed_on = await self._passed_on.children(record, number, anew=start_id == 0)
            skipped = max(begin - len(found), 0)
            entries += [
                (name, EXACT | inode_of(record.serial, child))
                for name, child in passed_on[skipped : skipped + _LISTED_AT_ONCE]
            ]
        for position, (name, inode) in enumerate(entries, attributes.after(begin)):
            try:
                entry = self._attributes(inode)
            except (NoSuchContainer, NoSuchView):  # gone since the list was made
                continue
            if not pyfuse3.readdir_reply(token, name, entry, position):
                break

    def _number_of(self, fh: int) -> int:
        """The number of an open exact file; 0, which none has, if it was opened in another life."""
        return fh ^ (EXACT | handle_of(self._life, 0)) if fh & HANDLE else 0

    def _opened_by(self, fh: int) -> _Open:
        """What is open; by the number of a node if it was opened in another life.

        Whoever was elsewhere could open it for reading only, and reads what the container's own
        processes do from then on.
        """
        opened = self._opened.get(self._number_of(fh)) if fh & HANDLE else _Open(fh, False)
        if opened is None:
            raise pyfuse3.FUSEError(errno.EBADF)
        return opened

    def _read_at_once(self, read: packets.Read) -> bytes | None:
        """Read, if nobody has to be asked in another thread."""
        passed_on = self._is_passed_on(self._opened_by(read.handle).inode)
        return None if passed_on else self._read_exact(read)

    def _read_exact(self, read: packets.Read) -> bytes:
        opened = self._opened_by(read.handle)
        if opened.data is None or (read.offset == 0 and not opened.elsewhere):
            record, node = self._resolve(opened.inode)
            opened.data, _ = self._renderer_of(record, node)()
        return opened.data[read.offset : read.offset + read.size]

    def _children(self, inode: int) -> list[tuple[bytes, int]]:
        if self._is_passed_on(inode):
            return []
        inode &= ~EXACT
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

    def _is_passed_on(self, inode: int) -> bool:
        """Whether it is below a directory that is: no node of the tree."""
        return bool(inode & EXACT and parts_of(inode).node & PASSED_ON)

    def _is_top(self, inode: int) -> bool:
        """Whether it is such a directory: what the tree has not in it may be the kernel's."""
        return bool(inode & EXACT) and self._passed_on.is_top(parts_of(inode).node)

    def _located(self, inode: int) -> tuple[ContainerRecord, int]:
        """Whose it is, and its number, whether or not that is a node's."""
        serial, number = parts_of(inode)
        record = self._registry.by_serial(serial)
        if record is None:
            raise NoSuchContainer("the container is gone")
        return record, number

    def _resolve(self, inode: int) -> tuple[ContainerRecord, Node]:
        record, number = self._located(inode)
        node = self._tree.node(number)
        if node is None:
            raise NoSuchView("no such node")
        return record, node

    def _attributes(self, inode: int, thread: int = 0, uid: int = 0) -> pyfuse3.EntryAttributes:
        if parts_of(inode).serial == MOUNT_SERIAL:
            return self._mount_attributes(inode)
        if self._is_top(inode) or self._is_passed_on(inode):
            record, number = self._located(inode)
            owner = Owner(record.uid_base, record.gid_base)
            # By what we say here, the kernel lets open(2) through.
            writable = uid != owner.uid and self._sysctls.may_administer(record, thread)
            return self._passed_on.attributes(inode, number, owner, writable=writable)
        record, node = self._resolve(inode)
        if not self._tree.exists(node, self._members_of(record)):
            raise NoSuchView(f"no {node.path} any more")
        owner = Owner(record.uid_base, record.gid_base)
        # For so long the kernel may believe in ``cpu3`` after a container has lost it: names can't
        # be taken back without waiting for who is in that directory.
        member_seconds = self._freshness.limits_ns / 2e9
        if node.link is not None:
            return attributes.link(
                inode,
                target=node.link,
                owner=owner,
                changed_ns=record.registered_ns,
                entry_timeout=member_seconds,
                attr_timeout=STATIC_TIMEOUT,
            )
        if node.is_directory and not node.lists:
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
                    else member_seconds
                    if node.listed
                    else STATIC_TIMEOUT
                ),
                attr_timeout=STATIC_TIMEOUT,
            )
        if inode & EXACT and node.sysctl is not None:
            return attributes.file(
                inode,
                # Of no use but to sendfile(2), which gives up at the end: more than there ever is.
                size=attributes.EXACT_BYTES,
                mode=node.sysctl.mode,
                owner=owner,
                changed_ns=record.registered_ns,
                entry_timeout=STATIC_TIMEOUT,
                attr_timeout=STATIC_TIMEOUT,
            )
        snapshot, lifetime = self.snapshots.refresh(
            record.serial, node.number, self._renderer_of(record, node), _reserve_of(node)
        )
        file = node.view or node.sysctl
        if file is None:
            return attributes.directory(
                inode,
                mode=0o555,
                owner=owner,
                changed_ns=snapshot.changed_ns,
                entry_timeout=member_seconds if node.listed else STATIC_TIMEOUT,
                attr_timeout=lifetime,
            )
        return _attributes_of(inode, record, file.mode, snapshot, lifetime)

    def _members_of(self, record: ContainerRecord) -> Members:
        return self._tree.members_by(lambda: self._collector.facts(record))

    def _mount_attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        root = inode & ~EXACT == ROOT_INODE
        if not root and inode & ~EXACT != CONTAINERS_INODE:
            raise NoSuchView("no such node")
        return attributes.directory(
            inode,
            # Other users of the host have no business in the containers' numbers.
            mode=0o755 if root else 0o700,
            owner=HOST_ROOT,
            # The kernel keeps listings of directories until this changes.
            changed_ns=self._registry.changed_ns,
            entry_timeout=STATIC_TIMEOUT,
            attr_timeout=STATIC_TIMEOUT if root else 0,
        )

    def _renderer_of(self, record: ContainerRecord, node: Node) -> Callable[[], tuple[bytes, int]]:
        """How to make the content of a file, or what stands for that of a directory: its names."""

        def render() -> tuple[bytes, int]:
            if node.sysctl is not None:
                # Current for no time: each reader's kernel asks anew, and sees what was written.
                return self._sysctls.read(record, node.sysctl), 0
            facts = self._collector.facts(record)
            if node.view is None:
                members = self._tree.members_by(lambda: facts)
                names = [name for name, _ in self._tree.children(node, members)]
                self._compare(record, facts, node)
                return b"\n".join(names), facts.now + self._freshness.limits_ns
            data = self._renderer.render(node.view, lambda: facts, record.id)
            self._compare(record, facts, node)
            if node.view.moves is None:
                return data, facts.now + self._freshness.limits_ns
            return data, facts.current_until

        return render

    def _compare(self, record: ContainerRecord, facts: Facts, current: Node | None = None) -> None:
        """Find out whether limits are others than before; then no file is good any more.

        So that all files agree: who has read of a third CPU in one finds it in all others. What is
        sent here goes out before the answer that is being made. Its own file is passed over: the
        kernel takes no attributes from an answer that is older than such a notice.
        """
        if record.serial not in self._limits:
            self._limits.watch(record.serial, record.cgroup)
        known = self._known_limits.setdefault(record.serial, {})
        limits = facts.limits()
        changed = any(known.get(name, value) != value for name, value in limits.items())
        known.update(limits)
        if changed:
            nodes = self.snapshots.expire(record.serial)
            own = None if current is None else current.number
            self.pushing.push(inode_of(record.serial, node) for node in nodes if node != own)


def _attributes_of(
    inode: int, record: ContainerRecord, mode: int, snapshot: Snapshot, lifetime: float
) -> pyfuse3.EntryAttributes:
    return attributes.file(
        inode,
        size=len(snapshot.data),
        mode=mode,
        owner=Owner(record.uid_base, record.gid_base),
        changed_ns=snapshot.changed_ns,
        entry_timeout=STATIC_TIMEOUT,
        attr_timeout=lifetime,
    )


def _reserve_of(node: Node) -> Reserve | None:
    return None if node.view is None else node.view.moves
