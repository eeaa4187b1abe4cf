"""Typed readers for the files of procfs that the rest of sysfsd needs.

Nothing here decides anything: text goes in, values come out. The functions that read take the
directory where procfs is mounted, so that tests can hand them a recorded tree.

``cmdline``, ``environ`` and ``exe`` of a process are never read: a container can make those reads
block for as long as it likes (they need the process's memory map).
"""

from __future__ import annotations

import fcntl
import os
import signal
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_FILE_BYTES = 4 << 20
_ENDED = frozenset("ZX")
"""No file of procfs or cgroupfs is read beyond this; /proc/cpuinfo of 1024 CPUs is about 2 MiB."""

NS_GET_PID_FROM_PIDNS = 0x8004B706
"""_IOR(NSIO, 0x6, int) of linux/nsfs.h (kernel 6.11): a pid of that namespace, in the caller's."""


class MeminfoLine(NamedTuple):
    """One line of /proc/meminfo: ``name: value unit``; the unit is ``kB`` or empty (a count)."""

    name: str
    value: int
    unit: str


class DiskLine(NamedTuple):
    """What one line of /proc/diskstats or /proc/partitions is about."""

    number: str
    """``major:minor``."""
    name: str
    columns: int
    """How many numbers follow the name in diskstats: more with each kind of request (4.18, 5.5)."""
    text: str
    """The line itself."""


class TaskStat(NamedTuple):
    """The two fields of /proc/<tid>/stat that a load average needs."""

    state: str
    """One letter, as in proc_pid_stat(5): R running, D in uninterruptible sleep, ..."""
    start_ticks: int
    """When the task was made, in clock ticks since boot."""


def read_fd(fd: int, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a descriptor to its end, or to `limit` bytes; seq_files hand out a page at a time."""
    chunks: list[bytes] = []
    size = 0
    while size < limit:
        chunk = os.read(fd, min(limit - size, 1 << 16))
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def read_text(path: str, *, dir_fd: int | None = None, limit: int = MAX_FILE_BYTES) -> str:
    """Read one kernel file as text, at most `limit` bytes, without following a final symlink.

    Raises OSError as open(2) and read(2) do. Bytes that are not UTF-8 come out as U+FFFD.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return read_fd(fd, limit).decode("utf-8", "replace")
    finally:
        os.close(fd)


def parse_meminfo(text: str) -> tuple[MeminfoLine, ...]:
    """Parse /proc/meminfo, in the order of the file; lines of another shape are left out."""
    lines: list[MeminfoLine] = []
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        fields = rest.split()
        if colon and fields and fields[0].isdecimal():
            lines.append(MeminfoLine(name, int(fields[0]), fields[1] if len(fields) > 1 else ""))
    return tuple(lines)


def parse_diskstats(text: str) -> tuple[DiskLine, ...]:
    """Parse /proc/diskstats: ``major minor name numbers…``; lines of another shape are left out."""
    lines: list[DiskLine] = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 14 and fields[0].isdecimal() and fields[1].isdecimal():
            number = f"{fields[0]}:{fields[1]}"
            lines.append(DiskLine(number, fields[2], len(fields) - 3, line))
    return tuple(lines)


def parse_partitions(text: str) -> tuple[DiskLine, ...]:
    """Parse /proc/partitions: ``major minor blocks name``; lines of another shape are left out."""
    lines: list[DiskLine] = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[0].isdecimal() and fields[1].isdecimal():
            lines.append(DiskLine(f"{fields[0]}:{fields[1]}", fields[3], 0, line))
    return tuple(lines)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Parse the kernel's list format (``0-3,7``; cpuset(7), FORMATS) into sorted CPU numbers.

    Raises ValueError for anything else. Empty text is the empty set.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high < 1 << 16:
            raise ValueError(f"not a list of CPUs: {text.strip()!r}")
        cpus.update(range(low, high + 1))
    return tuple(sorted(cpus))


def format_cpu_range(count: int) -> str:
    """Format the CPUs 0 to `count` - 1 as the kernel prints a list: ``0`` or ``0-7``."""
    return "0" if count <= 1 else f"0-{count - 1}"


def format_cpu_list(cpus: Iterable[int]) -> str:
    """Format a set of numbers in the kernel's list format, sorted: ``0-3,7``; empty for none."""
    parts: list[str] = []
    ordered = sorted(set(cpus))
    start = 0
    for at, number in enumerate(ordered):
        if at + 1 == len(ordered) or ordered[at + 1] != number + 1:
            parts.append(f"{ordered[start]}-{number}" if at > start else str(number))
            start = at + 1
    return ",".join(parts)


def format_cpu_mask(cpus: Iterable[int], count: int) -> str:
    """Format a set of CPUs below `count` as the kernel prints a mask of so many bits.

    Hexadecimal, in words of 32 bits with commas between them, the first word no wider than it has
    bits (lib/vsprintf.c, ``%*pb``; cpuset(7), FORMATS): ``f``, ``3,ffffffff``.
    """
    mask = sum(1 << cpu for cpu in cpus if 0 <= cpu < count)
    words: list[str] = []
    for low in range((max(1, count) - 1) // 32 * 32, -1, -32):
        bits = min(32, max(1, count) - low)
        words.append(f"{mask >> low & 0xFFFFFFFF:0{-(-bits // 4)}x}")
    return ",".join(words)


def parse_task_stat(text: str) -> TaskStat:
    """Parse /proc/<tid>/stat; the name in parentheses may hold spaces and parentheses itself.

    Raises ValueError if the text is not of that shape.
    """
    fields = text.rpartition(")")[2].split()
    # Fields count from 1 in proc_pid_stat(5); the name is the second, so fields[0] is the third.
    if len(fields) < 20:
        raise ValueError("not a /proc/<tid>/stat")
    return TaskStat(state=fields[0], start_ticks=int(fields[19]))


def boot_id(proc: str = "/proc") -> str:
    """The id of this boot, a UUID (random(4))."""
    return read_text(f"{proc}/sys/kernel/random/boot_id").strip()


def is_running(pid: int, start_ticks: int, proc: str = "/proc") -> bool:
    """Whether a process, known for certain by its pid and its start, has not ended."""
    try:
        task = parse_task_stat(read_text(f"{proc}/{pid}/stat"))
    except (OSError, ValueError):
        return False
    return task.start_ticks == start_ticks and task.state not in _ENDED


def is_killed(thread: int, proc: str = "/proc") -> bool:
    """Whether a thread, which waits in the kernel, has to end: SIGKILL is pending for it.

    Whatever signal ends a process, the kernel gives SIGKILL to each of its threads
    (``complete_signal``); but for those with a core dump, which are dumped first.
    """
    try:
        status = read_text(f"{proc}/{thread}/status")
        pending = status.partition("\nSigPnd:\t")[2].partition("\n")[0]
        return bool(int(pending, 16) & 1 << (signal.SIGKILL - 1))
    except (OSError, ValueError):
        return False


def parse_ns_pids(status: str) -> tuple[int, ...]:
    """Return the ``NSpid`` line of /proc/<tid>/status: outermost namespace (the reader's) first."""
    for line in status.split("\n"):
        if line.startswith("NSpid:"):
            return tuple(int(field) for field in line.split()[1:])
    return ()


def pid_namespace(
    pid: int | str, proc: str = "/proc", *, of_children: bool = False
) -> tuple[int, int]:
    """Return (st_dev, st_ino) of the pid namespace of a process; raises OSError if it is gone.

    Or of the one that its children are born into (pid_namespaces(7)), which may be another.
    """
    status = os.stat(f"{proc}/{pid}/ns/{_kind(of_children)}")
    return status.st_dev, status.st_ino


def init_of_pid_namespace(
    pid: int, proc: str = "/proc", *, of_children: bool = False
) -> int | None:
    """Return the init of the pid namespace of `pid`, as numbered in our own namespace.

    None where the kernel cannot tell (before 6.11) or that init is not visible to us. For
    ``of_children`` see `pid_namespace`.
    """
    try:
        path = f"{proc}/{pid}/ns/{_kind(of_children)}"
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return fcntl.ioctl(fd, NS_GET_PID_FROM_PIDNS, 1) or None
    except OSError:
        return None
    finally:
        os.close(fd)


def _kind(of_children: bool) -> str:
    return "pid_for_children" if of_children else "pid"
