"""Events as the kernel writes them, and as it never would."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from sysfsd.kernel import inotify
from sysfsd.kernel.fanotify import (
    FAN_CLOSE_WRITE,
    FAN_NOFD,
    FAN_OPEN,
    FAN_Q_OVERFLOW,
    LOST,
    Event,
    parse_events,
)

RECORD = struct.Struct("=IBBHQii")


def record(
    mask: int = FAN_OPEN,
    fd: int = 7,
    *,
    length: int = RECORD.size,
    version: int = 3,
    header: int = RECORD.size,
    extra: bytes = b"",
) -> bytes:
    return RECORD.pack(length, version, 0, header, mask, fd, 42) + extra


def test_nothing() -> None:
    assert parse_events(b"") == []


def test_bytes_recorded_from_the_kernel() -> None:
    # Linux 6.18, x86-64: process 435 opened a file, wrote and closed it.
    recorded = bytes.fromhex("18000000030018002a0000000000000004000000b3010000")
    assert parse_events(recorded) == [Event(0x2A, 4, 435)]


def test_several_and_what_follows_the_metadata() -> None:
    data = record() + record(FAN_CLOSE_WRITE, 8, length=32, extra=b"x" * 8) + record(fd=9)
    assert [(event.mask, event.fd) for event in parse_events(data)] == [
        (FAN_OPEN, 7),
        (FAN_CLOSE_WRITE, 8),
        (FAN_OPEN, 9),
    ]


def test_overflow() -> None:
    assert parse_events(record(FAN_Q_OVERFLOW, FAN_NOFD)) == [LOST]


def test_cut_short() -> None:
    whole = record() + record(fd=8)
    for size in range(RECORD.size + 1, 2 * RECORD.size):
        assert parse_events(whole[:size]) == [Event(FAN_OPEN, 7, 42), LOST]


def test_lengths_that_make_no_sense() -> None:
    first = Event(FAN_OPEN, 7, 42)
    for bad in (
        record(fd=8, length=0),  # would be read for ever
        record(fd=8, length=RECORD.size - 1),
        record(fd=8, length=RECORD.size + 1),
        record(fd=8, length=0xFFFFFFFF),
        record(fd=8, header=0),
        record(fd=8, header=RECORD.size + 1),
        record(fd=8, version=2),
    ):
        assert parse_events(record() + bad) == [first, LOST]


@given(st.binary(max_size=400))
def test_any_bytes_end(data: bytes) -> None:
    events = parse_events(data)
    assert len(events) <= len(data) // RECORD.size + 1


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.integers(-1, 1 << 30)), max_size=64))
def test_what_was_packed(fields: list[tuple[int, int]]) -> None:
    data = b"".join(record(mask, fd) for mask, fd in fields)
    assert parse_events(data) == [Event(mask, fd, 42) for mask, fd in fields]


class TestNames:
    def test_what_was_packed(self) -> None:
        name = b"x".ljust(16, b"\0")
        data = struct.pack("=iIII", 3, 0x100, 0, 16) + name + struct.pack("=iIII", 4, 0x200, 0, 0)
        assert inotify.parse_events(data) == [(3, 0x100), (4, 0x200)]

    def test_overflow(self) -> None:
        assert inotify.parse_events(struct.pack("=iIII", -1, 0x4000, 0, 0)) == [inotify.LOST]

    def test_cut_short(self) -> None:
        data = struct.pack("=iIII", 3, 0x100, 0, 0xFFFFFFFF) + b"x" * 16
        assert inotify.parse_events(data) == [inotify.LOST]
        assert inotify.parse_events(data[:15]) == [inotify.LOST]

    @given(st.binary(max_size=400))
    def test_any_bytes_end(self, data: bytes) -> None:
        assert len(inotify.parse_events(data)) <= len(data) // 16 + 1
