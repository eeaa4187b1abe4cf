"""Copies packets between the kernel's device and pyfuse3's end of a socket pair."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

import trio

from sysfsd.channel import packets
from sysfsd.channel.packets import Opcode

if TYPE_CHECKING:
    import socket

    from sysfsd.channel.counters import ChannelCounters

MAX_IN_FLIGHT = 64
"""Requests that pyfuse3 works on at once. The kernel queues the rest and makes callers wait, so
a container that floods us costs no memory here. Must stay below pyfuse3's 99 worker tasks."""

_BATCH = 32
"""Packets copied before other tasks get their turn."""

_GONE = frozenset({errno.ENODEV, errno.ECONNABORTED})
"""What reading the device says once the last mount is gone, or the connection was aborted."""


class Relay:
    """One connection. ``run`` returns once the kernel's side is unmounted.

    ``device`` must be non-blocking. With ``node_in_handle`` READ and WRITE arrive with the node id
    for a file handle: for a file system that answers OPEN with ENOSYS. One that hands out handles
    of its own must not ask for it.
    """

    def __init__(
        self,
        device: int,
        server: socket.socket,
        counters: ChannelCounters,
        *,
        node_in_handle: bool,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._device = device
        self._server = server
        self._node_in_handle = node_in_handle
        self._max_in_flight = max_in_flight
        self._in_flight: dict[int, tuple[int, int]] = {}
        self._room = trio.Event()
        self.counters = counters
        self.ended = trio.Event()
        """Set once the kernel's side is gone."""

    @property
    def in_flight(self) -> int:
        """Requests read from the kernel and not answered yet."""
        return len(self._in_flight)

    def stats(self) -> dict[str, object]:
        """What went through so far."""
        return {**self.counters.as_dict(), "in_flight": self.in_flight}

    async def run(self) -> None:
        """Relay until the file system is unmounted everywhere."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._relay_replies)
            await self._relay_requests()
            self.ended.set()
            nursery.cancel_scope.cancel()

    async def _relay_requests(self) -> None:
        buffer = bytearray(packets.BUFFER_BYTES)
        view = memoryview(buffer)
        while True:
            await trio.lowlevel.wait_readable(self._device)
            for _ in range(_BATCH):
                while len(self._in_flight) >= self._max_in_flight:
                    self._room = trio.Event()
                    await self._room.wait()
                try:
                    length = os.readv(self._device, [buffer])
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _GONE:
                        return
                    if error.errno in {errno.ENOENT, errno.EINTR}:  # given up while we read it
                        continue
                    raise
                request = packets.parse_request(buffer)
                self.counters.of(request.opcode).requests += 1
                if request.opcode in packets.UNANSWERED:
                    continue
                if request.opcode == Opcode.INIT:
                    packets.limit_init_request(buffer, length)
                elif self._node_in_handle:
                    packets.put_node_in_handle(buffer, request)
                self._in_flight[request.unique] = (request.opcode, time.perf_counter_ns())
                self.counters.most_in_flight = max(
                    self.counters.most_in_flight, len(self._in_flight)
                )
                await self._send(view[:length])

    async def _send(self, packet: memoryview) -> None:
        while True:
            try:
                self._server.send(packet)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._server)
            else:
                return

    async def _relay_replies(self) -> None:
        buffer = bytearray(packets.BUFFER_BYTES)
        view = memoryview(buffer)
        while True:
            await trio.lowlevel.wait_readable(self._server)
            for _ in range(_BATCH):
                try:
                    length = self._server.recv_into(buffer)
                except BlockingIOError:
                    break
                if length == 0:
                    return
                reply = packets.parse_reply(buffer)
                opcode, started = self._in_flight.pop(reply.unique, (0, 0))
                if opcode == Opcode.INIT:
                    packets.limit_init_reply(buffer, length)
                try:
                    os.write(self._device, view[:length])
                except OSError as error:
                    if error.errno in _GONE:
                        return
                    if error.errno != errno.ENOENT:
                        raise
                    self.counters.lost_replies += 1  # the caller was killed meanwhile
                if opcode:
                    elapsed = time.perf_counter_ns() - started
                    self.counters.answered(opcode, elapsed, error=reply.error)
                self._room.set()
