"""Hearing of what happens on whole file systems: fanotify(7).

`parse_events` is pure; `Group` is the descriptor, its marks and its events. Events say which file
by an open descriptor of it, which is the reader's to close. (By file handle instead, which opens
nothing, is refused on overlayfs: it can't be asked for with ``FAN_REPORT_FID``, EOPNOTSUPP.)
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

# linux/fanotify.h
FAN_CLOSE_WRITE = 0x08
FAN_CLOSE_NOWRITE = 0x10
FAN_OPEN = 0x20
FAN_Q_OVERFLOW = 0x4000
FAN_ONDIR = 0x4000_0000
FAN_NOFD = -1

_FAN_CLOEXEC = 0x01
_FAN_NONBLOCK = 0x02
_FAN_CLASS_NOTIF = 0x00
_FAN_MARK_ADD = 0x01
_FAN_MARK_REMOVE = 0x02
_FAN_MARK_ONLYDIR = 0x08
_FAN_MARK_FILESYSTEM = 0x100
_FANOTIFY_METADATA_VERSION = 3

_METADATA = struct.Struct("=IBBHQii")
"""``struct fanotify_event_metadata``: length, version, reserved, metadata's length, mask, fd, pid.

Always in the machine's byte order, and its 64-bit word is aligned as it is.
"""

EVENTS_AT_ONCE = 64
"""Events of one `Group.read`: as many descriptors may be open at once."""

# What events' descriptors are opened with; O_PATH is not allowed here (fanotify_init(2)). A FIFO
# opened without O_NONBLOCK would wait for a writer.
_EVENT_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_LARGEFILE

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """One event, or several of one process on one file that the kernel merged."""

    mask: int
    """``FAN_*`` bits of what happened."""
    fd: int
    """The file, open for reading, the receiver's to close; negative when there is none."""
    pid: int


LOST = Event(FAN_Q_OVERFLOW, FAN_NOFD, 0)
"""Some events are missing: anything may have happened anywhere."""


def parse_events(data: bytes) -> list[Event]:
    """Events in what was read from a group.

    A record that is cut short, makes no sense or is of another version ends the list with `LOST`:
    where the next one begins can't be told.
    """
    events: list[Event] = []
    position = 0
    while position < len(data):
        if len(data) - position < _METADATA.size:
            return [*events, LOST]
        length, version, _, header, mask, fd, pid = _METADATA.unpack_from(data, position)
        if (
            version != _FANOTIFY_METADATA_VERSION
            or header < _METADATA.size
            or not header <= length <= len(data) - position
        ):
            return [*events, LOST]
        events.append(LOST if mask & FAN_Q_OVERFLOW else Event(mask, fd, pid))
        position += length
    return events


class Group:
    """A notification group, which never waits.

    The kernel allows one user 128 of them (fs.fanotify.max_user_groups): one will do for any
    number of marks. Raises ``OSError``: ENOSYS without fanotify, EPERM without CAP_SYS_ADMIN.
    """

    def __init__(self) -> None:
        # Not at import time: a kernel's or libc's lack of it must not keep the daemon from starting
        try:
            initialise, self._mark = _libc.fanotify_init, _libc.fanotify_mark
        except AttributeError:
            raise OSError(errno.ENOSYS, "fanotify_init: this libc has none") from None
        initialise.argtypes = (ctypes.c_uint, ctypes.c_uint)
        self._mark.argtypes = (
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint64,
            ctypes.c_int,
            ctypes.c_char_p,
        )
        self._fd: int = initialise(_FAN_CLASS_NOTIF | _FAN_CLOEXEC | _FAN_NONBLOCK, _EVENT_FLAGS)
        if self._fd < 0:
            raise _fail("fanotify_init")

    def fileno(self) -> int:
        """Readable whenever events are waiting."""
        return self._fd

    def mark(self, directory: int, mask: int) -> None:
        """Listen for ``mask`` on the whole file system of ``directory``, which may be O_PATH.

        However it is reached: also by those who mounted it once more, in a mount namespace of
        their own.
        """
        self._change(_FAN_MARK_ADD, directory, mask)

    def unmark(self, directory: int, mask: int) -> None:
        """Take a mark away again. Events from before are still there to be read."""
        self._change(_FAN_MARK_REMOVE, directory, mask)

    def read(self) -> list[Event]:
        """At most `EVENTS_AT_ONCE` events, none when none is waiting."""
        try:
            data = os.read(self._fd, EVENTS_AT_ONCE * _METADATA.size)
        except BlockingIOError:
            return []
        except OSError:
            # The file of an event could not be opened (ENXIO, ENFILE, ...). The kernel has thrown
            # that event away, so reading on does not end up here for ever.
            return [LOST]
        return parse_events(data)

    def close(self) -> None:
        """Close the group; all its marks go with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _change(self, how: int, directory: int, mask: int) -> None:
        # The object itself must not be an O_PATH descriptor (EBADF), but the directory in which a
        # path is looked up may be one.
        how |= _FAN_MARK_FILESYSTEM | _FAN_MARK_ONLYDIR
        if self._mark(self._fd, how, mask, directory, b".") < 0:
            raise _fail("fanotify_mark")


def _fail(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
