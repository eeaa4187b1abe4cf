"""What is passed on to the kernel: directories in which names come and go with interfaces.

A file can be added to one of those only if the whole directory is ours (`sysctls.probe.PASSED_ON`).
Then all else that is in it is the kernel's as before: of the container's network namespace, whose
directory it is that we cover, whoever asks. Nothing is kept: a name is looked for each time, and
so is what is behind it. Since an interface can have other files and another name the next moment,
its number tells it by its index: ``1 | family | file | index``, see `_Place`.

The kernel is asked in worker threads (`kernel.interfaces`).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import trio

from sysfsd.errors import NoSuchView
from sysfsd.filesystem import attributes
from sysfsd.filesystem.tree import PASSED_ON
from sysfsd.kernel import interfaces
from sysfsd.sysctls.probe import PASSED_ON as DIRECTORIES
from sysfsd.sysctls.probe import passed_on

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyfuse3

    from sysfsd.containers.record import ContainerRecord
    from sysfsd.filesystem.attributes import Owner
    from sysfsd.filesystem.tree import Tree

T = TypeVar("T")

_FAMILY_AT, _FILE_AT = 30, 24
_MAX_FILE = (1 << _FAMILY_AT - _FILE_AT) - 1
_MAX_INDEX = (1 << _FILE_AT) - 1
"""The kernel counts up from 1. Who gives an interface a larger one has a file less."""

_THREADS = 2

_MAX_LISTED = 64
"""So many listings are gone on with at a time; of more, the oldest are made anew."""


class _Place(NamedTuple):
    """What a number says."""

    directory: int
    """Which of ours it is in, by its place among them."""
    interface: int
    """Its index."""
    file: int
    """Which of its files, from 1; 0 is its directory."""

    @property
    def number(self) -> int:
        return PASSED_ON | self.directory << _FAMILY_AT | self.file << _FILE_AT | self.interface


def tops_of(tree: Tree) -> dict[int, str]:
    """Return the directories in a tree that are passed on, by the numbers of their nodes."""
    found = {path for node in tree.sysctls if (path := passed_on(node.path))}
    return {tree.numbers[f"{path}/"]: path for path in sorted(found)}


def _place(number: int) -> _Place:
    rest = number & ~PASSED_ON
    return _Place(rest >> _FAMILY_AT, rest & _MAX_INDEX, rest >> _FILE_AT & _MAX_FILE)


class PassedOn:
    """The directories that are passed on, by the number of their node, and what is below them."""

    def __init__(
        self,
        directories: Mapping[int, str],
        namespace_of: Callable[[ContainerRecord], int | None],
        *,
        root: str = "/",
    ) -> None:
        """Pass on what is in ``directories``: paths below a container's root.

        ``namespace_of`` opens a container's network namespace; None if that is not
        its own, and nothing of it is to be seen.
        """
        # The same numbers in our next life, even if that has not all of them.
        self._numbers = {number: DIRECTORIES.index(path) for number, path in directories.items()}
        self._paths = {DIRECTORIES.index(path): f"{root}{path}" for path in directories.values()}
        # Those that any interface has are among those that ``default`` has.
        self._files = {
            position: sorted(os.listdir(f"{path}/default"))[:_MAX_FILE]
            for position, path in self._paths.items()
        }
        self._namespace_of = namespace_of
        self._threads = trio.CapacityLimiter(_THREADS)
        self._listed: dict[tuple[int, int], list[tuple[bytes, int]]] = {}

    def is_top(self, number: int) -> bool:
        """Whether it is one of the directories."""
        return number in self._numbers

    def attributes(
        self, inode: int, number: int, owner: Owner, *, writable: bool
    ) -> pyfuse3.EntryAttributes:
        """What stat(2) says to somebody who may write, whatever the mode says; or who may not.

        The kernel may keep nothing of it, nor a listing of a directory.
        """
        now = time.time_ns()
        if self.is_top(number) or _place(number).file == 0:
            return attributes.directory(inode, mode=0o555, owner=owner, changed_ns=now, links=1)
        mode = 0o666 if writable else 0o644
        size = attributes.EXACT_BYTES
        return attributes.file(inode, size=size, mode=mode, owner=owner, changed_ns=now)

    async def child(self, record: ContainerRecord, number: int, name: bytes) -> int:
        """The number of what has a name in a directory; raises ``NoSuchView``, ``OSError``."""
        if self.is_top(number):
            position = self._numbers[number]
            path = self._paths[position]
            index = await self._ask(record, lambda fd: interfaces.index_of(fd, path, name))
            if index > _MAX_INDEX:
                raise NoSuchView(f"interface {index} is out of numbers")
            return _Place(position, index, 0).number
        directory, index, file = place = self._known(number)
        text = os.fsdecode(name)
        if file or text not in self._files[directory]:
            raise NoSuchView("an interface has no such file")
        path = self._paths[directory]
        if not await self._ask(record, lambda fd: interfaces.has(fd, path, index, text)):
            raise NoSuchView("it has none")
        return place._replace(file=self._files[directory].index(text) + 1).number

    async def children(
        self, record: ContainerRecord, number: int, *, anew: bool
    ) -> Sequence[tuple[bytes, int]]:
        """Names and numbers of what is in a directory; raises ``OSError``.

        Not ``anew`` it is what the last listing began with: it is read in many pieces.
        """
        if self.is_top(number):
            position = self._numbers[number]
            path = self._paths[position]
            known = self._listed.get((record.serial, position))
            if anew or known is None:
                try:
                    found = await self._ask(record, lambda fd: interfaces.interfaces(fd, path))
                except NoSuchView:
                    return ()
                known = [
                    (name, _Place(position, index, 0).number)
                    for name, index in found
                    if index <= _MAX_INDEX
                ]
                self._listed.pop((record.serial, position), None)
                self._listed[record.serial, position] = known
                if len(self._listed) > _MAX_LISTED:
                    del self._listed[next(iter(self._listed))]
            return known
        directory, index, file = place = self._known(number)
        if file:
            return []
        path = self._paths[directory]
        there = await self._ask(record, lambda fd: interfaces.files(fd, path, index))
        return [
            (os.fsencode(name), place._replace(file=position).number)
            for position, name in enumerate(self._files[directory], 1)
            if name in there
        ]

    async def read(self, record: ContainerRecord, number: int) -> bytes:
        """Read a file as it is now; raises ``OSError``."""
        path, index, file = self._file(number)
        return await self._ask(record, lambda fd: interfaces.read(fd, path, index, file))

    async def write(self, record: ContainerRecord, number: int, data: bytes, offset: int) -> int:
        """Write a file and return how much the kernel took; raises ``OSError``.

        Whoever opened the file for it may administer the namespace, which is the container's own.
        """
        path, index, file = self._file(number)
        return await self._ask(
            record, lambda fd: interfaces.write(fd, path, index, file, data, offset)
        )

    def _known(self, number: int) -> _Place:
        place = _place(number)
        if place.directory not in self._paths:  # which an earlier life had
            raise NoSuchView("no such directory")
        return place

    def _file(self, number: int) -> tuple[str, int, str]:
        directory, index, file = self._known(number)
        if not 0 < file <= len(self._files[directory]):
            raise NoSuchView("no such file")
        return self._paths[directory], index, self._files[directory][file - 1]

    async def _ask(self, record: ContainerRecord, question: Callable[[int], T]) -> T:
        def ask() -> T:
            namespace = self._namespace_of(record)
            if namespace is None:
                raise NoSuchView("it has no network of its own")
            try:
                return question(namespace)
            finally:
                os.close(namespace)

        return await trio.to_thread.run_sync(ask, limiter=self._threads)
