"""The bytes of one refresh, kept for as long as they answer requests; pure but for the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sysfsd.filesystem.tree import parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One file's content at one moment."""

    data: bytes
    changed_ns: int
    """Its mtime, since the epoch: moves whenever the bytes differ from the snapshot before."""
    rendered_ns: int
    """When, on the monotonic clock."""

    def read(self, offset: int, size: int) -> bytes:
        """Return what pread(2) does: less at the end, nothing past it."""
        return self.data[offset : offset + size]


class PinnedSnapshots:
    """The last refresh of every pinned file.

    The kernel asks for attributes when its own have expired, learns size and mtime, drops its pages
    if they differ and reads. All of that must come from one refresh, or a file is cut short or ends
    in NULs; so only asking for attributes refreshes, and reading never does.
    """

    def __init__(self, lifetime: float, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._lifetime_ns = int(lifetime * 1e9)
        self._clock = clock
        self._snapshots: dict[int, Snapshot] = {}

    def __len__(self) -> int:
        """How many are kept: bounded by containers times views."""
        return len(self._snapshots)

    def refresh(self, inode: int, render: Callable[[], bytes]) -> tuple[Snapshot, float]:
        """Return a snapshot and for how many seconds from now it is the current one."""
        now = self._clock()
        known = self._snapshots.get(inode)
        if known is not None and now - known.rendered_ns < self._lifetime_ns:
            return known, (known.rendered_ns + self._lifetime_ns - now) / 1e9
        data = render()
        if known is None:
            changed = time.time_ns()
        elif known.data == data:
            changed = known.changed_ns
        else:
            changed = max(time.time_ns(), known.changed_ns + 1)
        fresh = Snapshot(data, changed, now)
        self._snapshots[inode] = fresh
        return fresh, self._lifetime_ns / 1e9

    def last(self, inode: int, render: Callable[[], bytes]) -> Snapshot:
        """Return the snapshot that attributes were answered from."""
        return self._snapshots.get(inode) or self.refresh(inode, render)[0]

    def forget(self, serial: int) -> None:
        """Drop the files of a container that is gone."""
        for inode in [inode for inode in self._snapshots if parts_of(inode).serial == serial]:
            del self._snapshots[inode]


class OpenSnapshots:
    """A snapshot for each open file, by file handle."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._next = 1
        self._open: dict[int, bytes] = {}

    def __len__(self) -> int:
        """How many files are open."""
        return len(self._open)

    def add(self, data: bytes) -> int | None:
        """Keep one and return its handle; None when as many as may be are open."""
        if len(self._open) >= self._limit:
            return None
        handle, self._next = self._next, self._next + 1
        self._open[handle] = data
        return handle

    def read(self, handle: int, offset: int, size: int) -> bytes | None:
        """Return bytes of an open file; None for a handle that is not open."""
        data = self._open.get(handle)
        return None if data is None else data[offset : offset + size]

    def close(self, handle: int) -> None:
        """Drop one."""
        self._open.pop(handle, None)


class RecentSnapshots:
    """What was rendered a moment ago, so that stat, open and read of one ``cat`` agree."""

    def __init__(
        self, lifetime: float, limit: int, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._lifetime_ns = int(lifetime * 1e9)
        self._limit = limit
        self._clock = clock
        self._recent: dict[Hashable, tuple[int, bytes]] = {}

    def get(self, key: Hashable) -> bytes | None:
        """Return what is kept, if it is recent."""
        rendered, data = self._recent.get(key, (0, b""))
        return data if data and self._clock() - rendered < self._lifetime_ns else None

    def put(self, key: Hashable, data: bytes) -> None:
        """Keep it; the oldest goes when there are too many."""
        self._recent.pop(key, None)
        if len(self._recent) >= self._limit:
            del self._recent[next(iter(self._recent))]
        self._recent[key] = (self._clock(), data)
