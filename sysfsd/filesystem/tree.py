"""Inodes without state: ``serial << 32 | member << 12 | slot``; pure.

The serial says whose files they are, the slot which path, and the member, where the path is that of
a `Family`, which of its members. No table of live inodes is kept: FORGET has nothing to do, and a
number means the same after a restart as long as the serial does. Serials of containers start at 1;
0 is the mount's own, with the root directory (1, as FUSE wants it) and, in ``sysfsd serve``,
``containers`` (2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from sysfsd.errors import NoSuchView
from sysfsd.kernel.procfs import parse_cpu_list
from sysfsd.sysctls.names import sysctl_path
from sysfsd.sysctls.node import Sysctl
from sysfsd.views import attach_points
from sysfsd.views.view import MEMBER, Family

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sysfsd.facts.collector import Facts
    from sysfsd.views import Links, View

    Members: TypeAlias = Callable[[str], Sequence[int]]

NODE_BITS = 32
_NODE_MASK = (1 << NODE_BITS) - 1
_SLOT_BITS = 12
_SLOT_MASK = (1 << _SLOT_BITS) - 1

PASSED_ON = 1 << (NODE_BITS - 1)
"""In a number that is no node of a tree's: of what is passed on (`filesystem.interfaces`)."""

_MAX_MEMBER = (PASSED_ON >> _SLOT_BITS) - 2

EXACT = 1 << 63
"""In an inode of the second mount, whose files are opened one by one (`channel.relay`)."""

MOUNT_SERIAL = 0
ROOT_INODE = 1
CONTAINERS_INODE = 2

ROOT_NODE = 1
"""The top of a container's subtree. In ``sysfsd mount`` it is the mount's root as well."""


class InodeParts(NamedTuple):
    """Whose file, and which."""

    serial: int
    node: int


class Node(NamedTuple):
    """One directory or file of a container's subtree."""

    number: int
    path: str
    """Relative to the subtree: ``proc/meminfo``; empty for its root."""
    view: View | None
    """None for what is no view's file."""
    listed: str | None = None
    """It is a member's or below one: the path of the view that lists who is a member now."""
    lists: tuple[str, ...] = ()
    """It is a directory that holds members: the paths of the views that list those."""
    link: str | None = None
    """It is a symbolic link: what it points to."""
    sysctl: Sysctl | None = None
    """It is a sysctl's file."""

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return self.view is None and self.sysctl is None and self.link is None


_MAX_NODES = 1 << 14
"""So many are kept, once made; a container of 64 CPUs has half as many."""


@dataclass(slots=True)
class _Slot:
    """A path, which may have `MEMBER` in it, and what is there."""

    slot: int
    path: str
    entry: View | Family | Sysctl | None = None
    children: dict[str, _Slot] = field(default_factory=dict)
    listed: str | None = None
    """Where those are listed that may stand for `MEMBER` in the path."""
    links: list[tuple[int, Links]] = field(default_factory=list)
    """Those in this directory, each with a slot of its own."""


def inode_of(serial: int, node: int) -> int:
    """Put an inode together."""
    return serial << NODE_BITS | node


def parts_of(inode: int) -> InodeParts:
    """Take an inode apart; any number has parts, whether or not there is such a file."""
    return InodeParts((inode & ~EXACT) >> NODE_BITS, inode & _NODE_MASK)


def members_in(listing: bytes) -> tuple[int, ...]:
    """Return the numbers that the text of a list names; raises ValueError for another text."""
    return parse_cpu_list(listing.decode("ascii"))


class _Numbers:
    """Which slot a path has: a directory's ends in ``/``, that of a kind of links in ``@``."""

    def __init__(self, former: Mapping[str, int]) -> None:
        self.all = dict(former)
        self._last = max(former.values(), default=ROOT_NODE)

    def of(self, path: str) -> int:
        """Its own, or the next that none ever had."""
        number = self.all.get(path)
        if number is None:
            number = self.all[path] = self._last = self._last + 1
            if number > _SLOT_MASK:
                raise ValueError("no numbers left for files")
        return number


class Tree:
    """The files and directories that containers have.

    Where members are asked for, they are those of the container whose tree is looked at, by the
    path of the view that lists them.
    """

    def __init__(
        self,
        views: Sequence[View | Family],
        known: Callable[[View | Family], bool] = lambda _view: True,
        links: Sequence[Links] = (),
        sysctls: Sequence[Sysctl] = (),
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        """Make one; `sysctls` are those to be emulated.

        ``numbers`` are those of a tree before (`numbers` of it): what has one keeps it, since the
        kernel knows files by them, and no other gets it. Raises ValueError when there are too many.
        """
        self._root = _Slot(ROOT_NODE, "")
        self._slots: dict[int, _Slot] = {ROOT_NODE: self._root}
        self._numbers = _Numbers(numbers or {})
        directories = {"": self._root}
        self.views = tuple(view for view in views if known(view))
        """The views that there are."""
        self.sysctls = tuple(sysctls)
        """The sysctls that there are."""
        numbered: list[tuple[int, View | Family | Sysctl]] = [
            (self._numbers.of(view.path), view) for view in (*self.views, *self.sysctls)
        ]
        for number, view in numbered:
            parent = self._root
            *names, leaf = view.path.split("/")
            for depth, name in enumerate(names):
                path = "/".join(names[: depth + 1])
                child = directories.get(path)
                if child is None:
                    child = _Slot(self._numbers.of(f"{path}/"), path)
                    directories[path] = self._slots[child.slot] = parent.children[name] = child
                if isinstance(view, Family) and MEMBER in path:
                    child.listed = view.members
                parent = child
            file = _Slot(number, view.path, view)
            file.listed = view.members if isinstance(view, Family) else None
            self._slots[file.slot] = parent.children[leaf] = file
        self._links = {self._numbers.of(f"{link.directory}/{link.prefix}@"): link for link in links}
        for number, link in self._links.items():
            if link.directory in directories:
                directories[link.directory].links.append((number, link))
        self._nodes: dict[int, Node] = {}
        self._lists: dict[str, View] = {}

    @property
    def numbers(self) -> Mapping[str, int]:
        """The number of every path that there is, or once was."""
        return self._numbers.all

    def node(self, number: int) -> Node | None:
        """The node of that number, whether or not the container at hand has it."""
        known = self._nodes.get(number)
        if known is None:
            known = self._make_node(number)
            if known is not None and len(self._nodes) < _MAX_NODES:
                self._nodes[number] = known
        return known

    def _make_node(self, number: int) -> Node | None:
        if number & PASSED_ON:
            return None
        slot, member = self._slots.get(number & _SLOT_MASK), (number >> _SLOT_BITS) - 1
        link = self._links.get(number & _SLOT_MASK)
        if link is not None and member >= 0:
            # Which directory it was found in makes no difference to it.
            path = f"{link.directory}/{link.prefix}{member}"
            return Node(number, path, None, link=link.target.replace(MEMBER, str(member)))
        if slot is None or (member >= 0) != (slot.listed is not None):
            return None
        entry = slot.entry
        view = entry.view(member) if isinstance(entry, Family) else entry
        if isinstance(view, Sysctl):
            return Node(number, slot.path, None, sysctl=view)
        return Node(
            number,
            slot.path.replace(MEMBER, str(member)),
            view,
            slot.listed,
            (
                *(
                    child.listed
                    for name, child in slot.children.items()
                    if MEMBER in name and child.listed is not None
                ),
                *(link.listed.replace(MEMBER, str(member)) for _, link in slot.links),
            ),
        )

    def exists(self, node: Node, members: Members) -> bool:
        """Whether a container has a node."""
        return node.listed is None or (node.number >> _SLOT_BITS) - 1 in members(node.listed)

    def child(self, parent: Node, name: bytes, members: Members) -> int:
        """The number of a directory's child; raises ``NoSuchView``."""
        text = name.decode("ascii", "replace")
        member = parent.number & ~_SLOT_MASK
        for pattern, slot in self._slots[parent.number & _SLOT_MASK].children.items():
            if pattern == text and MEMBER not in pattern:
                return member | slot.slot
            if MEMBER in pattern and slot.listed is not None:
                number = _number_in(text, pattern)
                if number is not None and number in members(slot.listed):
                    return _member_node(number, slot.slot)
        for slot_number, link in self._slots[parent.number & _SLOT_MASK].links:
            number = _number_in(text, f"{link.prefix}{MEMBER}")
            if number is not None and number in members(_listed_of(link, parent)):
                return _member_node(number, slot_number)
        raise NoSuchView(f"no {text!r} in {parent.path!r}")

    def children(self, parent: Node, members: Members) -> list[tuple[bytes, int]]:
        """Names and node numbers, in the order in which they are listed."""
        found: list[tuple[bytes, int]] = []
        member = parent.number & ~_SLOT_MASK
        for name, slot in self._slots[parent.number & _SLOT_MASK].children.items():
            if MEMBER in name and slot.listed is not None:
                found += [
                    (name.replace(MEMBER, str(number)).encode(), _member_node(number, slot.slot))
                    for number in members(slot.listed)
                ]
            else:
                found.append((name.encode(), member | slot.slot))
        for slot_number, link in self._slots[parent.number & _SLOT_MASK].links:
            found += [
                (f"{link.prefix}{number}".encode(), _member_node(number, slot_number))
                for number in members(_listed_of(link, parent))
            ]
        return found

    def view(self, path: str, members: Members) -> View:
        """The view at a path as users write it, ``/proc/meminfo``; raises ``NoSuchView``."""
        node = self.file(path, members)
        if node.view is None:
            raise NoSuchView(f"{path!r} is a sysctl, not a view")
        return node.view

    def file(self, path: str, members: Members) -> Node:
        """The file at such a path, a view's or a sysctl's; raises ``NoSuchView``.

        A sysctl may go by its name as well, ``vm.swappiness``.
        """
        node = self._at(path, members)
        if node is None:
            named = self._at(f"proc/sys/{sysctl_path(path)}", members)
            node = named if named is not None and named.sysctl is not None else None
        if node is not None and node.number != ROOT_NODE and node.is_directory:
            names = " ".join(name.decode() for name, _ in self.children(node, members))
            raise NoSuchView(f"{path!r} is no file; name one in it: {names}")
        if node is None or node.is_directory:
            points = " ".join(sorted(attach_points(self.views)))
            if self.sysctls:
                points += " and the sysctls that `sysfsd doctor` calls emulated, as proc/sys/NAME"
            raise NoSuchView(f"sysfsd has no view at {path!r}; it has: {points}")
        return node

    def _at(self, path: str, members: Members) -> Node | None:
        number = ROOT_NODE
        try:
            for name in path.strip("/").split("/"):
                parent = self.node(number)
                assert parent is not None
                number = self.child(parent, name.encode(), members)
        except NoSuchView:
            return None
        return self.node(number)

    def members_by(self, facts: Callable[[], Facts]) -> Members:
        """Return how to look up the members of a container that has these facts.

        What that returns raises OSError if the container is gone.
        """

        def members(listed: str) -> Sequence[int]:
            now = facts()
            return now.once(("members", listed), lambda: members_in(self._list(listed).render(now)))

        return members

    def _list(self, path: str) -> View:
        view = self._lists.get(path)
        if view is None:
            view = self.view(path, anybody)
            if len(self._lists) < _MAX_NODES:
                self._lists[path] = view
        return view


def anybody(_listed: str) -> Sequence[int]:
    """Let every number be a member's: to find a view, whether or not a container has it."""
    return range(_MAX_MEMBER)


def _listed_of(link: Links, directory: Node) -> str:
    return link.listed.replace(MEMBER, str((directory.number >> _SLOT_BITS) - 1))


def _member_node(member: int, slot: int) -> int:
    return (min(member, _MAX_MEMBER) + 1) << _SLOT_BITS | slot


def _number_in(name: str, pattern: str) -> int | None:
    """Return the number in ``cpu7`` by the pattern ``cpu{}``, if it is written as we write it."""
    prefix, _, suffix = pattern.partition(MEMBER)
    digits = name[len(prefix) : len(name) - len(suffix)]
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 7:
        return None
    number = int(digits)
    return number if name == pattern.replace(MEMBER, str(number)) else None
