"""Telling the kernel that files have changed before their time.

Attributes only: whoever looks at such a file next asks for them, and drops its pages if they
differ, as at any refresh. To drop pages from here the kernel would wait for those that are being
read (``invalidate_inode_pages2``), that is for us, who wait for the kernel: a deadlock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

AT_ONCE = 256
"""So many notifications go out in one go; each takes a place in the channel's buffer, which has
room for some thousands."""


class Pushing:
    """Passes on which inodes are out of date; many of them bit by bit."""

    def __init__(self, invalidate: Callable[[int], None]) -> None:
        """`invalidate` tells the kernel of one, and never waits; raises OSError."""
        self._invalidate = invalidate
        self._waiting: OrderedDict[int, None] = OrderedDict()
        self._some = trio.Event()
        self._room = AT_ONCE
        self.pushed = 0
        self.failed = 0

    def push(self, inodes: Iterable[int]) -> None:
        """Tell the kernel now, or as soon as those before have gone out."""
        for inode in inodes:
            if self._room and not self._waiting:
                self._send(inode)
            else:
                self._waiting[inode] = None
        self._some.set()

    async def run(self) -> None:
        """Send what waits."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            # The relay's turn: it empties the buffer.
            await trio.sleep(0.001)
            self._room = AT_ONCE
            while self._waiting and self._room:
                self._send(self._waiting.popitem(last=False)[0])
            if self._waiting:
                self._some.set()

    def stats(self) -> dict[str, int]:
        """What went out."""
        return {"pushed": self.pushed, "failed": self.failed, "waiting": len(self._waiting)}

    def _send(self, inode: int) -> None:
        self._room -= 1
        try:
            self._invalidate(inode)
        except OSError:
            # It lives as long as it would have without us.
            self.failed += 1
        else:
            self.pushed += 1
