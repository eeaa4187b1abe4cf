"""Answers for the event loop when that takes too long: from another thread, with what is known.

All answers are made in one thread, of small files of the kernel's. One of these may keep whoever
reads it waiting (a lock of the cgroup hierarchy, statistics of thousands of cgroups), and then
everybody waits, whatever container they are in. They had better see numbers that are a second old.
Waiting for the kernel takes no GIL, and so does waiting for an answer that never comes.

A daemon that hangs for longer is killed nevertheless (`app`): there are requests that nothing is
known for.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from typing import TYPE_CHECKING

import structlog
import trio

from sysfsd.log import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sysfsd.channel.relay import Relay

LATE_SECONDS = 0.75
"""Who waits for so long gets what is known. Nobody is to wait for more than a second."""

_TICK_SECONDS = 0.25

_UNREAD_AT_ONCE = 256

_log = structlog.get_logger()


class StandIn:
    """Looks after one relay. To be made in the event loop, and run in a thread."""

    def __init__(
        self, relay: Relay, device: int, known: Callable[[bytes | bytearray], bytes | None]
    ) -> None:
        """``known`` makes the data of an answer, or None; it is called in that thread."""
        self._relay = relay
        self._known = known
        self._token = trio.lowlevel.current_trio_token()
        self._poller = select.poll()
        self._poller.register(device, select.POLLIN)
        self._asked: float | None = None
        """Since when the event loop has been asked whether it goes on."""
        self._limit = RateLimit()
        self._ended = threading.Event()

    def run(self) -> None:
        """Look after it until `end`."""
        with contextlib.suppress(trio.RunFinishedError):
            while not self._ended.wait(_TICK_SECONDS):
                self._look()

    def end(self) -> None:
        """Have `run` return."""
        self._ended.set()

    def _look(self) -> None:
        stuck = self._is_stuck()
        late = self._relay.overdue(LATE_SECONDS)
        for packet in [*late, *(self._relay.waiting() if stuck else [])]:
            self._answered(packet)
        if stuck:
            for _, unread in zip(range(_UNREAD_AT_ONCE), self._relay.unread(), strict=False):
                if not self._answered(unread):
                    self._token.run_sync_soon(self._relay.take_late, unread)
                if self._asked is None or self._ended.is_set():  # it goes on
                    break

    def _is_stuck(self) -> bool:
        if self._asked is None:
            if self._relay.in_flight or self._poller.poll(0):
                self._asked = time.monotonic()
                self._token.run_sync_soon(self._goes_on)
            return False
        return time.monotonic() - self._asked >= LATE_SECONDS

    def _goes_on(self) -> None:
        self._asked = None

    def _answered(self, packet: bytes | bytearray) -> bool:
        try:
            data = self._known(packet)
        except Exception:  # noqa: BLE001
            # Whatever is known changes while it is looked at; the event loop will answer.
            if self._limit.passes("failed") is not None:
                _log.exception("nothing could be told from what was last read")
            return False
        if data is None:
            return False
        if self._relay.stand_in(packet, data) and self._limit.passes("late") is not None:
            _log.warning("an answer takes too long; containers get what was last read")
        return True


@contextlib.contextmanager
def standing_in(
    relay: Relay, device: int, known: Callable[[bytes | bytearray], bytes | None]
) -> Iterator[None]:
    """Have a thread look after a relay, for as long as the context lasts."""
    one = StandIn(relay, device, known)
    thread = threading.Thread(target=one.run, name="stand-in", daemon=True)
    thread.start()
    try:
        yield
    finally:
        one.end()
        thread.join()
