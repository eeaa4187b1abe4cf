"""What the relay does to FUSE packets."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.channel import packets
from sysfsd.channel.counters import ChannelCounters
from sysfsd.channel.packets import Opcode


def request(opcode: int, node: int, body: bytes = b"") -> bytearray:
    """A request as the kernel writes it: linux/fuse.h, struct fuse_in_header."""
    header = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 7, node, 1000, 1000, 42, 0, 0)
    return bytearray(header + body)


@given(st.binary(min_size=40, max_size=200))
def test_a_header_of_anything_is_read(data: bytes) -> None:
    parsed = packets.parse_request(data)
    assert struct.pack("=IIQQI", *parsed) == data[:28]


def test_a_short_packet_is_an_error() -> None:
    with pytest.raises(struct.error):
        packets.parse_request(b"\0" * 23)
    with pytest.raises(struct.error):
        packets.parse_reply(b"\0" * 15)


@pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.WRITE, Opcode.READDIR, Opcode.READDIRPLUS])
def test_the_node_goes_where_the_handle_is(opcode: Opcode) -> None:
    # struct fuse_read_in and fuse_write_in: fh, offset, size, ...
    packet = request(opcode, 0x123456789, struct.pack("=QQII", 0, 4096, 512, 0))
    packets.put_node_in_handle(packet, packets.parse_request(packet))
    assert struct.unpack_from("=QQII", packet, 40) == (0x123456789, 4096, 512, 0)
    assert packet[:40] == request(opcode, 0x123456789, b"x" * 24)[:40]


@given(st.sampled_from([each for each in Opcode if "READ" not in each.name]))
def test_other_requests_stay_as_they_are(opcode: Opcode) -> None:
    if opcode == Opcode.WRITE:
        return
    packet = request(opcode, 99, b"\0" * 24)
    packets.put_node_in_handle(packet, packets.parse_request(packet))
    assert packet == request(opcode, 99, b"\0" * 24)


def init_request(flags: int, flags2: int, *, long: bool = True) -> bytearray:
    """struct fuse_init_in; before 7.36 it ended after ``flags``."""
    body = struct.pack("=IIII", 7, 45, 131072, flags)
    return request(Opcode.INIT, 0, body + (struct.pack("=I44x", flags2) if long else b""))


@given(flags=st.integers(0, 2**32 - 1), flags2=st.integers(0, 2**32 - 1), long=st.booleans())
def test_init_offers_nothing_that_we_do_not_know(flags: int, flags2: int, long: bool) -> None:
    packet = init_request(flags, flags2, long=long)
    length = len(packet)
    packets.limit_init_request(packet, length)
    major, minor, readahead, seen = struct.unpack_from("=IIII", packet, 40)
    assert (major, minor, readahead) == (7, 45, 131072)
    assert seen == flags & packets.ACCEPTED_FLAGS
    assert not seen & (1 << 22), "FUSE_MAX_PAGES"
    assert not seen & (0b111 << 7), "splice"
    assert not seen & (1 << 30), "FUSE_INIT_EXT"
    if long:
        assert struct.unpack_from("=I", packet, 56) == (0,)
    assert len(packet) == length


def test_zero_message_opens_are_offered() -> None:
    packet = init_request(0xFFFFFFFF, 0xFFFFFFFF)
    packets.limit_init_request(packet, len(packet))
    (seen,) = struct.unpack_from("=I", packet, 52)
    for bit in (12, 13, 17, 24):  # AUTO_INVAL_DATA, DO_READDIRPLUS, NO_OPEN, NO_OPENDIR
        assert seen & (1 << bit)


@given(st.integers(0, 2**32 - 1))
def test_writes_fit_the_buffer(max_write: int) -> None:
    # struct fuse_init_out: major, minor, max_readahead, flags, max_background and
    # congestion_threshold (16 bits each), max_write, time_gran, ...
    body = struct.pack("=IIIIHHII32x", 7, 38, 131072, 0, 12, 9, max_write, 1)
    packet = bytearray(struct.pack("=IiQ", 16 + len(body), 0, 7) + body)
    packets.limit_init_reply(packet, len(packet))
    fields = struct.unpack_from("=IIIIHHII", packet, 16)
    assert fields == (7, 38, 131072, 0, 12, 9, min(max_write, packets.MAX_WRITE), 1)
    assert packets.MAX_WRITE + 4096 <= packets.BUFFER_BYTES


def test_an_init_reply_that_is_an_error_stays_one() -> None:
    packet = bytearray(struct.pack("=IiQ", 16, -71, 7))
    packets.limit_init_reply(packet, len(packet))
    assert packets.parse_reply(packet) == (16, -71, 7)


def test_counters() -> None:
    counters = ChannelCounters()
    for nanoseconds in (1000, 3000):
        counters.of(Opcode.GETATTR).requests += 1
        counters.answered(Opcode.GETATTR, nanoseconds, error=-5 if nanoseconds == 3000 else -38)
    counters.of(4242).requests += 1
    assert counters.as_dict()["requests"] == {
        "getattr": {
            "count": 2,
            "errors": 1,
            "unsupported": 1,
            "mean_us": 2.0,
            "longest_us": 3.0,
        },
        "4242": {"count": 1, "errors": 0, "unsupported": 0, "mean_us": 0.0, "longest_us": 0.0},
    }
