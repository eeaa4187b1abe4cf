"""Hearing of names that come and go in a directory, and of files that are written: inotify(7).

fanotify(7) can't tell that on overlayfs, where it knows only files that are opened. `parse_events`
is pure.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

# linux/inotify.h
IN_MODIFY = 0x02
IN_ATTRIB = 0x04
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_Q_OVERFLOW = 0x4000
_IN_ONLYDIR = 0x0100_0000
_IN_DONT_FOLLOW = 0x0200_0000

_EVENT = struct.Struct("=iIII")
"""``struct inotify_event``: watch, mask, cookie, length of the name that follows."""

_READ_BYTES = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """One event."""

    watch: int
    mask: int


LOST = Event(-1, IN_Q_OVERFLOW)
"""Some events are missing."""


def parse_events(data: bytes) -> list[Event]:
    """Events in what was read; names are passed over. One that is cut short is `LOST`."""
    events: list[Event] = []
    position = 0
    while position < len(data):
        if len(data) - position < _EVENT.size:
            return [*events, LOST]
        watch, mask, _, length = _EVENT.unpack_from(data, position)
        position += _EVENT.size + length
        if position > len(data):
            return [*events, LOST]
        events.append(LOST if mask & IN_Q_OVERFLOW else Event(watch, mask))
    return events


class Inotify:
    """An instance, which never waits."""

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise _fail("inotify_init1")

    def fileno(self) -> int:
        """Readable whenever events are waiting."""
        return self._fd

    def add(self, directory: int, mask: int) -> int:
        """Watch a directory, which may be O_PATH; returns the watch's number.

        The same directory again has the same number.
        """
        return self._add(f"/proc/self/fd/{directory}/.", mask | _IN_ONLYDIR)

    def add_file(self, path: str, mask: int) -> int:
        """Watch a file of the kernel's, by its path; the same file again has the same number."""
        return self._add(path, mask | _IN_DONT_FOLLOW)

    def _add(self, path: str, mask: int) -> int:
        watch: int = _libc.inotify_add_watch(self._fd, path.encode(), ctypes.c_uint32(mask))
        if watch < 0:
            raise _fail("inotify_add_watch")
        return watch

    def remove(self, watch: int) -> None:
        """Stop watching; what was watched is no longer held."""
        if _libc.inotify_rm_watch(self._fd, watch) < 0:
            raise _fail("inotify_rm_watch")

    def read(self) -> list[Event]:
        """Some events, none when none is waiting."""
        try:
            return parse_events(os.read(self._fd, _READ_BYTES))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Close the instance; all its watches go with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _fail(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
