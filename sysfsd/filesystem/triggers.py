"""Pressure triggers that callers set: the kernel's own files, and who waits for them.

A trigger is what one open file of a cgroup was told to watch for (the kernel's accounting/psi.rst).
Here it belongs to a caller's open file: we hold one of the kernel's for it, hand over what is
written, and wake whoever polls. All of that is the kernel's to judge, and its errors are passed on.

The kernel forgets an event as soon as anybody has asked (``psi_trigger_poll``), and trio asks each
time it starts to wait. So a thread waits, and asks only when there is something to tell.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from sysfsd.kernel.procfs import read_fd

if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import TracebackType

    import pyfuse3

    from sysfsd.kernel.cgroups import Cgroup

MAX_TRIGGERS = 512
"""Files open for writing, of all callers together; each takes a descriptor."""

MAX_OF_ONE_OWNER = 32

READY = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
"""What poll(2) says of a file that never makes anybody wait."""

NO_TRIGGER = READY | select.POLLERR | select.POLLPRI
"""What the kernel says of a pressure file without a trigger."""

_FILE_BYTES = 4096

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Trigger:
    """One file that a caller has open for writing."""

    owner: Hashable
    fd: int | None
    """The kernel's file; None where the kernel counts nothing for this caller."""
    armed: bool = False
    """Whether it watches for something."""
    fired: bool = False
    """Whether there was an event that nobody has asked for yet."""
    gone: bool = False
    """Whether its cgroup was removed."""
    waiter: pyfuse3.PollHandle | None = None


class Triggers:
    """All of one mount. ``run`` must be running for events to arrive; a context manager."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll.register(self._stop, select.EPOLLIN)
        self._by_fd: dict[int, Trigger] = {}
        self._owned: dict[Hashable, int] = {}
        self.events = 0
        """How many times a trigger has fired."""

    def __enter__(self) -> Triggers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._epoll.close()
        os.close(self._stop)
        for fd in self._by_fd:
            os.close(fd)

    def __len__(self) -> int:
        """How many files are open."""
        return sum(self._owned.values())

    async def run(self) -> None:
        """Take events from the kernel, until cancelled."""
        try:
            while True:
                found = await trio.to_thread.run_sync(self._epoll.poll, abandon_on_cancel=True)
                for fd, events in found:
                    trigger = self._by_fd.get(fd)
                    if trigger is not None:
                        self._fire(trigger, gone=bool(events & (select.EPOLLERR | select.EPOLLHUP)))
        finally:
            os.eventfd_write(self._stop, 1)  # ends the thread

    def open(self, owner: Hashable, cgroup: Cgroup | None, name: str) -> Trigger:
        """Open a pressure file of a cgroup for writing.

        Raises OSError: ENFILE when there are too many, or as open(2) does.
        """
        owned = self._owned.get(owner, 0)
        if owned >= MAX_OF_ONE_OWNER or len(self) >= MAX_TRIGGERS:
            raise OSError(errno.ENFILE, "too many pressure files are open for writing")
        trigger = Trigger(owner, None if cgroup is None else _open(cgroup, name))
        if trigger.fd is not None:
            self._by_fd[trigger.fd] = trigger
        self._owned[owner] = owned + 1
        return trigger

    async def write(self, trigger: Trigger, data: bytes) -> int:
        """Hand over what a caller wrote; raises OSError as the kernel does."""
        if trigger.fd is None:
            raise OSError(errno.EOPNOTSUPP, "cgroup v1 counts no pressure")
        # In a thread, as closing: both wait for locks that are not ours.
        written = await trio.to_thread.run_sync(os.write, trigger.fd, data)
        # Before that the kernel would report the lack of a trigger. Edges only: a cgroup that was
        # removed is reported for ever.
        self._epoll.register(trigger.fd, select.EPOLLPRI | select.EPOLLET)
        trigger.armed = True
        return written

    def read(self, trigger: Trigger) -> bytes | None:
        """Return the file as it is now; None if there is none."""
        if trigger.fd is None:
            return None
        os.lseek(trigger.fd, 0, os.SEEK_SET)
        return read_fd(trigger.fd, _FILE_BYTES)

    def poll(self, trigger: Trigger, waiter: pyfuse3.PollHandle | None) -> int:
        """Answer poll(2), and wake ``waiter`` at the next event."""
        if not trigger.armed or trigger.gone:
            return NO_TRIGGER
        if waiter is not None:
            # Also if there is something to tell: an epoll(7) that is told doesn't ask again.
            trigger.waiter = waiter
        fired, trigger.fired = trigger.fired, False
        return READY | select.POLLPRI if fired else READY

    async def close(self, trigger: Trigger) -> None:
        """Close it, and with it the trigger."""
        left = self._owned.pop(trigger.owner) - 1
        if left:
            self._owned[trigger.owner] = left
        trigger.waiter = None
        if trigger.fd is not None:
            del self._by_fd[trigger.fd]
            if trigger.armed:
                self._epoll.unregister(trigger.fd)
            # Waits for the kernel's RCU: not on the event loop.
            await trio.to_thread.run_sync(os.close, trigger.fd)

    def _fire(self, trigger: Trigger, *, gone: bool) -> None:
        self.events += 1
        trigger.fired, trigger.gone = True, trigger.gone or gone
        waiter, trigger.waiter = trigger.waiter, None
        if waiter is not None:
            try:
                waiter.notify()
            except OSError as error:
                _log.warning("nobody was woken", error=str(error))


def _open(cgroup: Cgroup, name: str) -> int | None:
    with cgroup.levels() as levels, contextlib.suppress(FileNotFoundError):
        # For reading, too: who has it open sees what is true now.
        return os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=levels[0].fd)
    return None
