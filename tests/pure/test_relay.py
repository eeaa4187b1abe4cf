"""The relay between two socket pairs: one stands for the kernel's device, one for pyfuse3's end."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from sysfsd.channel import packets
from sysfsd.channel.counters import ChannelCounters
from sysfsd.channel.packets import Opcode
from sysfsd.channel.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Ends:
    """Who talks through the relay."""

    def __init__(self) -> None:
        self.kernel, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.relays, self.server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self.device, self.relays, self.server):
            end.setblocking(False)

    def ask(self, opcode: Opcode, unique: int, body: bytes = b"") -> None:
        header = struct.pack("=IIQQ16x", 40 + len(body), opcode, unique, 5)
        self.kernel.send(header + body)

    def answer(self, unique: int, error: int = 0) -> None:
        self.server.send(struct.pack("=IiQ", 16, error, unique))

    async def heard(self, end: socket.socket) -> bytes:
        with trio.fail_after(20):
            await trio.lowlevel.wait_readable(end)
        return end.recv(200_000)

    def close(self) -> None:
        for end in (self.kernel, self.device, self.relays, self.server):
            end.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def relay(
    ends: Ends,
    *,
    node_in_handle: bool = True,
    room: int = 4,
    killed: int = 0,
    answer: Callable[[int, memoryview, bool], bytes | None] | None = None,
    looks: int = 0,
) -> Relay:
    return Relay(
        ends.device.fileno(),
        ends.relays,
        ChannelCounters(),
        node_in_handle=node_in_handle,
        max_in_flight=room,
        at_once=room,
        answer=answer,
        looks=looks,
        is_killed=lambda thread: thread == killed,
    )


async def quiet(end: socket.socket) -> bool:
    """Whether nothing arrives while everybody else gets to run."""
    for _ in range(20):
        await trio.testing.wait_all_tasks_blocked()
    try:
        end.recv(1)
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize(("node_in_handle", "handle"), [(True, 5), (False, 77)])
async def test_there_and_back(
    ends: Ends, nursery: trio.Nursery, node_in_handle: bool, handle: int
) -> None:
    one = relay(ends, node_in_handle=node_in_handle)
    nursery.start_soon(one.run)
    ends.ask(Opcode.READ, 9, struct.pack("=QQII", 77, 0, 512, 0))
    request = await ends.heard(ends.server)
    assert struct.unpack_from("=IIQQ", request) == (64, Opcode.READ, 9, 5)
    assert struct.unpack_from("=Q", request, 40) == (handle,)
    assert one.in_flight == 1
    ends.answer(9, error=-5)
    assert await ends.heard(ends.kernel) == struct.pack("=IiQ", 16, -5, 9)
    assert one.in_flight == 0
    counted = one.counters.of(Opcode.READ)
    assert (counted.requests, counted.errors) == (1, 1)
    assert counted.total_ns > 0


async def test_what_is_not_supported_is_no_error(ends: Ends, nursery: trio.Nursery) -> None:
    one = relay(ends)
    nursery.start_soon(one.run)
    ends.ask(Opcode.OPENDIR, 1)
    await ends.heard(ends.server)
    ends.answer(1, error=-errno.ENOSYS)
    await ends.heard(ends.kernel)
    counted = one.counters.of(Opcode.OPENDIR)
    assert (counted.requests, counted.errors, counted.unsupported) == (1, 0, 1)


async def test_requests_without_a_reply_go_no_further(ends: Ends, nursery: trio.Nursery) -> None:
    one = relay(ends)
    nursery.start_soon(one.run)
    for opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
        ends.ask(opcode, 1, bytes(8))
    ends.ask(Opcode.GETATTR, 2)
    assert struct.unpack_from("=IIQ", await ends.heard(ends.server))[1:] == (Opcode.GETATTR, 2)
    assert one.counters.of(Opcode.FORGET).requests == 1
    assert one.in_flight == 1


async def test_no_more_than_so_many_at_once(ends: Ends, nursery: trio.Nursery) -> None:
    one = relay(ends, room=2)
    nursery.start_soon(one.run)
    for unique in (1, 2, 3):
        ends.ask(Opcode.GETATTR, unique)
    await ends.heard(ends.server)
    await ends.heard(ends.server)
    assert await quiet(ends.server)
    assert one.counters.most_in_flight == 2
    assert one.in_flight == 3
    ends.answer(2)
    await ends.heard(ends.kernel)
    assert struct.unpack_from("=IIQ", await ends.heard(ends.server))[2] == 3
    assert one.counters.most_in_flight == 2


async def test_many_more_than_a_socket_holds(ends: Ends, nursery: trio.Nursery) -> None:
    """pyfuse3 does not read for a while: nothing is lost and nothing is out of order."""
    one = relay(ends, room=1000)
    nursery.start_soon(one.run)

    async def ask() -> None:
        for unique in range(1, 301):
            await trio.lowlevel.wait_writable(ends.kernel)
            ends.ask(Opcode.WRITE, unique, bytes(4000))

    with trio.fail_after(20):
        async with trio.open_nursery() as asking:
            asking.start_soon(ask)
            for unique in range(1, 301):
                assert struct.unpack_from("=IIQ", await ends.heard(ends.server))[2] == unique
    assert one.in_flight == 300


async def test_notifications_pass(ends: Ends, nursery: trio.Nursery) -> None:
    one = relay(ends)
    nursery.start_soon(one.run)
    ends.server.send(struct.pack("=IiQ", 16, 7, 0))
    assert await ends.heard(ends.kernel) == struct.pack("=IiQ", 16, 7, 0)
    assert one.in_flight == 0


async def test_a_second_mount_goes_through_the_same_end(ends: Ends, nursery: trio.Nursery) -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        kernel.setblocking(False)
        device.setblocking(False)
        one = Relay(
            ends.device.fileno(),
            ends.relays,
            ChannelCounters(),
            node_in_handle=True,
            second=device.fileno(),
        )
        nursery.start_soon(one.run)
        # The second is initialised with what was agreed on for the first, and not before.
        kernel.send(struct.pack("=IIQQ16x", 56, Opcode.INIT, 2, 0) + bytes(16))
        assert await quiet(kernel)
        ends.ask(Opcode.INIT, 2, bytes(64))
        await ends.heard(ends.server)
        agreed = struct.pack("=IiQ", 80, 0, 2) + bytes(range(64))
        ends.server.send(agreed)
        assert await ends.heard(ends.kernel) == await ends.heard(kernel)

        # The same numbers in both mounts are told apart, and appending is writing.
        ends.ask(Opcode.GETATTR, 4)
        body = struct.pack(
            "=QQIIQII", 1 << 63 | 1 << 62 | 7, 3, 2, 0, 0, os.O_WRONLY | os.O_APPEND, 0
        )
        kernel.send(struct.pack("=IIQQ16x", 80, Opcode.WRITE, 4, 5) + body)
        asked = sorted([await ends.heard(ends.server), await ends.heard(ends.server)], key=len)
        assert struct.unpack_from("=IIQQ", asked[0])[2:] == (4, 5)
        assert struct.unpack_from("=IIQQ", asked[1])[2:] == (1 << 62 | 4, 1 << 63 | 5)
        assert struct.unpack_from("=QQ", asked[1], 40) == (1 << 63 | 1 << 62 | 7, 0)
        ends.answer(1 << 62 | 4, error=-22)
        assert await ends.heard(kernel) == struct.pack("=IiQ", 16, -22, 4)
        ends.answer(4)
        assert await ends.heard(ends.kernel) == struct.pack("=IiQ", 16, 0, 4)
        assert one.in_flight == 0


async def test_what_a_second_mount_closes_waits_for_no_turn(
    ends: Ends, nursery: trio.Nursery
) -> None:
    """Or who opens and closes much, among many, would have ever more open."""
    closed: list[int] = []

    def answer(opcode: int, packet: memoryview, _alone: bool) -> bytes | None:
        if opcode != Opcode.RELEASE:
            return None
        closed.append(packets.parse_handle(packet))
        return b""

    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        kernel.setblocking(False)
        device.setblocking(False)
        one = Relay(
            ends.device.fileno(),
            ends.relays,
            ChannelCounters(),
            node_in_handle=True,
            second=device.fileno(),
            max_in_flight=1,
            answer=answer,
        )
        nursery.start_soon(one.run)
        ends.ask(Opcode.INIT, 2, bytes(64))
        await ends.heard(ends.server)
        ends.server.send(struct.pack("=IiQ", 80, 0, 2) + bytes(64))
        await ends.heard(ends.kernel)
        for unique in (4, 6):  # one is at work, one waits
            ends.ask(Opcode.GETATTR, unique)
        await ends.heard(ends.server)
        handle = 1 << 63 | packets.handle_of(0, 7)
        body = struct.pack("=QIIQ", handle, 0, 0, 0)
        kernel.send(struct.pack("=IIQQ16x", 64, Opcode.RELEASE, 4, 5) + body)
        assert await ends.heard(kernel) == struct.pack("=IiQ", 16, 0, 4)
        assert closed == [handle]
        assert one.in_flight == 2


async def test_a_connection_that_another_process_began(ends: Ends, nursery: trio.Nursery) -> None:
    one = Relay(
        ends.device.fileno(),
        ends.relays,
        ChannelCounters(),
        node_in_handle=True,
        resumed=frozenset({ends.device.fileno()}),
    )
    nursery.start_soon(one.run)
    # pyfuse3 is told what the kernel told the other, and the kernel hears nothing of that.
    init = await ends.heard(ends.server)
    length, opcode, unique = struct.unpack_from("=IIQ", init)
    assert (length, opcode) == (len(init), Opcode.INIT)
    assert await quiet(ends.kernel)
    agreed = struct.pack("=IiQ", 80, 0, unique) + bytes([7] * 20) + bytes(44)
    ends.server.send(agreed)
    assert await ends.heard(ends.kernel) == struct.pack("=IiQ", 16, 7, 0)  # FUSE_NOTIFY_RESEND
    # An INIT that the other did not answer gets what was agreed on.
    again = 1 << 63 | 2
    ends.ask(Opcode.INIT, again, bytes(64))
    answer = await ends.heard(ends.kernel)
    assert struct.unpack_from("=IiQ", answer) == (80, 0, again)
    assert answer[16:] == agreed[16:]
    # And so do all other requests that the kernel sends again.
    ends.ask(Opcode.GETATTR, 1 << 63 | 4)
    assert struct.unpack_from("=IIQQ", await ends.heard(ends.server))[2:] == (1 << 63 | 4, 5)
    ends.answer(1 << 63 | 4)
    assert await ends.heard(ends.kernel) == struct.pack("=IiQ", 16, 0, 1 << 63 | 4)
    assert one.in_flight == 0


async def test_a_kernel_that_cannot_send_again(
    ends: Ends, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.9. A socket takes any packet: only this can stand for such a kernel."""
    write, refused = os.write, []

    def as_before(fd: int, data: bytes) -> int:
        error, unique = struct.unpack_from("=iQ", data, 4)
        if fd == ends.device.fileno() and unique == 0:
            raise OSError(errno.EINVAL, "Invalid argument")
        if fd == ends.device.fileno() and error == -errno.EINTR:
            refused.append(unique)
            raise OSError(errno.ENOENT, "nobody waits for that one")
        return write(fd, data)

    monkeypatch.setattr(os, "write", as_before)
    one = Relay(
        ends.device.fileno(),
        ends.relays,
        ChannelCounters(),
        node_in_handle=True,
        resumed=frozenset({ends.device.fileno()}),
    )
    nursery.start_soon(one.run)
    (unique,) = struct.unpack_from("=Q", await ends.heard(ends.server), 8)
    ends.server.send(struct.pack("=IiQ", 80, 0, unique) + bytes(64))
    ends.ask(Opcode.GETATTR, 100)
    assert struct.unpack_from("=IIQ", await ends.heard(ends.server))[2] == 100
    assert refused == list(range(2, 100, 2))
    ends.answer(100)
    assert await ends.heard(ends.kernel) == struct.pack("=IiQ", 16, 0, 100)


async def test_one_that_asks_much_comes_not_before_one_that_asks_little(
    ends: Ends, nursery: trio.Nursery
) -> None:
    nursery.start_soon(relay(ends, room=2).run)
    for unique in range(2, 100, 2):
        ends.kernel.send(struct.pack("=IIQQ16x", 40, Opcode.GETATTR, unique, 1 << 32 | 7))
    await ends.heard(ends.server)
    await ends.heard(ends.server)
    await trio.testing.wait_all_tasks_blocked()
    ends.kernel.send(struct.pack("=IIQQ16x", 40, Opcode.GETATTR, 100, 2 << 32 | 7))
    await trio.testing.wait_all_tasks_blocked()
    ends.answer(2)
    assert struct.unpack_from("=IIQ", await ends.heard(ends.server))[2] == 100


async def test_only_the_first_of_many_are_answered_before_others_are_heard(
    ends: Ends, nursery: trio.Nursery
) -> None:
    """Or who asks a thousand things at once would keep all others waiting for them."""
    asked: list[tuple[int, bool]] = []

    def answer(opcode: int, packet: memoryview, its_turn: bool) -> bytes | None:
        request = packets.parse_request(packet)
        assert opcode == request.opcode == Opcode.OPEN
        asked.append((request.unique, its_turn))
        return packets.opened(7) if its_turn else None

    one = relay(ends, room=2, answer=answer)
    for unique in range(2, 26, 2):
        ends.ask(Opcode.OPEN, unique, struct.pack("=II", 0, 0))
    other = 100
    ends.kernel.send(struct.pack("=IIQQ16x", 48, Opcode.OPEN, other, 2 << 32 | 7) + bytes(8))
    nursery.start_soon(one.run)
    answered: list[int] = []
    for _ in range(13):
        reply = await ends.heard(ends.kernel)
        # struct fuse_open_out: fh, open_flags (FOPEN_DIRECT_IO), backing_id.
        assert reply[16:] == struct.pack("=QIi", 7, 1, 0)
        answered += struct.unpack_from("=Q", reply, 8)
    assert sorted(answered) == [*range(2, 26, 2), other]
    # Two at once; then all were read, and they took turns.
    assert asked[:2] == [(2, True), (4, True)]
    assert asked[2:13] == [(unique, False) for unique in [*range(6, 26, 2), other]]
    assert answered.index(other) <= 3
    assert one.in_flight == 0


async def test_what_is_for_pyfuse3_waits_for_its_turn(ends: Ends, nursery: trio.Nursery) -> None:
    one = relay(ends, room=1, answer=lambda *_: None)
    nursery.start_soon(one.run)
    for unique in (2, 4):
        ends.ask(Opcode.OPEN, unique, struct.pack("=II", 0, 0))
    assert struct.unpack_from("=IIQ", await ends.heard(ends.server))[2] == 2
    assert await quiet(ends.server)
    assert one.in_flight == 2
    ends.answer(2)
    assert struct.unpack_from("=IIQ", await ends.heard(ends.server))[2] == 4


@pytest.mark.parametrize(("data", "looked"), [(b"some", 4), (b"", 1)])
async def test_whoever_got_data_is_expected_to_ask_for_more(
    ends: Ends, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, data: bytes, looked: int
) -> None:
    """So many times it is looked for another request, before anybody else has the CPU."""
    reads: list[bool] = []
    readv = os.readv

    def counting(fd: int, buffers: list[bytearray]) -> int:
        reads.append(False)
        length = readv(fd, buffers)
        reads[-1] = True
        return length

    monkeypatch.setattr(os, "readv", counting)
    nursery.start_soon(relay(ends, answer=lambda *_: data, looks=3).run)
    ends.ask(Opcode.READ, 2, struct.pack("=QQII", 77, 0, 512, 0))
    assert (await ends.heard(ends.kernel))[16:] == data
    await trio.testing.wait_all_tasks_blocked()
    assert reads == [True] + looked * [False]


async def test_who_is_killed_while_waiting_is_let_go(ends: Ends, nursery: trio.Nursery) -> None:
    one = relay(ends, room=1, killed=7)
    nursery.start_soon(one.run)
    for unique, thread in ((2, 7), (4, 7), (6, 8)):
        header = struct.pack("=IIQQIIII", 64, Opcode.READ, unique, 5, 0, 0, thread, 0)
        ends.kernel.send(header + bytes(24))
    await ends.heard(ends.server)
    # Any other signal: it waits on, as whoever reads procfs does.
    ends.kernel.send(struct.pack("=IIQQ16xQ", 48, Opcode.INTERRUPT, 7, 0, 6))
    ends.kernel.send(struct.pack("=IIQQ16xQ", 48, Opcode.INTERRUPT, 5, 0, 4))
    assert await ends.heard(ends.kernel) == struct.pack("=IiQ", 16, -errno.EINTR, 4)
    # What is being worked on is answered, and nothing is handed on that was given up.
    ends.kernel.send(struct.pack("=IIQQ16xQ", 48, Opcode.INTERRUPT, 3, 0, 2))
    ends.answer(2)
    assert await ends.heard(ends.kernel) == struct.pack("=IiQ", 16, 0, 2)
    assert struct.unpack_from("=IIQ", await ends.heard(ends.server))[2] == 6
    ends.answer(6)
    assert await ends.heard(ends.kernel) == struct.pack("=IiQ", 16, 0, 6)
    assert one.in_flight == 0


async def test_what_waits_is_bounded_and_costs_nobody_else(
    ends: Ends, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysfsd.channel.relay.MAX_WAITING_BYTES", 100_000)
    one = relay(ends, room=1)
    nursery.start_soon(one.run)
    refused = set()
    for unique in range(2, 202, 2):
        body = struct.pack("=IIQQ16x", 4040, Opcode.WRITE, unique, 1 << 32 | 7) + bytes(4000)
        ends.kernel.send(body)
        await trio.testing.wait_all_tasks_blocked()
    ends.kernel.send(struct.pack("=IIQQ16x", 64, Opcode.RELEASE, 300, 1 << 32 | 7) + bytes(24))
    ends.kernel.send(struct.pack("=IIQQ16x", 40, Opcode.GETATTR, 302, 2 << 32 | 7))
    await trio.testing.wait_all_tasks_blocked()
    assert one.in_flight < 100_000 // 4000 + 3
    while True:
        try:
            _, error, unique = struct.unpack("=IiQ", ends.kernel.recv(100))
        except BlockingIOError:
            break
        assert error == -errno.ENOMEM
        refused.add(unique)
    assert len(refused) + one.in_flight == 102
    assert not refused & {2, 4, 300, 302}
    # And the other's turn is the next.
    assert struct.unpack_from("=IIQ", await ends.heard(ends.server))[2] == 2
    ends.answer(2)
    assert struct.unpack_from("=IIQ", await ends.heard(ends.server))[2] == 302


async def test_handles_of_an_earlier_life_arrive_as_nodes(
    ends: Ends, nursery: trio.Nursery
) -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        kernel.setblocking(False)
        device.setblocking(False)
        one = Relay(
            ends.device.fileno(),
            ends.relays,
            ChannelCounters(),
            node_in_handle=True,
            second=device.fileno(),
            resumed=frozenset({ends.device.fileno(), device.fileno()}),
            life=7,
        )
        nursery.start_soon(one.run)
        (unique,) = struct.unpack_from("=Q", await ends.heard(ends.server), 8)
        ends.server.send(struct.pack("=IiQ", 80, 0, unique) + bytes(64))
        assert await ends.heard(kernel) == struct.pack("=IiQ", 16, 7, 0)
        node = 1 << 63 | 3 << 32 | 9
        for life, expected in ((6, node), (7, 1 << 63 | packets.handle_of(7, 5))):
            handle = 1 << 63 | packets.handle_of(life, 5)
            body = struct.pack("=QQII", handle, 0, 512, 0)
            kernel.send(struct.pack("=IIQQ16x", 64, Opcode.READ, 2 * life, 3 << 32 | 9) + body)
            asked = await ends.heard(ends.server)
            assert struct.unpack_from("=QQ", asked, 16)[0] == node
            assert struct.unpack_from("=Q", asked, 40) == (expected,)
