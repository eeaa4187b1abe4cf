"""What lxcfs 5 to 7 gets wrong, one test each: ours must not, on cgroup v1 and on v2.

The faults were seen in lxcfs 5.0.3 (v1) and 7.0.0 (v2) or are reported by its users. That its
`sysfs` files are the host's, and that an init in a leaf hides its container's limits, is in the
tests of those parts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.recorded import SECOND, TREES, V1, V2, Machine

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1024
MIB = 1 << 20
LIMIT = {V1: "memory.limit_in_bytes", V2: "memory.max"}
USAGE = {V1: "memory.usage_in_bytes", V2: "memory.current"}


@pytest.fixture(params=TREES)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(tmp_path, request.param)


def stat(machine: Machine, **values: int) -> None:
    """Change keys of memory.stat, given by their v2 names."""
    v1_names = {
        "file_mapped": "mapped_file",
        "anon_thp": "rss_huge",
        "anon": "rss",
        "file": "cache",
        "file_dirty": "dirty",
        "file_writeback": "writeback",
    }
    root = machine.base / "sys/fs/cgroup"
    path = (
        root / "memory/engine/web/memory.stat"
        if machine.tree == V1
        else root / "system.slice/docker-abc.scope/memory.stat"
    )
    text = path.read_text()
    for key, value in values.items():
        name = f"total_{v1_names.get(key, key)}" if machine.tree == V1 else key
        text, found = re.subn(rf"^{name} \d+$", f"{name} {value}", text, flags=re.MULTILINE)
        assert found == 1, name
    path.write_text(text)


def use(machine: Machine, usage: int) -> None:
    """Let the container have used CPU time until now; ns."""
    if machine.tree == V1:
        machine.write("cpuacct", "cpuacct.usage", f"{usage}\n")
        machine.write("cpuacct", "cpuacct.usage_user", f"{usage}\n")
        machine.write("cpuacct", "cpuacct.usage_sys", "0\n")
    else:
        machine.write("cpu", "cpu.stat", f"user_usec {usage // 1000}\nsystem_usec 0\n")


def cpu(machine: Machine) -> tuple[int, int]:
    """User and idle time of the first line of stat, in ticks."""
    fields = machine.read("proc/stat").split()
    return int(fields[1]), int(fields[4])


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("Mapped", "file_mapped"),
        ("AnonHugePages", "anon_thp"),
        ("Dirty", "file_dirty"),
        ("Writeback", "file_writeback"),
    ],
)
def test_a_part_of_memory_that_is_always_0(machine: Machine, line: str, key: str) -> None:
    """Mapped, Dirty and Writeback on v2, AnonHugePages on both."""
    stat(machine, **{key: 8 * MIB})

    assert machine.numbers("proc/meminfo")[line] == 8 * KIB


def test_swap_free_of_18_exabytes(machine: Machine) -> None:
    """The limit is lowered below what is in use."""
    machine.host("SwapTotal", 1 << 20)
    if machine.tree == V1:
        path = machine.base / "sys/fs/cgroup/memory/engine/memory.memsw.limit_in_bytes"
        path.write_text(f"{(512 + 16) * MIB}\n")
        stat(machine, swap=100 * MIB)
    else:
        machine.write("memory", "memory.swap.max", f"{16 * MIB}\n")
        machine.write("memory", "memory.swap.current", f"{100 * MIB}\n")
    shown = machine.numbers("proc/meminfo")

    assert (shown["SwapTotal"], shown["SwapFree"]) == (16 * KIB, 0)
    assert machine.read("proc/swaps").splitlines()[1].split()[2:4] == [str(16 * KIB)] * 2


def test_mem_free_of_18_exabytes(machine: Machine) -> None:
    machine.write("memory", LIMIT[machine.tree], f"{16 * MIB}\n")
    machine.write("memory", USAGE[machine.tree], f"{17 * MIB}\n")
    shown = machine.numbers("proc/meminfo")

    assert (shown["MemTotal"], shown["MemFree"]) == (16 * KIB, 0)
    assert shown["MemAvailable"] <= 16 * KIB


def test_more_free_than_the_host_has(machine: Machine) -> None:
    machine.host("MemFree", 10)
    machine.host("MemAvailable", 20)
    shown = machine.numbers("proc/meminfo")

    assert (shown["MemFree"], shown["MemAvailable"]) == (10, 20)


def test_anon_pages_below_zero(machine: Machine) -> None:
    """Computed as active + inactive - shmem, of which some may be swapped out or unevictable."""
    stat(machine, active_anon=0, inactive_anon=0, shmem=8 * MIB)

    assert machine.numbers("proc/meminfo")["AnonPages"] >= 59 * KIB


def test_a_part_larger_than_its_whole(machine: Machine) -> None:
    """SReclaimable of the container, KReclaimable of the host."""
    shown = machine.numbers("proc/meminfo")

    assert shown["SReclaimable"] == shown["KReclaimable"] <= shown["Slab"]
    assert shown["Mlocked"] <= shown["Unevictable"]


def test_tmpfs_counted_as_available(machine: Machine) -> None:
    stat(machine, active_file=0, inactive_file=0, shmem=8 * MIB)
    if machine.tree == V2:
        stat(machine, slab_reclaimable=0)
    shown = machine.numbers("proc/meminfo")

    assert shown["Cached"] > 0
    assert shown["MemAvailable"] == shown["MemFree"]


def test_swap_of_a_host_with_100_gigabytes(machine: Machine) -> None:
    """A size of nine digits."""
    machine.host("SwapTotal", 123_456_789)
    if machine.tree == V1:
        (machine.base / "sys/fs/cgroup/memory/engine/memory.memsw.limit_in_bytes").write_text(
            f"{1 << 62}\n"
        )
    else:
        machine.write("memory", "memory.swap.max", "max\n")
        (machine.base / "sys/fs/cgroup/system.slice/memory.swap.max").write_text("max\n")

    assert machine.numbers("proc/meminfo")["SwapTotal"] == 123_456_789
    assert machine.read("proc/swaps").splitlines()[1].split()[2] == "123456789"


def test_the_hosts_cpu_times(machine: Machine) -> None:
    """On v2: top shows how busy the host is. And on v1, with a quota, 0 at the first read."""
    use(machine, 3 * SECOND)
    user, idle = cpu(machine)

    assert (user, idle) == (300, 650)  # 9.5 seconds of one CPU
    assert " 0 0 0 0 0 0\n" in machine.read("proc/stat")


@pytest.mark.parametrize("quota", [50000, 150000])
def test_idle_running_backwards(machine: Machine, quota: int) -> None:
    """With a quota that is no whole number of CPUs, which is used up."""
    if machine.tree == V1:
        (machine.base / "sys/fs/cgroup/cpu/engine/cpu.cfs_quota_us").write_text(f"{quota}\n")
    else:
        (machine.base / "sys/fs/cgroup/system.slice/cpu.max").write_text(f"{quota} 100000\n")
    used, last = 0, (0, 0)
    for _ in range(20):
        machine.now += SECOND // 2
        used += quota * SECOND // 2 // 100000
        use(machine, used)
        now = cpu(machine)
        assert now >= last
        assert now[1] >= last[1]
        last = now


def test_uptimes_idle_is_its_uptime(machine: Machine) -> None:
    """On v2; and on v1 not multiplied by the number of CPUs."""
    use(machine, 3 * SECOND)
    assert machine.read("proc/uptime") == "9.50 6.50\n"

    machine.restart()
    if machine.tree == V1:
        (machine.base / "sys/fs/cgroup/cpuset/engine/web/cpuset.effective_cpus").write_text("0-1\n")
    else:
        (machine.base / "sys/fs/cgroup/system.slice/cpu.max").write_text("max 100000\n")
    assert machine.read("proc/uptime") == "9.50 16.00\n"


def test_an_uptime_of_minus_584_years(machine: Machine) -> None:
    """With an init that was started "after" now, or whose name has a space in it."""
    machine.now = 80 * SECOND

    assert machine.read("proc/uptime") == "0.00 0.00\n"


def test_requested_cpus_beat_effective_ones(machine: Machine) -> None:
    root = machine.base / "sys/fs/cgroup"
    if machine.tree == V1:
        (root / "cpuset/engine/web/cpuset.cpus").write_text("0-3\n")
    else:
        (root / "system.slice/cpu.max").write_text("max 100000\n")
        (root / "cpuset.cpus").write_text("0-3\n")
    effective = {V1: 1, V2: 2}[machine.tree]

    assert machine.read("proc/cpuinfo").count("processor\t:") == effective


def test_two_ways_to_number_the_cpus(machine: Machine) -> None:
    """Cpuinfo from 0, stat and online as the host does."""
    root = machine.base / "sys/fs/cgroup"
    if machine.tree == V2:
        (root / "cpuset.cpus.effective").write_text("1\n")
    assert machine.facts().cpu.cpuset.value == (1,)

    assert re.findall(r"processor\t: (\d+)", machine.read("proc/cpuinfo")) == ["0"]
    assert re.findall(r"^cpu(\d+) ", machine.read("proc/stat"), re.MULTILINE) == ["0"]
    assert machine.read("sys/devices/system/cpu/online") == "0\n"


def test_the_hosts_interrupts_and_processes(machine: Machine) -> None:
    text = machine.read("proc/stat")

    assert "\nintr 0\nctxt 0\n" in text
    assert "\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n" in text
    assert f"\nprocesses {machine.facts().load.last_pid}\n" in text


def test_the_hosts_disks(machine: Machine) -> None:
    """On v2 always, on v1 wherever CFQ is not, which is everywhere since Linux 5.0."""
    used = {V1: ["loop240", "loop241"], V2: ["vda", "dm-0"]}[machine.tree]

    lines = machine.read("proc/diskstats").splitlines()
    assert [line.split()[2] for line in lines] == used
    host = (machine.base / "proc/diskstats").read_text().splitlines()
    assert len(host) > len(lines)
    assert not set(host) & set(lines)


def test_the_hosts_slabs_for_everybody_to_read(machine: Machine) -> None:
    assert all(
        line.startswith(("slabinfo -", "#")) for line in machine.read("proc/slabinfo").splitlines()
    )
