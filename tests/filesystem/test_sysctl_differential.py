"""The kernel's sysctls and ours: the same writes, the same results (needs root, no FUSE)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysfsd.doctor import kernel_version
from sysfsd.kernel import syscalls
from sysfsd.sysctls import writing
from sysfsd.sysctls.node import Sysctl
from sysfsd.sysctls.table import SYSCTLS
from sysfsd.sysctls.values import (
    INT_MAX,
    INT_MIN,
    MOST_SLOTS,
    UINT_MAX,
    ULONG_MAX,
    Numbers,
    Text,
    integers,
    longs,
    unsigned,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sysfsd.sysctls.values import Value

CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET = 0x04000000, 0x08000000, 0x40000000

NOT_HERE = "writes to the machine's own sysctls: only in the project's virtual machine"
in_vm = pytest.mark.skipif(os.environ.get("SYSFSD_VM") != "1", reason=NOT_HERE)

_LEAST_BUFFER = 1 if kernel_version(os.uname().release) >= (6, 15) else 4096

# Of each type that the table knows, files that a network, IPC or UTS namespace has for itself.
OWN = (
    Sysctl("proc/sys/net/ipv4/tcp_challenge_ack_limit", integers(), ""),
    Sysctl("proc/sys/net/ipv4/icmp_msgs_per_sec", integers(0), ""),
    Sysctl("proc/sys/net/ipv4/igmp_qrv", integers(1), ""),
    # Its least number was a page until Linux 6.15 or so.
    Sysctl("proc/sys/net/ipv4/tcp_rmem", integers(_LEAST_BUFFER, count=3), ""),
    Sysctl("proc/sys/net/ipv4/tcp_notsent_lowat", unsigned(), ""),
    Sysctl("proc/sys/net/ipv4/tcp_tw_reuse", unsigned(0, 2), ""),
    Sysctl("proc/sys/net/ipv4/tcp_comp_sack_delay_ns", longs(), ""),
    Sysctl("proc/sys/kernel/shmmax", longs(), ""),
    Sysctl("proc/sys/kernel/hostname", Text(65), ""),
    Sysctl("proc/sys/kernel/domainname", Text(65), ""),
)

NEVER = {
    "kernel/hostname": "its namespace's: above",
    "kernel/domainname": "its namespace's: above",
    "net/ipv4/ping_group_range": "its namespace's, in the container's numbers: test_ping_groups",
    "kernel/yama/ptrace_scope": "3 stays until the next boot",
    "kernel/unprivileged_bpf_disabled": "1 stays until the next boot",
    "kernel/threads-max": "nobody could start anything meanwhile",
    "kernel/pid_max": "nobody could start anything meanwhile",
    "kernel/sched_rt_runtime_us": "EBUSY where real-time processes or groups have their share",
    "vm/max_map_count": "nobody could map anything meanwhile",
    "vm/min_free_kbytes": "the kernel would keep all the memory",
    "vm/overcommit_memory": "nobody could allocate anything meanwhile",
    "net/core/default_qdisc": "which there are depends on the kernel's modules",
    "net/core/bpf_jit_enable": "0 and 2 are possible where the kernel has an interpreter",
}
"""Rows that are not written to the machine's own kernel, and why."""

if kernel_version(os.uname().release) < (6, 18):
    NEVER["kernel/core_pipe_limit"] = "negative numbers were taken until then"

FEW = {
    "net/netfilter/nf_conntrack_buckets": "large sizes take all memory; negative ones are large",
    "nf_conntrack/parameters/hashsize": "large sizes take all memory",
    "vm/dirty_bytes": "the last page of an unsigned long wraps around to nothing",
    "vm/dirty_background_bytes": "the last page of an unsigned long wraps around to nothing",
    "fs/pipe-max-size": "of more than 32 bits the kernel keeps the lower ones",
}
"""Rows that get a few writes only, and why."""

FEW_WRITES = [
    b"65536\n",
    b"0",
    b"9000",
    b"0x4000 ",
    b"-",
    b"\n",
    b"9000 x",
    b"x",
    b"65536\0",
    b"\t9000",
    b"+9000",
    b"9000\n\n",
    b"08",
    b"65536\0x",
]

NUMBERS = (0, 1, 2, 7, 10, 100, 513, 4097, INT_MAX, INT_MIN, UINT_MAX, ULONG_MAX)
PIECES = st.sampled_from(
    [b" ", b"\t", b"\n", b"\v", b"\0", b"-", b"+", b"0x", b"0", b"1", b"8", b"f", b"\xa0", b"x"]
    + [b"%d" % (number + more) for number in NUMBERS for more in (0, 1)]
)
DATA = st.one_of(
    st.lists(PIECES, min_size=1, max_size=8).map(b"".join), st.binary(min_size=1, max_size=80)
)

BOUNDARIES = [
    b"5",
    b"5\n",
    b"1 2 3 4 5\n",
    b"5 x",
    b"1 2 x",
    b"1\t-1\t3",
    b"5\0",
    b"5 \0 6",
    b"\0",
    b"\n",
    b" \t\n\v\f\r\xa05\n",
    b"5\xa0",
    b"5\r",
    b"5\v6",
    b"-0",
    b"- 5",
    b"08",
    b"0x",
    b"0x1f",
    b"00000000000000000001",
    b"000000000000000000001",
    b"00000000000000000001 2",
    b"0x000000000000000001",
    b"-0000000000000000001",
    b"-00000000000000000001",
    b"18446744073709551616",
    b"99999999999999999999",
    b"5" + b" " * 5000,
    b" " * 4093 + b"567",
    b" " * 4094 + b"567",
    b" " * 4095 + b"567",
    b" " * 5000 + b"567",
    b"5 " * 3000,
    b"a" * 63,
    b"a" * 64,
    b"a" * 65,
    b"a" * 5000,
    b"a\xff\tb \n",
    *(b"%d" % (number + more) for number in NUMBERS for more in (-1, 0, 1)),
]


class Result(NamedTuple):
    """Of one write, and the read after it."""

    consumed: int
    error: int
    text: bytes


def read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def kernel(path: str, data: bytes, position: int = 0) -> Result:
    """Write it in one pwrite(2), and read."""
    descriptor = os.open(path, os.O_WRONLY)
    consumed = error = 0
    try:
        consumed = os.pwrite(descriptor, data, position)
    except OSError as failed:
        error = failed.errno or 0
    finally:
        os.close(descriptor)
    return Result(consumed, error, read(path))


def compare(row: Sysctl, writes: list[bytes], position: int = 0) -> None:
    """Do the same writes to both, from the kernel's value on, which is put back."""
    path = f"/{row.path}"
    before = read(path)
    value: Value = row.kind.parse(before)
    try:
        for data in writes:
            written = writing.write(row, value, data, position)
            value = written.value
            expected = Result(written.consumed, written.error, row.kind.text(value))
            assert kernel(path, data, position) == expected, data
    finally:
        kernel(path, before)


@pytest.fixture(scope="module")
def apart() -> Iterator[ThreadPoolExecutor]:
    """A thread in namespaces of its own, whose sysctls it sees."""
    kinds = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    with ThreadPoolExecutor(1, initializer=syscalls.unshare, initargs=(kinds,)) as thread:
        yield thread


def limits(row: Sysctl) -> list[bytes]:
    """What is just in its range, and just not."""
    kind = row.kind
    # The largest hash table is half of the memory of the virtual machine.
    if not isinstance(kind, Numbers) or kind.maximum == MOST_SLOTS:
        return []
    ends = (kind.minimum, kind.maximum)
    return [b"%d\n" % (number + more) for number in ends for more in (-1, 0, 1)]


@pytest.mark.parametrize("row", OWN, ids=lambda row: row.path)
def test_at_boundaries(row: Sysctl, apart: ThreadPoolExecutor) -> None:
    apart.submit(compare, row, BOUNDARIES + limits(row)).result()


@pytest.mark.parametrize("row", OWN, ids=lambda row: row.path)
@given(
    writes=st.lists(DATA, min_size=1, max_size=6), position=st.sampled_from([0, 0, 1, 3, 63, 70])
)
def test_whatever_is_written(
    row: Sysctl, apart: ThreadPoolExecutor, writes: list[bytes], position: int
) -> None:
    apart.submit(compare, row, writes, position).result()


def named(row: Sysctl, names: dict[str, str]) -> bool:
    return any(row.path.endswith(f"/{name}") for name in names)


HERE = [row for row in SYSCTLS if os.path.exists(f"/{row.path}")]
WRITABLE = [
    row
    for row in HERE
    if os.stat(f"/{row.path}").st_mode & row.mode & 0o200 and not named(row, NEVER)
]


@pytest.mark.parametrize("row", HERE, ids=lambda row: row.path)
def test_every_row_reads_as_its_file(row: Sysctl) -> None:
    text = read(f"/{row.path}")
    assert row.kind.text(row.kind.parse(text)) == text


def put_back(before: dict[str, bytes]) -> None:
    """Restore all that differ: of a ratio and an absolute number the one that is not 0."""
    for row in WRITABLE:
        path = f"/{row.path}"
        text = before[row.path]
        if read(path) != text and not (row.resets and text == b"0\n"):
            kernel(path, text)
    assert before == {row.path: read(f"/{row.path}") for row in WRITABLE}


@pytest.fixture(scope="module")
def unchanged() -> Iterator[None]:
    """All is as it was in the end."""
    before = {row.path: read(f"/{row.path}") for row in WRITABLE}
    yield
    put_back(before)


@in_vm
@pytest.mark.parametrize("row", WRITABLE, ids=lambda row: row.path)
def test_every_row_at_boundaries(row: Sysctl, unchanged: None) -> None:
    compare(row, (FEW_WRITES if named(row, FEW) else BOUNDARIES) + limits(row))


@in_vm
@pytest.mark.parametrize("row", WRITABLE, ids=lambda row: row.path)
@settings(max_examples=20)
@given(writes=st.lists(DATA, min_size=1, max_size=4))
def test_whatever_is_written_to_every_row(
    row: Sysctl, unchanged: None, writes: list[bytes]
) -> None:
    if not named(row, FEW):
        compare(row, writes)


@in_vm
@pytest.mark.parametrize("row", [row for row in WRITABLE if row.resets], ids=lambda row: row.path)
def test_of_a_ratio_and_an_absolute_number_one_counts(row: Sysctl, unchanged: None) -> None:
    rows = {each.path: each for each in WRITABLE}
    (other,) = row.resets
    # While the other counts this one is 0, and writing that again is no change.
    steps = [(rows[other], b"8192"), (row, b"0"), (rows[other], b"8192"), (row, b"30")]
    for each, data in (*steps, (row, b"30"), (row, b"x")):
        before = {path: rows[path].kind.parse(read(f"/{path}")) for path in (row.path, other)}
        written = writing.write(each, before[each.path], data)
        after = before | {each.path: written.value}
        after |= dict.fromkeys(writing.resets(each, before[each.path], written), (0,))
        assert kernel(f"/{each.path}", data).error == written.error
        assert after == {path: rows[path].kind.parse(read(f"/{path}")) for path in after}
