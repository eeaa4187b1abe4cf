"""Facts about a container's disk I/O, per block device, from the v1 or the v2 controller.

What the kernel tells of a cgroup is less than what it tells of a device:

* v2's io.stat has the bytes and the number of reads, writes and discards of a cgroup and all below
  it, counted where a bio is submitted. A device that a bio passes through on its way (a logical
  volume) counts it as well as the disk below; a partition does not, its bios are the disk's.
* v1 counts per policy. ``blkio.throttle.*`` counts bios as they come; since Linux 6.10 only on
  devices on which some cgroup was limited once, because the policy is made with the first limit.
  ``blkio.bfq.*`` counts requests on devices that have that scheduler, and ``blkio.*`` without a
  policy did on those that had CFQ (until Linux 5.0). Only schedulers tell merges and times, bfq's
  with CONFIG_BFQ_CGROUP_DEBUG.

What nobody counts is 0. Sources: the kernel's admin-guide/cgroup-v2.rst ("IO Interface Files"),
admin-guide/cgroup-v1/blkio-controller.rst, block/blk-cgroup.c and block/blk-throttle.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sysfsd.facts.sourced import saturating_sub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sysfsd.facts.host import HostFacts
    from sysfsd.kernel.cgroups import Cgroup, CgroupPaths, CgroupTree, Level

_V1_POLICIES = ("blkio.", "blkio.bfq.", "blkio.throttle.")
"""What stands before the names of the v1 files, by who counts in them."""


class DiskCounters(NamedTuple):
    """What was done on one device so far. Times are nanoseconds."""

    reads: int = 0
    reads_merged: int = 0
    read_bytes: int = 0
    read_ns: int = 0
    writes: int = 0
    writes_merged: int = 0
    written_bytes: int = 0
    write_ns: int = 0
    discards: int = 0
    discards_merged: int = 0
    discarded_bytes: int = 0
    discard_ns: int = 0
    busy_ns: int = 0
    """For how long the device served requests, one after the other."""

    @property
    def moved(self) -> int:
        """All bytes."""
        return self.read_bytes + self.written_bytes + self.discarded_bytes


class Total(NamedTuple):
    """What was done on all disks together, in bytes; disks that are gone still count."""

    read_bytes: int = 0
    written_bytes: int = 0


class RawDisk(NamedTuple):
    """One device's counters as the kernel has them now, and the file that has them."""

    counters: DiskCounters
    source: str


class RawDisks(NamedTuple):
    """What the kernel has now, by device number (``254:0``)."""

    disks: Mapping[str, RawDisk]
    source: str
    """The files, or why there are none."""


class Disk(NamedTuple):
    """One device that the container used."""

    number: str
    """As the kernel writes it: ``major:minor``."""
    name: str
    counters: DiskCounters
    source: str


class DiskFacts(NamedTuple):
    """The devices that a container used, in the order of the host's /proc/diskstats."""

    disks: Sequence[Disk]
    total: Total
    source: str
    """The files, or why there are none."""


class DiskClock(NamedTuple):
    """What a container was shown, and what the kernel had then: replaced by each `advance`."""

    raw: Mapping[str, DiskCounters]
    shown: Mapping[str, DiskCounters]
    total: Total = Total()


START = DiskClock({}, {})
_NOTHING = DiskCounters()


def read_disks(tree: CgroupTree, paths: CgroupPaths) -> RawDisks:
    """Read what the container's cgroup and all below it did; raises OSError if it is gone.

    Where that cgroup counts nothing of its own, nothing is known: an ancestor's count is somebody
    else's, too, and the root's is the host's.
    """
    cgroup = tree.controller(paths, "io" if paths.get("blkio") is None else "blkio")
    own = tree.unified(paths)
    if cgroup is not None and cgroup.version == 2 and own is not None and cgroup.path != own.path:
        return RawDisks({}, f"the io controller is not enabled for {own.source('')}")
    if cgroup is None:
        return RawDisks({}, "no io controller")
    if cgroup.is_root:
        return RawDisks({}, f"what {cgroup.source('')} counts is the host's")
    with cgroup.levels() as levels:
        return (_read_v1 if cgroup.version == 1 else _read_v2)(cgroup, levels[0])


def advance(
    clock: DiskClock, raw: RawDisks, present: Sequence[str], passes_on: Callable[[str], bool]
) -> DiskClock:
    """Return what to show now: it only ever grows, by what the kernel's counters grew by.

    Devices that pass their I/O on to others add nothing to the total, as in the kernel, which
    counts a bio once; `passes_on` is asked about those alone that did something.

    Those do run backwards: v1 forgets what cgroups did that were removed, what a scheduler counted
    that was exchanged, and everything on a write to blkio.reset_stats. A device that is not
    `present` any more is forgotten: another one may get its number.
    """
    before = dict(clock.raw)
    shown = dict(clock.shown)
    sums = clock.total
    for number, disk in raw.disks.items():
        last = before.get(number, _NOTHING)
        total = shown.get(number, _NOTHING)
        grown = DiskCounters(*map(saturating_sub, disk.counters, last))
        shown[number] = DiskCounters(*map(int.__add__, total, grown))
        before[number] = disk.counters
        if any(grown) and number in present and not passes_on(number):
            sums = Total(
                sums.read_bytes + grown.read_bytes, sums.written_bytes + grown.written_bytes
            )
    return DiskClock(
        {number: before[number] for number in present if number in before},
        {number: shown[number] for number in present if number in shown},
        sums,
    )


def disk_facts(clock: DiskClock, raw: RawDisks, host: HostFacts) -> DiskFacts:
    """Give the devices their names, and leave out those that the container never used."""
    return DiskFacts(
        [
            Disk(
                line.number,
                line.name,
                clock.shown[line.number],
                raw.disks[line.number].source if line.number in raw.disks else raw.source,
            )
            for line in host.diskstats
            if any(clock.shown.get(line.number, _NOTHING))
        ],
        clock.total,
        raw.source,
    )


def parse_io_stat(text: str) -> Mapping[str, Mapping[str, int]]:
    """Parse v2's io.stat, lines of ``major:minor key=value …``, to the numbers by device and key.

    Linux 5.15 to 5.18 leave out the line's end after a device that has no numbers.
    """
    devices: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        numbers: dict[str, int] | None = None
        for field in line.split():
            key, equals, value = field.partition("=")
            if not equals:
                numbers = devices.setdefault(field, {}) if _is_device(field) else None
            elif numbers is not None and value.isdecimal():
                numbers[key] = int(value)
    return devices


def parse_rwstat(text: str) -> Mapping[str, Mapping[str, int]]:
    """Parse a v1 file, lines of ``major:minor Operation number``, by device and operation."""
    devices: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and _is_device(fields[0]) and fields[2].isdecimal():
            devices.setdefault(fields[0], {})[fields[1]] = int(fields[2])
    return devices


def _is_device(text: str) -> bool:
    major, colon, minor = text.partition(":")
    return bool(colon) and major.isdecimal() and minor.isdecimal()


def _read_v2(cgroup: Cgroup, own: Level) -> RawDisks:
    source = cgroup.source("io.stat")
    disks = {
        number: RawDisk(
            DiskCounters(
                reads=stat.get("rios", 0),
                read_bytes=stat.get("rbytes", 0),
                writes=stat.get("wios", 0),
                written_bytes=stat.get("wbytes", 0),
                discards=stat.get("dios", 0),
                discarded_bytes=stat.get("dbytes", 0),
            ),
            source,
        )
        for number, stat in parse_io_stat(own.read("io.stat") or "").items()
    }
    return RawDisks(disks, source)


def _read_v1(cgroup: Cgroup, own: Level) -> RawDisks:
    disks: dict[str, RawDisk] = {}
    for policy in _V1_POLICIES:
        source = cgroup.source(f"{policy}io_{{serviced,service_bytes}}_recursive")
        for number, counters in _read_policy(own, policy).items():
            known = disks.get(number)
            # Who has seen more of a device knows better: a limit or a scheduler may be new.
            if known is None or known.counters.moved < counters.moved:
                disks[number] = RawDisk(counters, source)
    return RawDisks(disks, cgroup.source("blkio.{bfq,throttle}.io_service_bytes_recursive"))


def _read_policy(own: Level, policy: str) -> Mapping[str, DiskCounters]:
    served = own.read(f"{policy}io_serviced_recursive")
    if served is None:
        return {}

    def stat(name: str) -> Mapping[str, Mapping[str, int]]:
        return parse_rwstat(own.read(f"{policy}{name}_recursive") or "")

    moved, merged = stat("io_service_bytes"), stat("io_merged")
    service, wait = stat("io_service_time"), stat("io_wait_time")
    nothing: Mapping[str, int] = {}
    disks: dict[str, DiskCounters] = {}
    for number, count in parse_rwstat(served).items():
        size, merges = moved.get(number, nothing), merged.get(number, nothing)
        busy, waited = service.get(number, nothing), wait.get(number, nothing)
        columns = [
            column
            for kind in ("Read", "Write", "Discard")
            for column in (
                count.get(kind, 0),
                merges.get(kind, 0),
                size.get(kind, 0),
                busy.get(kind, 0) + waited.get(kind, 0),
            )
        ]
        columns.append(busy.get("Total", 0))
        disks[number] = DiskCounters(*columns)
    return disks
