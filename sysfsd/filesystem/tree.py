"""Inodes without state: ``serial << 20 | node``; pure.

The serial says whose files they are, the node which file. No table of live inodes is kept: FORGET
has nothing to do, and a number means the same after a restart as long as the serial does. Serials
of containers start at 1; 0 is the mount's own, with the root directory (1, as FUSE wants it) and,
in ``sysfsd serve``, ``containers`` (2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.errors import NoSuchView

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sysfsd.views import View

NODE_BITS = 20
_NODE_MASK = (1 << NODE_BITS) - 1

MOUNT_SERIAL = 0
ROOT_INODE = 1
CONTAINERS_INODE = 2

ROOT_NODE = 1
"""The top of a container's subtree. In ``sysfsd mount`` it is the mount's root as well."""

_FILE_NODES = 1 << 12
"""Views are numbered from here, in the order of their table, directories below."""


class InodeParts(NamedTuple):
    """Whose file, and which."""

    serial: int
    node: int


@dataclass(frozen=True, slots=True)
class Node:
    """One directory or file of a container's subtree."""

    number: int
    path: str
    """Relative to the subtree: ``proc/meminfo``; empty for its root."""
    view: View | None = None
    """None for a directory."""
    children: dict[bytes, int] = field(default_factory=dict)
    """Names and node numbers, in the order in which they are listed."""


def inode_of(serial: int, node: int) -> int:
    """Put an inode together."""
    return serial << NODE_BITS | node


def parts_of(inode: int) -> InodeParts:
    """Take an inode apart; any number has parts, whether or not there is such a file."""
    return InodeParts(inode >> NODE_BITS, inode & _NODE_MASK)


class Tree:
    """The files and directories that every container has.

    Numbers depend on the order of the table of views alone: appending to it changes none.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self._nodes: dict[int, Node] = {ROOT_NODE: Node(ROOT_NODE, "")}
        self._by_path: dict[str, Node] = {}
        directories = {"": self._nodes[ROOT_NODE]}
        for position, view in enumerate(views):
            parent = self._nodes[ROOT_NODE]
            *names, leaf = view.path.split("/")
            for depth, name in enumerate(names):
                path = "/".join(names[: depth + 1])
                child = directories.get(path)
                if child is None:
                    child = Node(ROOT_NODE + len(directories), path)
                    directories[path] = self._nodes[child.number] = child
                    parent.children[name.encode()] = child.number
                parent = child
            file = Node(_FILE_NODES + position, view.path, view)
            self._nodes[file.number] = self._by_path[view.path] = file
            parent.children[leaf.encode()] = file.number

    def node(self, number: int) -> Node | None:
        """The node of that number."""
        return self._nodes.get(number)

    def view(self, path: str) -> View:
        """The view at a path as users write it, ``/proc/meminfo``; raises ``NoSuchView``."""
        node = self._by_path.get(path.strip("/"))
        if node is None or node.view is None:
            raise NoSuchView(
                f"sysfsd has no view at {path!r}; it has: " + " ".join(sorted(self._by_path))
            )
        return node.view
