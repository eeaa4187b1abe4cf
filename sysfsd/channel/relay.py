"""Copies packets between the kernel's device and pyfuse3's end of a socket pair."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import trio

from sysfsd.channel import packets
from sysfsd.channel.packets import Opcode
from sysfsd.channel.turns import Turns
from sysfsd.kernel.procfs import is_killed

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Hashable, Iterator

    from sysfsd.channel.allowance import Allowance
    from sysfsd.channel.counters import ChannelCounters
    from sysfsd.channel.packets import Request

MAX_IN_FLIGHT = 64
"""Requests that pyfuse3 works on at once. Must stay below pyfuse3's 99 worker tasks."""

AT_ONCE = 4
"""Those of them that are of one container, or of one user: others don't wait for more than that."""

MAX_WAITING_BYTES = 32 << 20
_SHED_AT_ONCE = 64
_PACKET_OVERHEAD = 512
"""Bytes of ours for each packet that waits, about: a small one takes no less."""

_BATCH = 32
"""Packets copied before other tasks get their turn."""

_ANSWERS_IN_A_ROW = 4
"""Before what was asked meanwhile is read: that should not take longer than to ask."""

_GONE = frozenset({errno.ENODEV, errno.ECONNABORTED})
"""What reading the device says once the last mount is gone, or the connection was aborted."""


class _InFlight(NamedTuple):
    opcode: int
    started_ns: int
    owner: Hashable
    packet: bytes


class Relay:
    """One mount, or two. ``run`` returns once the (first) one is unmounted.

    ``device`` must be non-blocking. With ``node_in_handle`` READ and WRITE arrive with the node id
    for a file handle: for a file system that answers OPEN with ENOSYS. One that hands out handles
    of its own must not ask for it.

    ``second`` is the device of another mount of the same file system. The kernel remembers an
    ENOSYS per mount, so it may have files that are opened one by one. pyfuse3 serves one mount in a
    process; it gets those requests among the others, with `packets.MARK` in the number of the node.

    A device in ``resumed`` is that of a connection which an earlier process began: pyfuse3 is told
    what the kernel told that one, and the kernel sends again what that one did not answer. Handles
    of the second mount that are not of this ``life`` arrive as nodes.

    ``answer`` is asked before pyfuse3 is, with an opcode and the request as pyfuse3 would get it:
    the data of a reply, or None if it is for pyfuse3. A packet costs a tenth that way. It must be
    quick and raise nothing. The third argument says whether the request has its turn; before that,
    it may answer only what takes no time worth taking turns for. RELEASE is to be answered so: the
    kernel has twelve of them asked at a time (``max_background``), and if they waited for their
    turns, whoever opens and closes much would have ever more open. Whoever got data that way will
    ask for more at once: it is looked for ``looks`` times before we go to sleep, since to be woken
    on another CPU takes longer than to answer.

    ``allowance`` says who has to wait in the second mount.
    """

    def __init__(
        self,
        device: int,
        server: socket.socket,
        counters: ChannelCounters,
        *,
        node_in_handle: bool,
        second: int | None = None,
        resumed: frozenset[int] = frozenset(),
        life: int = 0,
        max_in_flight: int = MAX_IN_FLIGHT,
        at_once: int = AT_ONCE,
        answer: Callable[[int, memoryview, bool], bytes | None] | None = None,
        looks: int = 0,
        allowance: Allowance | None = None,
        is_killed: Callable[[int], bool] = is_killed,
    ) -> None:
        self._device = device
        self._shortcut = answer
        self._looks = looks
        self._looks_left = 0
        self._server = server
        self._second = second
        self._resumed = resumed
        self._life = life
        self._node_in_handle = node_in_handle
        self._agreed = trio.Event()
        self._agreement = b""
        self._max_in_flight = max_in_flight
        self._in_flight: dict[int, _InFlight] = {}
        self._at_once = at_once
        self._waiting = Turns(at_once, allowance)
        self._closed = trio.Event()
        """Somebody waits for the next window of the allowance."""
        self._is_killed = is_killed
        self._asking = -1
        """The thread that asks us whether we are well."""
        self._turns = trio.Event()
        """Somebody may have their turn."""
        self._begun = False
        """What came first has been read."""
        self._at_hand = b""
        """What the event loop is making an answer to."""
        self._unsent: bytes | None = None
        self._stuck = trio.Event()
        self.counters = counters
        self.ended = trio.Event()
        """Set once the kernel's side is gone."""

    @property
    def in_flight(self) -> int:
        """Requests read from the kernel and not answered yet."""
        return len(self._in_flight) + len(self._waiting)

    def ask(self, mountpoint: str) -> bool:
        """Ask the kernel for a mount that we serve; to be done in a thread.

        Returns once the event loop has answered, or False if it is not our mount. Raises
        ``OSError`` if the connection is gone. The relay answers that at once, and not pyfuse3:
        whoever is killed while a request is being answered waits for the answer, and nothing ends
        that (``request_wait_answer``). If that is a thread of the very process which should answer,
        this one never goes, and neither do its lock and its descriptors: no successor would ever
        come in.
        """
        self._asking = threading.get_native_id()
        try:
            # Not stat(2): the kernel knows a directory's attributes by heart.
            os.statvfs(mountpoint)
        except BlockingIOError:
            return True
        return False

    @property
    def oldest_seconds(self) -> float:
        """For how long pyfuse3 has been working on what it has been working on longest."""
        if not self._in_flight:
            return 0
        oldest = next(iter(self._in_flight.values()))
        return (time.perf_counter_ns() - oldest.started_ns) / 1e9

    def overdue(self, seconds: float) -> list[bytes]:
        """What pyfuse3 has worked on for so long; to be asked in any thread."""
        before = time.perf_counter_ns() - int(seconds * 1e9)
        # A copy, made at once: the event loop goes on meanwhile, if it does.
        return [
            asked.packet for asked in list(self._in_flight.values()) if asked.started_ns < before
        ]

    def waiting(self) -> list[bytes]:
        """What is not answered, nor with pyfuse3; to be asked while the event loop stands still."""
        at_hand = self._at_hand
        return [*([at_hand] if at_hand else []), *self._waiting.requests()]

    def unread(self) -> Iterator[bytearray]:
        """Read what the kernel asks the first mount while the event loop stands still."""
        buffer = bytearray(packets.BUFFER_BYTES)
        with contextlib.suppress(OSError):  # nothing more, or nobody any more: the loop will see
            while self._begun:
                length = os.readv(self._device, [buffer])
                yield buffer[:length]

    def take_late(self, packet: bytearray) -> None:
        """Go on with what was `unread`, in the event loop."""
        request = packets.parse_request(packet)
        self._take(self._device, request, memoryview(packet), MAX_IN_FLIGHT)

    def stand_in(self, packet: bytes | bytearray, data: bytes) -> bool:
        """Answer a request of the first mount; pyfuse3's own answer comes too late then.

        In any thread; returns whether anybody still waited for it.
        """
        try:
            os.write(self._device, packets.success(packets.parse_request(packet).unique, data))
        except OSError:  # it has been answered meanwhile, or nobody waits any more
            return False
        self.counters.stood_in += 1
        return True

    def stats(self) -> dict[str, object]:
        """What went through so far."""
        return {**self.counters.as_dict(), "in_flight": self.in_flight}

    async def run(self) -> None:
        """Relay until the file system is unmounted everywhere."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._relay_replies)
            nursery.start_soon(self._send_when_possible)
            nursery.start_soon(self._take_turns)
            nursery.start_soon(self._await_windows)
            if self._second is not None:
                nursery.start_soon(self._relay_second, self._second)
            await self._relay_first()
            self.ended.set()
            nursery.cancel_scope.cancel()

    async def _relay_first(self) -> None:
        if self._device in self._resumed:
            init = packets.init_request()
            self._queue(packets.parse_request(init), memoryview(init), 0)
            await self._agreed.wait()
        await self._each_request(self._device)

    async def _relay_second(self, device: int) -> None:
        await self._agreed.wait()
        await self._each_request(device)

    def _pass_first(self, request: Request, packet: memoryview, position: int) -> None:
        if request.opcode == Opcode.INIT:
            packets.limit_init_request(packet, len(packet))
        elif self._node_in_handle:
            packets.put_node_in_handle(packet, request)
        self._queue(request, packet, position)

    def _pass_second(self, request: Request, packet: memoryview, position: int) -> None:
        marked = packets.mark(packet, request)
        packets.put_node_in_handle(packet, marked, packets.DIRECTORY_BY_HANDLE)
        packets.restore_handle(packet, marked, self._life)
        packets.write_appended_at_start(packet, marked)
        self._queue(marked, packet, position)

    def _answered(self, request: Request, packet: memoryview, its_turn: bool) -> int | None:
        """Answer a request without pyfuse3, if that can be done; returns the ns that it took."""
        if self._shortcut is None:
            return None
        began = time.perf_counter_ns()
        opcode = request.opcode
        if opcode == Opcode.GETATTR:  # what may take a while
            self._at_hand = bytes(packet)
        data = self._shortcut(opcode, packet, its_turn)
        self._at_hand = b""
        if data is None:
            return None
        self._answer(bytearray(packets.success(request.unique, data)))
        self._looks_left = self._looks if data else 0
        elapsed = time.perf_counter_ns() - began
        self.counters.answered(opcode, elapsed, error=0)
        return elapsed

    async def _await_windows(self) -> None:
        """Let those have their turns in the next window who are left in this one."""
        while True:
            await self._closed.wait()
            self.counters.held += 1
            await trio.sleep(self._waiting.seconds_left())
            self._closed = trio.Event()
            self._turns.set()

    async def _each_request(self, device: int) -> None:
        """Take what the kernel asks, until its side is gone."""
        lost = device in self._resumed and not self._send_again(device)
        buffer = bytearray(packets.BUFFER_BYTES)
        view = memoryview(buffer)
        while True:
            await trio.lowlevel.wait_readable(device)
            for position in range(_BATCH):
                try:
                    length = self._read(device, buffer)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _GONE:
                        return
                    if error.errno in {errno.ENOENT, errno.EINTR}:  # given up while we read it
                        continue
                    raise
                request = packets.parse_request(buffer)
                self._begun = True
                if lost and request.opcode != Opcode.INTERRUPT:  # has the number of a lost one
                    lost = False
                    for unique in packets.lost_before(request.unique):
                        self._write(device, packets.refusal(unique, errno.EINTR))
                self._take(device, request, view[:length], position)

    def _take(self, device: int, request: Request, packet: memoryview, position: int) -> None:
        """Take one request; ``position`` is that among those that were there at once."""
        self.counters.of(request.opcode).requests += 1
        if request.opcode == Opcode.INTERRUPT:
            mark = packets.UNIQUE_MARK if device == self._second else 0
            self._interrupt(device, packets.interrupted(packet), mark)
        elif self._is_ours(request, packet):
            # See `ask`: as little time as can be between the two of us.
            self._write(device, packets.refusal(request.unique, errno.EAGAIN))
        elif request.opcode == Opcode.INIT and self._agreed.is_set():
            # Both mounts get what pyfuse3 said to the first, and one that was not told in an
            # earlier life; it would take another for its own.
            reply = bytearray(self._agreement)
            packets.OUT_HEADER.pack_into(reply, 0, len(reply), 0, request.unique)
            self._write(device, reply)
        elif request.opcode in packets.UNANSWERED:
            return
        elif device == self._second:
            self._pass_second(request, packet, position)
        else:
            self._pass_first(request, packet, position)

    def _read(self, device: int, buffer: bytearray) -> int:
        """Read one request; raises ``BlockingIOError`` if there is none, or none soon."""
        looks, self._looks_left = self._looks_left, 0
        for _ in range(looks):
            try:
                return os.readv(device, [buffer])
            except BlockingIOError:
                os.sched_yield()  # to whoever is to ask, if it is on our CPU
        return os.readv(device, [buffer])

    def _is_ours(self, request: Request, packet: memoryview) -> bool:
        return (
            request.opcode == Opcode.STATFS
            and request.uid == 0
            and packets.thread_of(packet) == self._asking
        )

    def _send_again(self, device: int) -> bool:
        """Have the kernel send again what was lost; False if it does not know how to."""
        try:
            os.write(device, packets.resend())
        except OSError as error:
            return error.errno != errno.EINVAL
        return True

    def _interrupt(self, device: int, unique: int, mark: int) -> None:
        """Answer a request that has not had its turn: killed callers are not to wait for it.

        Any signal interrupts a request (``request_wait_answer``), but no other interrupts whoever
        reads procfs: nobody expects EINTR there, and SA_RESTART does not help against a reply.
        """
        packet = self._waiting.get(unique | mark)
        if packet is not None and self._is_killed(packets.thread_of(packet)):
            self._waiting.give_up(unique | mark)
            self._write(device, packets.refusal(unique, errno.EINTR))

    def _queue(self, request: Request, packet: memoryview, position: int) -> None:
        """Answer a request or have it wait for its turn, unless it has that already."""
        its_turn = self._waiting.is_next(request.owner, early=position < self._at_once)
        elapsed = self._answered(request, packet, its_turn)
        if elapsed is not None:
            self._waiting.took(request.owner, elapsed)
            return
        can_go = self._unsent is None and len(self._in_flight) < self._max_in_flight
        if its_turn and can_go and self._waiting.begin(request.owner):
            self._hand_over(request, bytes(packet))
            return
        # What is closed must be, or it would be kept for ever, and before more is opened.
        weight = 0 if request.opcode == Opcode.RELEASE else len(packet) + _PACKET_OVERHEAD
        self._waiting.push(request.owner, request.unique, bytes(packet), weight)
        (self._closed if self._waiting.waits_for_window else self._turns).set()
        while self._waiting.weight > MAX_WAITING_BYTES:
            for unique, _ in self._waiting.shed(_SHED_AT_ONCE):
                self.counters.shed += 1
                self._answer(bytearray(packets.refusal(unique, errno.ENOMEM)))

    async def _take_turns(self) -> None:
        while True:
            await self._turns.wait()
            self._turns = trio.Event()
            self._pass_on()
            await trio.lowlevel.checkpoint()

    def _pass_on(self) -> None:
        """Answer whatever may have its turn, or hand it to pyfuse3."""
        answers = 0
        while self._unsent is None and len(self._in_flight) < self._max_in_flight:
            if answers == _ANSWERS_IN_A_ROW:
                self._turns.set()
                return
            chosen = self._waiting.pop()
            if chosen is None:
                if self._waiting.left:  # whatever the time is by now
                    self._closed.set()
                return
            owner, _, packet = chosen
            request = packets.parse_request(packet)
            elapsed = self._answered(request, memoryview(packet), its_turn=True)
            if elapsed is None:
                self._hand_over(request, packet)
            else:
                self._waiting.done(owner, elapsed)
                answers += 1

    def _hand_over(self, request: Request, packet: bytes) -> None:
        """Have pyfuse3 answer."""
        now = time.perf_counter_ns()
        self._in_flight[request.unique] = _InFlight(request.opcode, now, request.owner, packet)
        self.counters.most_in_flight = max(self.counters.most_in_flight, len(self._in_flight))
        try:
            self._server.send(packet)
        except BlockingIOError:
            self._unsent = packet
            self._stuck.set()

    async def _send_when_possible(self) -> None:
        while True:
            await self._stuck.wait()
            self._stuck = trio.Event()
            while self._unsent is not None:
                await trio.lowlevel.wait_writable(self._server)
                try:
                    self._server.send(self._unsent)
                except BlockingIOError:
                    continue
                self._unsent = None
            self._pass_on()

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
                asked = self._in_flight.pop(reply.unique, None)
                ours = False
                if asked is not None and asked.opcode == Opcode.INIT:
                    packets.limit_init_reply(buffer, length)
                    self._agreement = bytes(view[:length])
                    self._agreed.set()
                    ours = packets.is_ours(reply)
                if not ours and not self._answer(view[:length]):
                    return
                if asked is not None:
                    elapsed = time.perf_counter_ns() - asked.started_ns
                    self.counters.answered(asked.opcode, elapsed, error=reply.error)
                    self._waiting.done(asked.owner)
                    self._pass_on()

    def _answer(self, packet: bytearray | memoryview) -> bool:
        """Answer whichever mount it is; False if the (first) is gone."""
        reply, device = packets.parse_reply(packet), self._device
        if self._second is not None and reply.unique & packets.UNIQUE_MARK:
            packets.unmark(packet, reply)
            device = self._second
        return self._write(device, packet)

    def _write(self, device: int, reply: bytearray | memoryview | bytes) -> bool:
        """Answer the kernel; False if the (first) mount is gone."""
        try:
            os.write(device, reply)
        except OSError as error:
            if error.errno in _GONE and device == self._device:
                return False
            if error.errno not in {errno.ENOENT, *_GONE}:
                raise
            self.counters.lost_replies += 1  # the caller was killed meanwhile
        return True
