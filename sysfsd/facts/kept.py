"""Counters that outlive the daemon, as bytes: pure.

A slot holds what one container's counters were at some moment, and whose they are: a process that
is known for certain by its pid, its start and the boot (pids come back, and so may a state
directory that is on a disk). Whatever is not exactly that is a ``ValueError``, and its counters
begin anew.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from sysfsd.facts.cpuclock import CpuClock, CpuTimes, CpuUsage
from sysfsd.facts.disk import DiskClock, DiskCounters, Total
from sysfsd.facts.load import INTERVAL_SECONDS, Averages, KeptLoad

MAX_CPUS = 8192
"""More than any kernel is built for (NR_CPUS)."""

MAX_DISKS = 4096
"""That one container used: more are not kept."""

_MAGIC = b"sysfsdC2"
_HEAD = struct.Struct("<8sIIQ16sQQBBB5x")
"""Magic, CRC of all behind it, bytes in all, sequence, boot, pid, start; has clock? load? disks?"""
_CHECKED = struct.Struct("<8sI").size
_CLOCK = struct.Struct("<6Q")
_CPU = struct.Struct("<3Q")
_LOAD = struct.Struct("<5Q")
_DISKS = struct.Struct("<3Q")
_COUNTERS = len(DiskCounters._fields)
_DISK = struct.Struct(f"<II{_COUNTERS}Q{_COUNTERS}Q")
"""Major and minor number, what the kernel had, what was shown."""

HEAD_BYTES = _HEAD.size
MAX_BYTES = (
    HEAD_BYTES
    + _CLOCK.size
    + MAX_CPUS * _CPU.size
    + _LOAD.size
    + _DISKS.size
    + MAX_DISKS * _DISK.size
)
"""Of a slot."""

_SAMPLE_AHEAD_NS = INTERVAL_SECONDS * 1_000_000_000
"""A sample counts for the period that it is nearest to, which may end a little later."""


class Init(NamedTuple):
    """The process that a container's counters belong to."""

    boot: bytes
    """The boot's id: 16 bytes."""
    pid: int
    start_ticks: int


class Kept(NamedTuple):
    """A container's counters at some moment; None for those that nobody has asked for yet."""

    clock: CpuClock | None = None
    load: KeptLoad | None = None
    disks: DiskClock | None = None


def encode(init: Init, sequence: int, kept: Kept) -> bytes:
    """Write a slot; raises ``ValueError`` for numbers that no counter reaches."""
    try:
        body = b"".join(
            (_encode_clock(kept.clock), _encode_load(kept.load), _encode_disks(kept.disks))
        )
        size = _HEAD.size + len(body)
        has = (part is not None for part in kept)
        head = _HEAD.pack(_MAGIC, 0, size, sequence, init.boot, init.pid, init.start_ticks, *has)
    except struct.error as error:
        raise ValueError(str(error)) from None
    crc = zlib.crc32(body, zlib.crc32(head[_CHECKED:]))
    return b"".join((_MAGIC, struct.pack("<I", crc), head[_CHECKED:], body))


def length(head: bytes) -> int:
    """Return how many bytes a slot has that begins with these; raises ``ValueError``."""
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        raise ValueError("no counters of ours")
    size: int = _HEAD.unpack_from(head)[2]
    if not _HEAD.size <= size <= MAX_BYTES:
        raise ValueError(f"no slot has {size} bytes")
    return size


def decode(data: bytes, init: Init, now: int) -> tuple[int, Kept]:
    """Return sequence and counters of a slot of this process, as of `now` (ns since boot).

    Raises ``ValueError``: cut short, torn, somebody else's, or from the future.
    """
    size = length(data)
    _, crc, _, sequence, boot, pid, start, *has = _HEAD.unpack_from(data)
    if len(data) < size or zlib.crc32(data[_CHECKED:size]) != crc:
        raise ValueError("torn or damaged")
    if Init(boot, pid, start) != init:
        raise ValueError("the counters of another process")
    has_clock, has_load, has_disks = has
    rest = _Rest(data[:size], _HEAD.size)
    try:
        clock = _decode_clock(rest) if has_clock else None
        load = _decode_load(rest) if has_load else None
        disks = _decode_disks(rest) if has_disks else None
    except struct.error as error:
        raise ValueError(str(error)) from None
    if rest.at != size:
        raise ValueError("its parts are not its whole")
    # A clock that is ahead would stand still until its time has come.
    if clock is not None and clock.now > now:
        raise ValueError("a clock of the future")
    if load is not None and load.sampled > now + _SAMPLE_AHEAD_NS:
        raise ValueError("a load of the future")
    return sequence, Kept(clock, load, disks)


class _Rest:
    """What of a slot has not been read yet."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def take(self, layout: struct.Struct) -> tuple[int, ...]:
        """Read one; raises ``struct.error`` if there is less."""
        numbers = layout.unpack_from(self._data, self.at)
        self.at += layout.size
        return numbers

    def take_many(self, layout: struct.Struct, count: int) -> list[tuple[int, ...]]:
        """Read some; raises ``struct.error`` if there are less."""
        # No count that a slot has no room for is believed.
        if count > (len(self._data) - self.at) // layout.size:
            raise struct.error("cut short")
        return [self.take(layout) for _ in range(count)]


def _decode_clock(rest: _Rest) -> CpuClock:
    moment, user, system, carry_user, carry_system, count = rest.take(_CLOCK)
    return CpuClock(
        moment,
        CpuUsage(user, system),
        CpuUsage(carry_user, carry_system),
        tuple(CpuTimes(*times) for times in rest.take_many(_CPU, count)),
    )


def _decode_load(rest: _Rest) -> KeptLoad:
    one, five, fifteen, last_pid, sampled = rest.take(_LOAD)
    return KeptLoad(Averages(one, five, fifteen), last_pid, sampled)


def _decode_disks(rest: _Rest) -> DiskClock:
    read, written, count = rest.take(_DISKS)
    raw, shown = {}, {}
    for major, minor, *counters in rest.take_many(_DISK, count):
        number = f"{major}:{minor}"
        raw[number] = DiskCounters(*counters[:_COUNTERS])
        shown[number] = DiskCounters(*counters[_COUNTERS:])
    return DiskClock(raw, shown, Total(read, written))


def _encode_clock(clock: CpuClock | None) -> bytes:
    if clock is None:
        return b""
    if len(clock.cpus) > MAX_CPUS:
        raise ValueError("more CPUs than any kernel has")
    numbers = [number for cpu in clock.cpus for number in cpu]
    return _CLOCK.pack(clock.now, *clock.usage, *clock.carry, len(clock.cpus)) + struct.pack(
        f"<{len(numbers)}Q", *numbers
    )


def _encode_load(load: KeptLoad | None) -> bytes:
    return b"" if load is None else _LOAD.pack(*load.averages, load.last_pid, load.sampled)


def _encode_disks(disks: DiskClock | None) -> bytes:
    if disks is None:
        return b""
    if len(disks.shown) > MAX_DISKS:
        raise ValueError("more disks than are kept")
    lines = [
        _DISK.pack(*map(int, number.split(":")), *disks.raw[number], *shown)
        for number, shown in disks.shown.items()
    ]
    return b"".join((_DISKS.pack(*disks.total, len(lines)), *lines))
