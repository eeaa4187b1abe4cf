"""The views as psutil reads them, for any numbers that a kernel may give.

psutil reads its files below `psutil.PROCFS_PATH`: here is a directory with our views in it. What
procps makes of them is in tests/filesystem/test_procps.py.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.recorded import SECOND, TREES, V1, V2, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = "meminfo swaps vmstat stat uptime cpuinfo diskstats".split()
KIB = 1024

any_numbers = settings(max_examples=50)


@contextmanager
def machine(tree: str) -> Iterator[Machine]:
    before = psutil.PROCFS_PATH
    with tempfile.TemporaryDirectory() as base:
        made = Machine(Path(base), tree)
        psutil.PROCFS_PATH = str(made.refresh(*FILES))
        try:
            yield made
        finally:
            psutil.PROCFS_PATH = before


trees = pytest.mark.parametrize("tree", TREES)


@trees
def test_memory(tree: str) -> None:
    with machine(tree):
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    total = {V1: 512, V2: 256}[tree]

    assert memory.total == total * KIB * KIB
    assert 0 < memory.available <= memory.total
    assert 0 < memory.used <= memory.total
    assert memory.buffers == 0
    assert 0 < memory.shared <= memory.cached
    assert swap.total == {V1: 0, V2: 128 * KIB * KIB}[tree]
    assert swap.used + swap.free == swap.total
    assert (swap.sin, swap.sout) == (0, 0)


@trees
def test_cpus(tree: str) -> None:
    with machine(tree):
        each, total = psutil.cpu_times(percpu=True), psutil.cpu_times()
        stats = psutil.cpu_stats()
        assert psutil.boot_time() == 1_700_000_000

    assert len(each) == 1
    assert (total.user, total.system, total.idle) == (each[0].user, each[0].system, each[0].idle)
    assert total.iowait == total.steal == total.irq == 0
    assert (stats.interrupts, stats.soft_interrupts) == (0, 0)  # the host's tell of others


@trees
def test_disks(tree: str) -> None:
    with machine(tree):
        disks = psutil.disk_io_counters(perdisk=True)

    if tree == V1:
        assert sorted(disks) == ["loop240", "loop241"]
        assert disks["loop241"].read_bytes == 450560
    else:
        assert sorted(disks) == ["dm-0", "vda"]
        assert disks["vda"].write_bytes == 100 * KIB * KIB
        assert disks["vda"].read_count == 1600


sizes = st.integers(0, 1 << 50)
kilobytes = st.integers(0, 1 << 40)
DISKS = ["7:240", "7:241", "254:0", "253:0", "8:0"]
V2_LIMITS = {"memory.max": "memory.current", "memory.swap.max": "memory.swap.current"}
V2_KEYS = (
    "anon file shmem file_mapped file_dirty file_writeback swapcached active_anon inactive_anon "
    "active_file inactive_file slab_reclaimable slab_unreclaimable zswapped pswpin pswpout pgfault"
).split()
V1_KEYS = (
    "total_cache total_rss total_rss_huge total_shmem total_mapped_file total_dirty total_swap "
    "total_writeback total_swapcached total_active_anon total_inactive_anon total_active_file "
    "total_inactive_file total_pgfault total_pgmajfault"
).split()


@trees
def test_any_memory(tree: str) -> None:
    """Whatever limits, uses and parts a kernel shows: no wrap, nothing negative, parts <= whole."""
    keys = V1_KEYS if tree == V1 else V2_KEYS
    names = (
        ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.memsw.limit_in_bytes"]
        if tree == V1
        else [name for pair in V2_LIMITS.items() for name in pair]
    )

    @any_numbers
    @given(
        st.fixed_dictionaries(dict.fromkeys(names, sizes)),
        st.fixed_dictionaries(dict.fromkeys(keys, sizes)),
        st.fixed_dictionaries(
            dict.fromkeys(("MemFree", "MemAvailable", "SwapTotal", "SwapFree"), kilobytes)
        ),
    )
    def check(limits: dict[str, int], stat: dict[str, int], host: dict[str, int]) -> None:
        for name, value in limits.items():
            made.write("memory", name, f"{value}\n")
        made.write("memory", "memory.stat", "".join(f"{key} {stat[key]}\n" for key in keys))
        for line, value in host.items():
            made.host(line, value)
        procfs = made.refresh("meminfo", "swaps", "vmstat")
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        rows = [line.split() for line in (procfs / "swaps").read_text().splitlines()[1:]]
        vmstat = {
            line.split()[0]: int(line.split()[1])
            for line in (procfs / "vmstat").read_text().splitlines()
        }

        assert min(memory) >= 0
        assert max(*memory[3:], memory.available) <= memory.total
        assert 0 <= memory.percent <= 100
        assert min(swap) >= 0
        assert swap.used + swap.free == swap.total
        assert [int(row[2]) * KIB for row in rows] == ([swap.total] if swap.total else [])
        for row in rows:
            assert 0 <= int(row[3]) <= int(row[2])
            assert abs(int(row[3]) * KIB - swap.used) <= KIB  # each cut to kB
        for name, count in vmstat.items():
            assert 0 <= count < 1 << 63
            if name.startswith("nr_") and name != "nr_kernel_stack":
                assert count * 4 * KIB <= memory.total + memory.total % (4 * KIB), name

    with machine(tree) as made:
        check()


@trees
def test_any_cpu_time(tree: str) -> None:
    """Nothing runs backwards, whatever happens to usage, quota and cpuset; idle included."""
    step = st.tuples(
        st.integers(0, 40 * SECOND),  # time that passes
        st.integers(0, 200 * SECOND),  # CPU time that the cgroup has used until then
        st.sampled_from(["max", "50000", "150000", "100000"]),
        st.sampled_from(["0", "1", "0-1"]),
    )

    @any_numbers
    @given(st.lists(step, max_size=6))
    def check(steps: list[tuple[int, int, str, str]]) -> None:
        made.restart()
        procfs = made.refresh("stat", "uptime")
        last, uptime, idle = psutil.cpu_times(), 0.0, 0.0
        for passed, usage, quota, cpuset in steps:
            made.now += passed
            if tree == V1:
                made.write("cpuacct", "cpuacct.usage", f"{usage}\n")
                made.write("cpu", "cpu.cfs_quota_us", "-1\n" if quota == "max" else f"{quota}\n")
                made.write("cpuset", "cpuset.effective_cpus", f"{cpuset}\n")
            else:
                made.write("cpu", "cpu.stat", f"user_usec {usage // 1000}\nsystem_usec 7\n")
                made.write("cpu", "cpu.max", f"{quota} 100000\n")
                (made.base / "sys/fs/cgroup/cpuset.cpus.effective").write_text(f"{cpuset}\n")
            made.refresh("stat", "uptime", "cpuinfo")
            now, each = psutil.cpu_times(), psutil.cpu_times(percpu=True)
            assert all(after >= before for after, before in zip(now, last, strict=True))
            assert len(each) == (procfs / "cpuinfo").read_text().count("processor\t:") >= 1
            fields = [float(field) for field in (procfs / "uptime").read_text().split()]
            assert fields[0] >= uptime
            assert idle <= fields[1] <= 2 * fields[0] + 0.01
            last, (uptime, idle) = now, fields

    with machine(tree) as made:
        check()


@trees
def test_any_disk(tree: str) -> None:
    @any_numbers
    @given(
        st.lists(
            st.dictionaries(st.sampled_from(DISKS), st.tuples(sizes, sizes, sizes, sizes)),
            max_size=5,
        )
    )
    def check(steps: list[dict[str, tuple[int, int, int, int]]]) -> None:
        made.restart()
        made.refresh("diskstats")
        last = psutil.disk_io_counters(perdisk=True)
        for step in steps:
            if tree == V2:
                text = "".join(
                    f"{number} rbytes={read} wbytes={written} rios={reads} wios={writes}\n"
                    for number, (read, written, reads, writes) in step.items()
                )
                made.write("io", "io.stat", text)
            else:
                for file, first in (("io_service_bytes", 0), ("io_serviced", 2)):
                    text = "".join(
                        f"{number} Read {each[first]}\n{number} Write {each[first + 1]}\n"
                        for number, each in step.items()
                    )
                    made.write("blkio", f"blkio.throttle.{file}_recursive", text)
            made.refresh("diskstats")
            now = psutil.disk_io_counters(perdisk=True)
            assert set(last) <= set(now)
            for name, before in last.items():
                assert all(after >= old >= 0 for after, old in zip(now[name], before, strict=True))
            last = now

    with machine(tree) as made:
        check()
