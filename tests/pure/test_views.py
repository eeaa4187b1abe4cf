"""The views: their formats on recorded trees, and what must hold for any numbers."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.facts import cpuclock
from sysfsd.facts.collector import CpuTimesFacts, Facts, FactsCollector
from sysfsd.facts.cpu import CpuFacts
from sysfsd.facts.cpuclock import CpuUsage
from sysfsd.facts.disk import DiskFacts, Total
from sysfsd.facts.host import HostFacts
from sysfsd.facts.hugepages import HugePagesFacts
from sysfsd.facts.load import Averages, LoadFacts, TaskCount
from sysfsd.facts.memory import MemoryFacts, read_memory
from sysfsd.facts.nodes import Node, NodesFacts
from sysfsd.facts.sourced import Sourced
from sysfsd.kernel.cgroups import Cgroup, CgroupTree, read_cgroup_paths
from sysfsd.kernel.procfs import MeminfoLine, format_cpu_range, parse_cpu_list, parse_meminfo
from sysfsd.views import VIEWS, cpuinfo, meminfo
from tests.support.recorded import Record
from tests.support.views import PATHS, view

if TYPE_CHECKING:
    from collections.abc import Callable

    from sysfsd.facts.pressure import Stall

FIXTURES = Path(__file__).parent / "fixtures"
V1_PID = int((FIXTURES / "cgroup-v1/pid").read_text())
SECOND = 1_000_000_000
KIB = 1024

STAT_KEYS = (
    "anon file kernel_stack pagetables sec_pagetables percpu vmalloc shmem zswap zswapped "
    "file_mapped file_dirty file_writeback swapcached anon_thp file_thp shmem_thp inactive_anon "
    "active_anon inactive_file active_file unevictable slab_reclaimable slab_unreclaimable"
).split()


class FakeHost(HostFacts):
    def __init__(self, meminfo: tuple[MeminfoLine, ...] = (), cpuinfo: str = "") -> None:
        super().__init__(boot_time=lambda: 1_700_000_000.0)
        self._fake = meminfo, cpuinfo

    @cached_property
    def meminfo(self) -> tuple[MeminfoLine, ...]:
        return self._fake[0]

    @cached_property
    def cpuinfo(self) -> str:
        return self._fake[1]


ONE_NODE = NodesFacts((Node(0, (0,), (10,)),), "one node", (1,), {}, "", ())


def unused() -> MemoryFacts:
    raise AssertionError("this view should not read it")


def no_pressure(resource: str) -> Sourced[tuple[Stall, ...]]:
    raise AssertionError("this view should not read it")


def make_facts(
    *,
    host: HostFacts | None = None,
    memory: Callable[[], MemoryFacts] = unused,
    cpus: tuple[int, ...] = (0,),
    usage: CpuUsage = CpuUsage(0, 0),  # noqa: B008
    tasks: TaskCount = TaskCount(),  # noqa: B008
    now: int = 100 * SECOND,
    nodes: NodesFacts = ONE_NODE,
) -> Facts:
    clock = cpuclock.start(SECOND, usage, now, len(cpus))
    return Facts(
        host=host or FakeHost(),
        started=Sourced(SECOND, "start"),
        now=now,
        memory=memory,
        cpu=lambda: CpuFacts(Sourced(len(cpus), "cpuset"), Sourced(cpus, "cpuset"), None),
        cpu_times=lambda facts: CpuTimesFacts(clock, clock.cpus[: len(cpus)], "usage"),
        load=lambda: LoadFacts(Averages(164, 0, 0), tasks, tasks.newest_pid, "tasks", 0),
        disk=lambda: DiskFacts((), Total(), "no io controller"),
        oom_kills=lambda: Sourced(0, "memory.events"),
        nodes=lambda facts: nodes,
        hugepages=lambda: HugePagesFacts(Sourced(0, ""), Sourced(0, ""), 2 << 20),
        pressure=no_pressure,
    )


def recorded(name: str) -> Facts:
    base = FIXTURES / name
    pid = V1_PID if name == "cgroup-v1" else 4242
    collector = FactsCollector(
        tree=CgroupTree.from_mountinfo((base / "proc/self/mountinfo").read_text(), str(base)),
        proc=str(base / "proc"),
        sys=str(base / "sys"),
        clock=lambda: 100 * SECOND,
        boot_time=lambda: 1_700_000_000.0,
    )
    return collector.facts(Record(1, pid, 90.5, read_cgroup_paths(pid, str(base / "proc"))))


def render(path: str, facts: Facts) -> str:
    return view(path).render(facts).decode()


def kilobytes(text: str) -> dict[str, int]:
    """Parse meminfo as procps and psutil do: the second field, whatever the columns."""
    return {line.split()[0].rstrip(":"): int(line.split()[1]) for line in text.splitlines()}


def test_the_table_is_append_only() -> None:
    # The position of a view is part of inode numbers that kernels have cached.
    assert [view.path for view in VIEWS][:9] == [
        "proc/uptime",
        "proc/meminfo",
        "proc/cpuinfo",
        "proc/stat",
        "proc/loadavg",
        "proc/swaps",
        "sys/devices/system/cpu/online",
        "sys/devices/system/cpu/possible",
        "sys/devices/system/cpu/present",
    ]
    assert len(PATHS) == len(set(PATHS))


@pytest.mark.parametrize("tree", ["cgroup-v1", "cgroup-v2"])
@pytest.mark.parametrize("path", PATHS)
def test_every_view_is_text_and_every_value_in_it_is_explained(path: str, tree: str) -> None:
    facts = recorded(tree)
    text = render(path, facts)
    items = view(path).explain(facts)

    assert text.endswith("\n")
    assert "\0" not in text
    for item in items:
        assert item.source
        assert item.value in text or text.count("\n") == 1  # swaps without a device


# meminfo


def test_meminfo_has_the_hosts_lines_in_the_kernels_columns() -> None:
    host = (FIXTURES / "cgroup-v1/proc/meminfo").read_text()
    facts = make_facts(
        host=FakeHost(parse_meminfo(host)),
        memory=lambda: read_memory(None, FakeHost(parse_meminfo(host))),
    )

    assert render("proc/meminfo", facts) == host  # nobody accounts memory: all is the host's


def test_meminfo_columns_of_long_names_and_numbers() -> None:
    lines = (
        MeminfoLine("HardwareCorrupted", 0, "kB"),
        MeminfoLine("HugePages_Total", 0, ""),
        MeminfoLine("VmallocTotal", 34359738367, "kB"),
    )
    memory = read_memory(None, FakeHost())
    assert render("proc/meminfo", make_facts(host=FakeHost(lines), memory=lambda: memory)) == (
        "HardwareCorrupted:     0 kB\nHugePages_Total:       0\nVmallocTotal:   34359738367 kB\n"
    )


def test_meminfo_of_a_v2_container() -> None:
    shown = kilobytes(render("proc/meminfo", recorded("cgroup-v2")))

    expected = {
        "MemTotal": 256 * KIB,
        "MemFree": 112 * KIB,
        "MemAvailable": (112 + 48 + 10) * KIB,
        "Buffers": 0,
        "Cached": 63 * KIB,
        "SwapCached": 1 * KIB,
        "Active": 24 * KIB,
        "Inactive": 100 * KIB,
        "SwapTotal": 128 * KIB,
        "SwapFree": 124 * KIB,
        "Zswap": 1 * KIB,
        "Zswapped": 3 * KIB,
        "Dirty": 40,
        "Writeback": 8,
        "AnonPages": 60 * KIB,
        "Mapped": 12 * KIB,
        "Shmem": 16 * KIB,
        "KReclaimable": 10 * KIB,
        "Slab": 13 * KIB,
        "SReclaimable": 10 * KIB,
        "SUnreclaim": 3 * KIB,
        "KernelStack": 1 * KIB,
        "PageTables": 2 * KIB,
        "Percpu": 512,
        "AnonHugePages": 20 * KIB,
        "ShmemHugePages": 2 * KIB,
        "Mlocked": 0,
        "Committed_AS": 0,
        "Hugepagesize": 2048,
        "VmallocTotal": 34359738367,
    }
    assert {name: shown[name] for name in expected} == expected


def test_meminfo_of_a_v1_container() -> None:
    facts = recorded("cgroup-v1")
    shown = kilobytes(render("proc/meminfo", facts))
    used = facts.memory.used.value // KIB

    assert shown["MemTotal"] == 512 * KIB
    assert shown["MemFree"] == 512 * KIB - used
    assert shown["Shmem"] == 8 * KIB
    assert (
        shown["MemAvailable"]
        == shown["MemFree"] + shown["Active(file)"] + (shown["Inactive(file)"])
    )
    assert shown["AnonPages"] > 48 * KIB


def test_nobody_gets_more_than_the_host_has_left() -> None:
    host = FakeHost(
        parse_meminfo("MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 20 kB\nSwapTotal: 0 kB\n")
    )
    memory = MemoryFacts(
        total=Sourced(900 * KIB, "limit"),
        used=Sourced(100 * KIB, "usage"),
        swap_total=Sourced(0, ""),
        swap_used=Sourced(0, ""),
        stat={},
        stat_source="memory.stat",
        version=2,
    )
    shown = kilobytes(render("proc/meminfo", make_facts(host=host, memory=lambda: memory)))

    assert (shown["MemFree"], shown["MemAvailable"]) == (10, 20)


def test_every_line_of_this_hosts_kernel_is_known() -> None:
    """A line that is neither the container's nor the host's is 0; that should be on purpose."""
    zero = set(
        "Buffers Mlocked NFS_Unstable Bounce WritebackTmp Committed_AS ShmemPmdMapped "
        "FilePmdMapped Balloon HugePages_Rsvd HugePages_Surp "
        "HardwareCorrupted CmaTotal CmaFree Unaccepted GPUActive GPUReclaim Quicklists "
        "HighTotal HighFree LowTotal LowFree MmapCopy".split()
    )
    names = {line.name for line in HostFacts().meminfo}

    assert names - zero - set(meminfo.OWN) - set(meminfo.HOSTS) - set(meminfo.COUNTS) == set()


sizes = st.integers(0, 1 << 45)


@given(
    st.tuples(sizes, sizes, sizes, sizes, sizes),
    st.tuples(sizes, sizes, sizes, sizes),
    st.lists(sizes, min_size=len(STAT_KEYS), max_size=len(STAT_KEYS)),
)
def test_meminfo_cannot_lie(
    host_sizes: tuple[int, ...], limits: tuple[int, ...], stat: list[int]
) -> None:
    names = ("MemTotal", "MemFree", "MemAvailable", "SwapTotal", "CommitLimit")
    template = parse_meminfo((FIXTURES / "cgroup-v2/proc/meminfo").read_text())
    given_host = dict(zip(names, host_sizes, strict=True))
    host = FakeHost(
        tuple(
            line._replace(value=given_host.get(line.name, line.value * KIB) // KIB)
            for line in template
        )
    )
    total = min(limits[0], given_host["MemTotal"])
    swap = min(limits[2], given_host["SwapTotal"])
    memory = MemoryFacts(
        total=Sourced(total, "limit"),
        used=Sourced(min(limits[1], total), "usage"),
        swap_total=Sourced(swap, "limit"),
        swap_used=Sourced(min(limits[3], swap), "usage"),
        stat=dict(zip(STAT_KEYS, stat, strict=True)),
        stat_source="memory.stat",
        version=2,
    )
    facts = make_facts(host=host, memory=lambda: memory)
    shown = kilobytes(render("proc/meminfo", facts))

    assert min(shown.values()) >= 0
    assert shown["MemFree"] <= shown["MemTotal"] >= shown["MemAvailable"]
    assert shown["SwapFree"] <= shown["SwapTotal"]
    assert shown["MemTotal"] <= given_host["MemTotal"] // KIB
    own = set(meminfo.OWN) - {"SwapTotal", "SwapFree", "Zswapped", "CommitLimit"}
    assert all(shown[name] <= shown["MemTotal"] for name in own & set(shown))
    # What free(1) of old computes as used: never below zero.
    cache = shown["Buffers"] + shown["Cached"] + shown["SReclaimable"]
    assert shown["MemTotal"] - shown["MemFree"] - cache >= -2  # kB, cut one by one
    for part, whole in (
        ("Shmem", "Cached"),
        ("Mapped", "Cached"),
        ("Dirty", "Cached"),
        ("AnonHugePages", "AnonPages"),
        ("ShmemHugePages", "Shmem"),
        ("SReclaimable", "Slab"),
        ("SUnreclaim", "Slab"),
        ("Active(file)", "Active"),
        ("Inactive(anon)", "Inactive"),
        ("Zswapped", "SwapTotal"),
    ):
        assert shown[part] <= shown[whole], (part, whole)
    swaps = render("proc/swaps", facts).splitlines()[1:]
    rows = [line.split() for line in swaps]
    assert [int(row[2]) for row in rows] == ([shown["SwapTotal"]] if shown["SwapTotal"] else [])
    if rows:
        assert abs(shown["SwapTotal"] - shown["SwapFree"] - int(rows[0][3])) <= 1


# swaps


def test_swaps_of_a_container_with_swap() -> None:
    assert render("proc/swaps", recorded("cgroup-v2")) == (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "none                                    virtual\t\t131072\t\t4096\t\t0\n"
    )


def test_swaps_of_a_container_without() -> None:
    assert render("proc/swaps", recorded("cgroup-v1")).count("\n") == 1


# CPUs


@given(st.sets(st.integers(0, 63), min_size=1, max_size=16))
def test_all_files_agree_on_the_number_of_cpus(cpus: set[int]) -> None:
    text = "".join(f"processor\t: {cpu}\nmodel\t\t: x{cpu}\n\n" for cpu in range(64))
    facts = make_facts(host=FakeHost(cpuinfo=text), cpus=tuple(sorted(cpus)))
    count = len(cpus)
    online = render("sys/devices/system/cpu/online", facts)

    assert re.findall(r"processor\t: (\d+)", render("proc/cpuinfo", facts)) == (
        [str(number) for number in range(count)]
    )
    assert re.findall(r"^cpu(\d+) ", render("proc/stat", facts), re.MULTILINE) == (
        [str(number) for number in range(count)]
    )
    assert parse_cpu_list(online) == tuple(range(count))
    assert online == format_cpu_range(count) + "\n"
    assert online == render("sys/devices/system/cpu/possible", facts)
    assert online == render("sys/devices/system/cpu/present", facts)


def test_cpuinfo_of_one_cpu_in_two_is_one_whole_machine() -> None:
    text = render("proc/cpuinfo", recorded("cgroup-v1"))
    host = (FIXTURES / "cgroup-v1/proc/cpuinfo").read_text()

    assert text.endswith("power management:\n\n")
    second = host.split("\n\n")[1] + "\n\n"
    expected = second
    for key, value in (
        ("processor\t", 0),
        ("core id\t\t", 0),
        ("siblings\t", 1),
        ("cpu cores\t", 1),
        ("apicid\t\t", 0),
        ("initial apicid\t", 0),
    ):
        expected = re.sub(rf"^{key}: \d+$", f"{key}: {value}", expected, flags=re.MULTILINE)
    assert text == expected
    assert expected != second


def test_cpuinfo_of_all_cpus_is_the_hosts() -> None:
    host = (FIXTURES / "cgroup-v1/proc/cpuinfo").read_text()

    assert render("proc/cpuinfo", make_facts(host=FakeHost(cpuinfo=host), cpus=(0, 1))) == host


def test_cpuinfo_keeps_text_that_is_about_no_cpu() -> None:
    host = "processor\t: 0\nBogoMIPS\t: 1\n\nprocessor\t: 1\nBogoMIPS\t: 2\n\nHardware\t: Board\n"
    facts = make_facts(host=FakeHost(cpuinfo=host), cpus=(1,))

    assert render("proc/cpuinfo", facts) == "processor\t: 0\nBogoMIPS\t: 2\n\nHardware\t: Board\n"


def test_cpuinfo_of_a_cpu_that_went_offline_keeps_the_count() -> None:
    facts = make_facts(host=FakeHost(cpuinfo="processor\t: 0\nx\t: y\n\n"), cpus=(0, 7))

    assert [item.name for item in cpuinfo.sources(facts)] == ["processor 0", "processor 1"]


# stat


def test_stat() -> None:
    facts = make_facts(
        cpus=(0, 1),
        usage=CpuUsage(30 * SECOND, 10 * SECOND),
        tasks=TaskCount(running=0, blocked=2, total=9, newest_pid=77),
    )

    assert render("proc/stat", facts) == (
        "cpu  3000 0 1000 15800 0 0 0 0 0 0\n"
        "cpu0 1500 0 500 7900 0 0 0 0 0 0\n"
        "cpu1 1500 0 500 7900 0 0 0 0 0 0\n"
        "intr 0\n"
        "ctxt 0\n"
        "btime 1700000000\n"
        "processes 77\n"
        "procs_running 1\n"
        "procs_blocked 2\n"
        "softirq 0 0 0 0 0 0 0 0 0 0 0\n"
    )


# uptime and loadavg


@given(st.integers(0, 10**16), st.integers(0, 10**16), st.integers(1, 9))
def test_uptime_is_two_numbers_with_two_decimals(now: int, usage: int, cpus: int) -> None:
    facts = make_facts(usage=CpuUsage(usage, 0), now=now, cpus=tuple(range(cpus)))
    text = render("proc/uptime", facts)
    match = re.fullmatch(r"(\d+\.\d\d) (\d+\.\d\d)\n", text)

    assert match is not None
    assert float(match[2]) <= cpus * (float(match[1]) + 0.01)


def test_uptime() -> None:
    facts = make_facts(now=SECOND + 12_349_999_999, cpus=(0, 1), usage=CpuUsage(SECOND, SECOND))

    assert render("proc/uptime", facts) == "12.34 22.69\n"


def test_loadavg() -> None:
    facts = make_facts(tasks=TaskCount(running=2, blocked=0, total=9, newest_pid=77))

    assert render("proc/loadavg", facts) == "0.08 0.00 0.00 2/9 77\n"


def test_an_explanation_names_the_ancestor_that_won() -> None:
    sources = {item.name: item for item in view("proc/meminfo").explain(recorded("cgroup-v1"))}

    assert sources["MemTotal"].value == "524288"
    assert "/engine/memory.limit_in_bytes (an ancestor's)" in sources["MemTotal"].source


def test_an_explanation_names_no_number_that_is_not_there() -> None:
    for tree, value, source in (
        ("cgroup-v1", 0, "does not count zswapped"),
        ("cgroup-v2", 3 * KIB, "zswapped of "),
    ):
        items = view("proc/meminfo").explain(recorded(tree))
        found = next(item for item in items if item.name == "Zswapped")
        assert found.value == str(value)
        assert source in found.source


def test_the_root_cgroup_has_no_limits_of_its_own() -> None:
    root = Cgroup(1, str(FIXTURES / "cgroup-v1/sys/fs/cgroup/memory"), "/")
    host = FakeHost(parse_meminfo((FIXTURES / "cgroup-v1/proc/meminfo").read_text()))

    assert read_memory(root, host).total.value == host.memory("MemTotal").value
