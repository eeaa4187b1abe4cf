"""The bytes of one refresh, kept for as long as they answer requests; pure but for the clock."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from sysfsd.facts.host import boottime_ns
from sysfsd.filesystem.layout import laid_out

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sysfsd.filesystem.layout import Layout
    from sysfsd.views.view import Reserve

T = TypeVar("T")

MAX_PER_CONTAINER = 1024
"""Snapshots of one container; most have below 200 bytes."""


_OVERTAKEN_NS = 2_000_000_000
"""For so long what came too late is better than to be late again."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One file's content at one moment."""

    data: bytes
    changed_ns: int
    """Its mtime, since the epoch: moves whenever the bytes differ from the snapshot before."""
    current_until_ns: int
    """Until when it answers for the file, in ns since boot, as facts have it."""
    layout: Layout | None = None
    """That of a moving file, which the next refresh is to keep."""

    def read(self, offset: int, size: int) -> bytes:
        """Return what pread(2) does: less at the end, nothing past it."""
        return self.data[offset : offset + size]


class PinnedSnapshots:
    """The last refresh of every pinned file, and of every listing that varies.

    The kernel asks for attributes when its own have expired, learns size and mtime, drops its pages
    if they differ and reads. All of that must come from one refresh, or a file is cut short or ends
    in NULs; so only asking for attributes refreshes, and reading never does.

    Files are a node's of a container, by serial. Of one container the most recent
    `MAX_PER_CONTAINER` are kept: the per-CPU files of a large host are many, and nobody reads them
    all at once but to see whether we run out of memory.
    """

    def __init__(self, clock: Callable[[], int] = boottime_ns) -> None:
        self._clock = clock
        self._snapshots: dict[int, OrderedDict[int, Snapshot]] = {}
        self._told: dict[int, dict[int, Snapshot | None]] = {}
        """What somebody was told the last snapshot of by `prolong`, and what was made meanwhile."""
        self._replacing = threading.Lock()

    def __len__(self) -> int:
        """How many are kept."""
        return sum(len(files) for files in self._snapshots.values())

    def refresh(
        self,
        serial: int,
        node: int,
        render: Callable[[], tuple[bytes, int]],
        reserve: Reserve | None = None,
    ) -> tuple[Snapshot, float]:
        """Return a snapshot and for how many seconds from now it is the current one.

        ``render`` gives the content and until when it is current, in ns since boot; ``reserve`` is
        for a moving file, whose lines are to stay where they are.
        """
        files = self._snapshots.setdefault(serial, OrderedDict())
        known = files.get(node)
        now = self._clock()
        if known is None or known.current_until_ns <= now:
            known = self._overtaken(files, serial, node) or self._made(
                files, serial, node, render, reserve
            )
        with self._replacing:
            if node in files:  # or it was forgotten meanwhile
                files.move_to_end(node)
            if len(files) > MAX_PER_CONTAINER:
                files.popitem(last=False)
        return known, max(0, known.current_until_ns - now) / 1e9

    def _made(
        self,
        files: OrderedDict[int, Snapshot],
        serial: int,
        node: int,
        render: Callable[[], tuple[bytes, int]],
        reserve: Reserve | None,
    ) -> Snapshot:
        known = files.get(node)
        data, until = render()
        layout = None
        if reserve is not None:
            data, layout = laid_out(data, reserve, known.layout if known else None)
        if known is None:
            changed = time.time_ns()
        elif known.data == data:
            changed = known.changed_ns
        else:
            changed = max(time.time_ns(), known.changed_ns + 1)
        made = Snapshot(data, changed, until, layout)
        with self._replacing:
            told = self._told.get(serial)
            if told is not None and node in told and node in files:
                told[node] = made
                return files[node]
            files[node] = made
            return made

    def _overtaken(
        self, files: OrderedDict[int, Snapshot], serial: int, node: int
    ) -> Snapshot | None:
        """What was made while somebody was told something older, which has expired since."""
        with self._replacing:
            told = self._told.get(serial)
            if told is None:
                return None
            made = told.pop(node, None)
            if not told:
                del self._told[serial]
            if made is None or made.current_until_ns + _OVERTAKEN_NS <= self._clock():
                return None
            files[node] = made
            return made

    def known(self, serial: int, node: int) -> Snapshot | None:
        """Return the snapshot that attributes were answered from; None if there is none."""
        files = self._snapshots.get(serial)
        return None if files is None else files.get(node)

    def prolong(self, serial: int, node: int, seconds: float) -> tuple[Snapshot, float] | None:
        """Have the last snapshot be the current one for so long, if none is; None if there is none.

        With how many seconds that is from now. For another thread, while a refresh takes too long:
        what that makes has to wait, or the kernel, which has the size of one, would read the other.
        """
        with self._replacing:
            known = self.known(serial, node)
            if known is None:
                return None
            now = self._clock()
            if known.current_until_ns <= now:
                told = self._told.setdefault(serial, {})
                newer, told[node] = told.get(node), None
                known = replace(newer or known, current_until_ns=now + int(seconds * 1e9))
                self._snapshots[serial][node] = known
            return known, (known.current_until_ns - now) / 1e9

    def last(
        self,
        serial: int,
        node: int,
        render: Callable[[], tuple[bytes, int]],
        reserve: Reserve | None = None,
    ) -> Snapshot:
        """Return the snapshot that attributes were answered from."""
        known = self.known(serial, node)
        return self.refresh(serial, node, render, reserve)[0] if known is None else known

    def expire(self, serial: int) -> list[int]:
        """Have all files of a container refreshed when they are next asked for; returns which."""
        with self._replacing:
            files = self._snapshots.get(serial, OrderedDict())
            for node, snapshot in files.items():
                files[node] = replace(snapshot, current_until_ns=0)
            told = self._told.get(serial, {})
            told.update(dict.fromkeys(told))
            return list(files)

    def forget(self, serial: int) -> None:
        """Drop the files of a container that is gone."""
        with self._replacing:
            self._snapshots.pop(serial, None)
            self._told.pop(serial, None)


UNIT_BYTES = 4096
"""What `Opened` counts in. Most files are smaller, and then count as one."""


class Opened(Generic[T]):
    """What each open file, or directory, shows, by its handle.

    Bounded in all, and for each owner, so that nobody can keep others from opening theirs. Both
    limits are in units of `UNIT_BYTES`.
    """

    def __init__(self, limit: int, limit_of_owner: int) -> None:
        self._limit = limit
        self._limit_of_owner = limit_of_owner
        self._next = 1
        self._open: dict[int, tuple[T, Hashable, int]] = {}
        self._owned: dict[Hashable, int] = {}
        self._units = 0

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def add(self, owner: Hashable, content: T, size: int = 0) -> int | None:
        """Keep one of so many bytes and return its handle; None when that is too much."""
        units = max(1, -(-size // UNIT_BYTES))
        owned = self._owned.get(owner, 0) + units
        if self._units + units > self._limit or owned > self._limit_of_owner:
            return None
        handle, self._next = self._next, self._next + 1
        self._open[handle] = content, owner, units
        self._owned[owner] = owned
        self._units += units
        return handle

    def get(self, handle: int) -> T | None:
        """Return what an open one shows; None for a handle that is not open."""
        known = self._open.get(handle)
        return None if known is None else known[0]

    def close(self, handle: int) -> T | None:
        """Drop one and return what it showed; None for a handle that is not open."""
        known = self._open.pop(handle, None)
        if known is None:
            return None
        content, owner, units = known
        self._units -= units
        self._owned[owner] -= units
        if not self._owned[owner]:
            del self._owned[owner]
        return content


class Recent(Generic[T]):
    """What was found out a moment ago, so that stat, open and read of one ``cat`` agree."""

    def __init__(
        self, lifetime: float, limit: int, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._lifetime_ns = int(lifetime * 1e9)
        self._limit = limit
        self._clock = clock
        self._recent: dict[Hashable, tuple[int, T]] = {}

    def get(self, key: Hashable) -> T | None:
        """Return what is kept, if it is recent."""
        known = self._recent.get(key)
        if known is None or self._clock() - known[0] >= self._lifetime_ns:
            return None
        return known[1]

    def put(self, key: Hashable, value: T) -> T:
        """Keep and return it; the oldest goes when there are too many."""
        self._recent.pop(key, None)
        if len(self._recent) >= self._limit:
            del self._recent[next(iter(self._recent))]
        self._recent[key] = (self._clock(), value)
        return value
