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
    from collections.abc import Awaitable, Callable

    from sysfsd.channel.counters import ChannelCounters
    from sysfsd.channel.packets import Request

MAX_IN_FLIGHT = 64
"""Requests that pyfuse3 works on at once. The kernel queues the rest and makes callers wait, so
a container that floods us costs no memory here. Must stay below pyfuse3's 99 worker tasks."""

_BATCH = 32
"""Packets copied before other tasks get their turn."""

_GONE = frozenset({errno.ENODEV, errno.ECONNABORTED})
"""What reading the device says once the last mount is gone, or the connection was aborted."""


class Relay:
    """One mount, or two. ``run`` returns once the (first) one is unmounted.

    ``device`` must be non-blocking. With ``node_in_handle`` READ and WRITE arrive with the node id
    for a file handle: for a file system that answers OPEN with ENOSYS. One that hands out handles
    of its own must not ask for it.

    ``second`` is the device of another mount of the same file system. The kernel remembers an
    ENOSYS per mount, so it may have files that are opened one by one. pyfuse3 serves one mount in a
    process; it gets those requests among the others, with `packets.MARK` in the number of the node.
    """

    def __init__(
        self,
        device: int,
        server: socket.socket,
        counters: ChannelCounters,
        *,
        node_in_handle: bool,
        second: int | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._device = device
        self._server = server
        self._second = second
        self._node_in_handle = node_in_handle
        self._agreed = trio.Event()
        self._agreement = b""
        self._max_in_flight = max_in_flight
        self._in_flight: dict[int, tuple[int, int]] = {}
        self._room = trio.Event()
        self._sending = trio.Lock()
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
            if self._second is not None:
                nursery.start_soon(self._relay_second, self._second)
            await self._relay_requests()
            self.ended.set()
            nursery.cancel_scope.cancel()

    async def _relay_requests(self) -> None:
        async def take(request: Request, packet: memoryview) -> None:
            if request.opcode == Opcode.INIT:
                packets.limit_init_request(packet, len(packet))
            elif self._node_in_handle:
                packets.put_node_in_handle(packet, request)
            await self._pass_on(request, packet)

        await self._each_request(self._device, take)

    async def _relay_second(self, device: int) -> None:
        async def take(request: Request, packet: memoryview) -> None:
            if request.opcode == Opcode.INIT:
                # Both mounts get what pyfuse3 said to the first; it would take another for its own.
                reply = bytearray(self._agreement)
                packets.OUT_HEADER.pack_into(reply, 0, len(reply), 0, request.unique)
                os.write(device, reply)
                return
            marked = packets.mark(packet, request)
            packets.put_node_in_handle(packet, marked, packets.DIRECTORY_BY_HANDLE)
            packets.write_appended_at_start(packet, marked)
            await self._pass_on(marked, packet)

        await self._agreed.wait()
        await self._each_request(device, take)

    async def _each_request(
        self, device: int, take: Callable[[Request, memoryview], Awaitable[None]]
    ) -> None:
        """Take what the kernel asks and waits for, until its side is gone."""
        buffer = bytearray(packets.BUFFER_BYTES)
        view = memoryview(buffer)
        while True:
            await trio.lowlevel.wait_readable(device)
            for _ in range(_BATCH):
                while len(self._in_flight) >= self._max_in_flight:
                    if self._room.is_set():
                        self._room = trio.Event()
                    await self._room.wait()
                try:
                    length = os.readv(device, [buffer])
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
                if request.opcode not in packets.UNANSWERED:
                    await take(request, view[:length])

    async def _pass_on(self, request: Request, packet: memoryview) -> None:
        self._in_flight[request.unique] = (request.opcode, time.perf_counter_ns())
        self.counters.most_in_flight = max(self.counters.most_in_flight, len(self._in_flight))
        await self._send(packet)

    async def _send(self, packet: memoryview) -> None:
        async with self._sending:  # only one task may wait for a socket
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
                    self._agreement = bytes(view[:length])
                    self._agreed.set()
                device = self._device
                if self._second is not None and reply.unique & packets.MARK:
                    packets.unmark(buffer, reply)
                    device = self._second
                try:
                    os.write(device, view[:length])
                except OSError as error:
                    if error.errno in _GONE and device == self._device:
                        return
                    if error.errno not in {errno.ENOENT, *_GONE}:
                        raise
                    self.counters.lost_replies += 1  # the caller was killed meanwhile
                if opcode:
                    elapsed = time.perf_counter_ns() - started
                    self.counters.answered(opcode, elapsed, error=reply.error)
                self._room.set()
