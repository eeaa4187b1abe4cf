"""A container's disk I/O: the facts of v1 and v2, and the views that are made of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.facts import disk
from sysfsd.facts.collector import Facts, FactsCollector
from sysfsd.facts.disk import DiskCounters, RawDisk, RawDisks, parse_io_stat, parse_rwstat
from sysfsd.kernel.cgroups import CgroupPaths, CgroupTree, read_cgroup_paths
from sysfsd.kernel.procfs import parse_diskstats, parse_partitions
from tests.support.recorded import FIXTURES, PIDS, V1, Record
from tests.support.views import EACH, view

V1_PID = PIDS[V1]
HEADER = "major minor  #blocks  name\n\n"


def collector(base: Path) -> FactsCollector:
    return FactsCollector(
        tree=CgroupTree.from_mountinfo((base / "proc/self/mountinfo").read_text(), str(base)),
        proc=str(base / "proc"),
        sys=str(base / "sys"),
        clock=lambda: 100_000_000_000,
        boot_time=lambda: 1_700_000_000.0,
        refresh_ns=lambda: 0,
    )


def record(base: Path, pid: int) -> Record:
    return Record(1, pid, 90.5, read_cgroup_paths(pid, str(base / "proc")))


def recorded(name: str) -> Facts:
    base = FIXTURES / name
    return collector(base).facts(record(base, PIDS[name]))


def render(path: str, facts: Facts) -> str:
    return view(path).render(facts).decode()


def explained(path: str, facts: Facts) -> dict[str, str]:
    return {item.name: item.source for item in view(path).explain(facts)}


def vmstat(facts: Facts) -> dict[str, int]:
    return {
        line.split()[0]: int(line.split()[1]) for line in render("proc/vmstat", facts).splitlines()
    }


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "cgroup-v1", tmp_path / "v1")
    return tmp_path / "v1"


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "cgroup-v2", tmp_path / "v2")
    return tmp_path / "v2"


def scope(base: Path) -> Path:
    return base / "sys/fs/cgroup/system.slice/docker-abc.scope"


def web(base: Path) -> Path:
    return base / "sys/fs/cgroup/blkio/engine/web"


# parsing


def test_io_stat() -> None:
    text = "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=7\n254:0 rbytes=9\n"

    assert parse_io_stat(text) == {
        "8:0": {
            "rbytes": 1,
            "wbytes": 2,
            "rios": 3,
            "wios": 4,
            "dbytes": 5,
            "dios": 6,
            "cost.usage": 7,
        },
        "254:0": {"rbytes": 9},
    }


def test_io_stat_of_kernels_that_forget_the_end_of_the_line() -> None:
    text = "7:7 7:6 8:0 rbytes=1 wbytes=2\n253:0 \n(unknown) rbytes=7\n"

    assert parse_io_stat(text) == {
        "7:7": {},
        "7:6": {},
        "8:0": {"rbytes": 1, "wbytes": 2},
        "253:0": {},
    }


def test_rwstat() -> None:
    text = "8:0 Read 1\n8:0 Write 2\n8:16 Read 3\n8:0 Total x\nTotal 6\n"

    assert parse_rwstat(text) == {"8:0": {"Read": 1, "Write": 2}, "8:16": {"Read": 3}}


@given(st.text(alphabet="0123:=rbytes \nReadTotal", max_size=120))
def test_any_text_is_parsed(text: str) -> None:
    for parse in (parse_io_stat, parse_rwstat):
        for numbers in parse(text).values():
            assert all(value >= 0 for value in numbers.values())
    assert parse_diskstats(text) == ()
    assert all(":" in line.number for line in parse_partitions(text))


def test_this_hosts_disks() -> None:
    text = Path("/proc/diskstats").read_text()

    assert [line.text for line in parse_diskstats(text)] == text.splitlines()


# v2


def test_v2_diskstats() -> None:
    """In the host's order; not its partition, not the disk that was not used, not the one gone."""
    assert render("proc/diskstats", recorded("cgroup-v2")) == (
        " 254       0 vda 1600 0 102400 0 800 0 204800 0 0 0 0 2 0 2048 0 0 0\n"
        " 253       0 dm-0 1600 0 102400 0 800 0 204800 0 0 0 0 0 0 0 0 0 0\n"
    )
    sources = explained("proc/diskstats", recorded("cgroup-v2"))
    assert "docker-abc.scope/io.stat" in sources["vda"]


def test_v2_partitions_are_the_disks_of_diskstats() -> None:
    assert render("proc/partitions", recorded("cgroup-v2")) == (
        f"{HEADER} 254        0  268435456 vda\n 253        0  134217728 dm-0\n"
    )


def test_a_recorded_v2_container_and_its_swap() -> None:
    """Reads and writes count bios, as the kernel tells; the disk merged most of those to the swap.

    In the host's line of vdb there are 312 writes, and 11542 that were merged.
    """
    base = FIXTURES / "cgroup-v2-machine"
    leaf = record(base, int((base / "pid").read_text()))
    [(_, path)] = leaf.cgroup.entries
    scope = replace(leaf, cgroup=CgroupPaths((("", path.removesuffix("/leaf")),)))
    facts = collector(base).facts(scope)

    assert render("proc/diskstats", facts) == (
        " 259       0 nvme0n1 22 0 4144 0 278 0 26160 0 0 0 0 0 0 0 0 0 0\n"
        " 254      16 vdb 0 0 0 0 11852 0 94816 0 0 0 0 0 0 0 0 0 0\n"
    )
    shown = vmstat(facts)
    assert (shown["pgpgin"], shown["pgpgout"]) == (2121728 // 1024, (13393920 + 48545792) // 1024)
    assert (shown["pgfault"], shown["pgscan_direct"]) == (2504, 26931)
    assert (shown["numa_hint_faults"], shown["numa_hit"]) == (85, 0)


@pytest.mark.parametrize("columns", [11, 15, 17])
def test_a_line_has_as_many_columns_as_the_hosts(v2: Path, columns: int) -> None:
    host = v2 / "proc/diskstats"
    lines = [line.split()[: 3 + columns] for line in host.read_text().splitlines()]
    host.write_text("".join(" ".join(fields) + "\n" for fields in lines))
    text = render("proc/diskstats", collector(v2).facts(record(v2, 4242)))

    assert [len(line.split()) for line in text.splitlines()] == [3 + columns] * 2


def test_v2_without_the_controller_nothing_is_known(v2: Path) -> None:
    """Its parent's I/O is that of others, too."""
    (scope(v2) / "cgroup.controllers").write_text("cpu memory pids\n")
    facts = collector(v2).facts(record(v2, 4242))

    assert facts.disk.disks == []
    assert "not enabled for" in facts.disk.source
    assert render("proc/diskstats", facts) == ""
    assert render("proc/partitions", facts) == HEADER
    assert vmstat(facts)["pgpgin"] == 0


def test_the_root_cgroups_disks_are_the_hosts_and_not_shown(v2: Path) -> None:
    (v2 / "sys/fs/cgroup/io.stat").write_text("254:0 rbytes=4096 rios=1 wbytes=0 wios=0\n")
    facts = collector(v2).facts(Record(1, 4242, 90.5, CgroupPaths((("", "/"),))))

    assert render("proc/diskstats", facts) == ""
    assert "the host's" in facts.disk.source


def test_without_any_controller_nothing_is_known(v2: Path) -> None:
    facts = collector(v2).facts(Record(1, 4242, 90.5, CgroupPaths()))

    assert (facts.disk.disks, facts.disk.source) == ([], "no io controller")


def test_v2_a_cgroup_without_the_file(v2: Path) -> None:
    (scope(v2) / "io.stat").unlink()

    assert render("proc/diskstats", collector(v2).facts(record(v2, 4242))) == ""


# v1


def test_v1_diskstats_is_what_the_devices_own_counters_say() -> None:
    """Only this container used the loop devices: the host's line has what ours must have."""
    facts = recorded("cgroup-v1")
    host = {
        line.name: [int(number) for number in line.text.split()[3:]]
        for line in facts.host.diskstats
    }
    ours = {
        line.split()[2]: [int(number) for number in line.split()[3:]]
        for line in render("proc/diskstats", facts).splitlines()
    }

    assert sorted(ours) == ["loop240", "loop241"]
    for name, numbers in ours.items():
        assert len(numbers) == len(host[name])
        for column in (0, 2, 6, 11, 13):  # reads, sectors read and written, discards, sectors
            assert numbers[column] == host[name][column] > 0, (name, column)
        assert 12 <= numbers[4] <= host[name][4]  # writes: who counts the flush varies
        assert numbers[8:11] == [0, 0, 0]


def test_v1_explains_who_counted() -> None:
    sources = explained("proc/diskstats", recorded("cgroup-v1"))

    assert "engine/web/blkio.throttle.io_{serviced," in sources["loop240"]
    assert "engine/web/blkio.bfq.io_{serviced," in sources["loop241"]


def test_v1_partitions_and_vmstat_agree_with_diskstats() -> None:
    facts = recorded("cgroup-v1")

    assert render("proc/partitions", facts) == (
        f"{HEADER}   7      240       8192 loop240\n   7      241       8192 loop241\n"
    )
    assert vmstat(facts)["pgpgin"] == 2 * 450560 // 1024
    assert vmstat(facts)["pgpgout"] == 2 * 786432 // 1024


@pytest.mark.parametrize(("size", "reads"), [(4096, 35), (1 << 30, 7)])
def test_v1_who_has_seen_more_of_a_device_is_believed(v1: Path, size: int, reads: int) -> None:
    """A limit that is new on a device which has had its scheduler for long, or the reverse."""
    (web(v1) / "blkio.throttle.io_serviced_recursive").write_text("7:241 Read 7\n7:241 Total 7\n")
    (web(v1) / "blkio.throttle.io_service_bytes_recursive").write_text(f"7:241 Read {size}\n")
    facts = collector(v1).facts(record(v1, V1_PID))

    assert [(each.name, each.counters.reads) for each in facts.disk.disks] == [("loop241", reads)]


def test_v1_cfq_and_a_scheduler_that_tells_times(v1: Path) -> None:
    """CFQ's files (Linux before 5.0), and with CONFIG_BFQ_CGROUP_DEBUG those of bfq."""
    for file in web(v1).iterdir():
        file.unlink()
    for name, read, write in (
        ("io_serviced", 10, 5),
        ("io_service_bytes", 40960, 1024),
        ("io_merged", 3, 2),
        ("io_service_time", 7_000_000, 2_500_000),
        ("io_wait_time", 1_000_000, 0),
    ):
        text = f"254:0 Read {read}\n254:0 Write {write}\n254:0 Total {read + write}\nTotal 1\n"
        (web(v1) / f"blkio.{name}_recursive").write_text(text)

    assert render("proc/diskstats", collector(v1).facts(record(v1, V1_PID))) == (
        " 254       0 vda 10 3 80 8 5 2 2 2 0 9 10 0 0 0 0 0 0\n"
    )


def test_v1_no_blkio_hierarchy_and_no_v2_controller(v1: Path) -> None:
    paths = read_cgroup_paths(V1_PID, str(v1 / "proc"))
    without = CgroupPaths(tuple(entry for entry in paths.entries if entry[0] != "blkio"))
    (v1 / "sys/fs/cgroup/unified").mkdir()

    assert render("proc/diskstats", collector(v1).facts(Record(1, V1_PID, 90.5, without))) == ""


def test_a_container_in_blkios_root_sees_no_disk(v1: Path) -> None:
    """An engine that leaves its containers in the root of a hierarchy that it does not use."""
    paths = read_cgroup_paths(V1_PID, str(v1 / "proc"))
    rooted = CgroupPaths(
        tuple((name, "/" if name == "blkio" else path) for name, path in paths.entries)
    )

    assert render("proc/diskstats", collector(v1).facts(Record(1, V1_PID, 90.5, rooted))) == ""


# over time


def test_counters_do_not_run_backwards_when_the_kernels_do(v1: Path) -> None:
    source = collector(v1)
    container = record(v1, V1_PID)
    before = render("proc/diskstats", source.facts(container))
    # blkio.reset_stats, or a cgroup below that was removed.
    for file in web(v1).glob("blkio.throttle.*"):
        file.write_text("7:240 Read 0\n7:240 Total 0\nTotal 0\n")
    assert render("proc/diskstats", source.facts(container)) == before

    (web(v1) / "blkio.throttle.io_serviced_recursive").write_text("7:240 Read 2\n")
    after = render("proc/diskstats", source.facts(container))
    assert before.splitlines()[0].split()[3] == "35"
    assert after.splitlines()[0].split()[3] == "37"


def test_a_device_that_is_gone_is_forgotten(v2: Path) -> None:
    """Its number may be another device's, later."""
    source = collector(v2)
    assert len(source.facts(record(v2, 4242)).disk.disks) == 2
    host = v2 / "proc/diskstats"
    lines = host.read_text()
    host.write_text(lines.replace(" 253       0 dm-0", " 253       9 dm-9"))
    assert [each.name for each in source.facts(record(v2, 4242)).disk.disks] == ["vda"]

    host.write_text(lines.replace("dm-0", "new"))
    (scope(v2) / "io.stat").write_text("253:0 rbytes=512 wbytes=0 rios=1 wios=0\n")
    found = source.facts(record(v2, 4242)).disk.disks
    assert [(each.name, each.counters.reads) for each in found] == [("vda", 1600), ("new", 1)]


def test_forget_drops_the_disks(v2: Path) -> None:
    source = collector(v2)
    container = record(v2, 4242)
    _ = source.facts(container).disk
    source.forget(container)
    (scope(v2) / "io.stat").write_text("254:0 rbytes=512 wbytes=0 rios=1 wios=0\n")

    assert source.facts(container).disk.disks[0].counters.reads == 1


def test_a_container_that_is_gone_is_an_error(v2: Path) -> None:
    gone = collector(v2).facts(record(v2, 4242))
    shutil.rmtree(scope(v2))

    with pytest.raises(FileNotFoundError):
        _ = gone.disk
    with pytest.raises(FileNotFoundError):
        _ = gone.oom_kills


counters = st.builds(
    DiskCounters, **{name: st.integers(0, 1 << 62) for name in DiskCounters._fields}
)
moments = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(["8:0", "8:16", "254:0"]), counters, max_size=3),
        st.sets(st.sampled_from(["8:0", "8:16", "254:0"])),
    ),
    max_size=6,
)


@given(moments)
def test_whatever_the_kernel_says_counters_grow(
    moments: list[tuple[dict[str, DiskCounters], set[str]]],
) -> None:
    clock = disk.START
    for disks, present in moments:
        raw = RawDisks({number: RawDisk(each, "") for number, each in disks.items()}, "")
        after = disk.advance(clock, raw, sorted(present), lambda _: False)
        assert set(after.shown) <= present
        assert all(new >= old for new, old in zip(after.total, clock.total, strict=True))
        for number, shown in after.shown.items():
            last = clock.shown.get(number, DiskCounters())
            assert all(new >= old for new, old in zip(shown, last, strict=True))
            if number in disks and number not in clock.raw:
                assert shown == disks[number]
        clock = after


@given(st.lists(counters, min_size=1, max_size=5))
def test_growth_is_the_kernels_where_that_grows(steps: list[DiskCounters]) -> None:
    clock = disk.START
    total = DiskCounters()
    for step in steps:
        total = DiskCounters(*map(int.__add__, total, step))
        clock = disk.advance(
            clock, RawDisks({"8:0": RawDisk(total, "")}, ""), ["8:0"], lambda _: False
        )

    assert clock.shown["8:0"] == total
    assert clock.total == (total.read_bytes, total.written_bytes)


def test_the_total_outlives_a_device_and_counts_no_io_twice() -> None:
    moved = DiskCounters(reads=1, read_bytes=4096, writes=2, written_bytes=8192)
    raw = RawDisks({"8:0": RawDisk(moved, ""), "253:0": RawDisk(moved, "")}, "")

    both = disk.advance(disk.START, raw, ["8:0", "253:0"], "253:0".__eq__)
    assert both.total == (4096, 8192)

    gone = disk.advance(both, RawDisks({}, ""), [], lambda _: False)
    assert gone.shown == {}
    assert gone.total == (4096, 8192)


# vmstat


@pytest.mark.parametrize("tree", ["cgroup-v1", "cgroup-v2"])
def test_vmstat_has_the_hosts_lines(tree: str) -> None:
    host = (FIXTURES / tree / "proc/vmstat").read_text()

    assert list(vmstat(recorded(tree))) == [line.split()[0] for line in host.splitlines()]


def test_vmstat_of_a_v2_container() -> None:
    expected = {
        "nr_free_pages": 112 * 256,
        "nr_inactive_anon": 70 * 256,
        "nr_zone_inactive_anon": 70 * 256,
        "nr_anon_pages": 60 * 256,
        "nr_mapped": 12 * 256,
        "nr_file_pages": 64 * 256,  # with the swap cache, that meminfo's Cached leaves out
        "nr_dirty": 10,
        "nr_writeback": 2,
        "nr_zone_write_pending": 12,
        "nr_shmem": 16 * 256,
        "nr_slab_reclaimable": 10 * 256,
        "nr_slab_unreclaimable": 3 * 256,
        "nr_kernel_stack": 1024,  # kB
        "nr_page_table_pages": 2 * 256,
        "nr_swapcached": 256,
        "nr_anon_transparent_hugepages": 10,
        "nr_shmem_hugepages": 1,
        "nr_mlock": 0,
        "pgfault": 24000,
        "pgmajfault": 12,
        "pgactivate": 4500,
        "zswpout": 768,
        "thp_fault_alloc": 10,
        "oom_kill": 2,
        "pgpgin": 51200,  # of the disk alone: what the volume above it did is the same I/O
        "pgpgout": 102400,
        "numa_hit": 0,
        "pgalloc_normal": 0,
        "nr_foll_pin_acquired": 0,
        "direct_map_level2_splits": 0,
    }
    shown = vmstat(recorded("cgroup-v2"))

    assert {name: shown[name] for name in expected} == expected


def test_vmstat_of_a_v1_container() -> None:
    facts = recorded("cgroup-v1")
    shown, stat = vmstat(facts), facts.memory.stat

    assert shown["pgfault"] == stat["total_pgfault"] > 0
    assert shown["pgmajfault"] == stat["total_pgmajfault"]
    assert shown["workingset_refault_file"] == stat["total_workingset_refault_file"]
    # Of pages charged, which is what v1 means by pgpgin, this says nothing.
    assert shown["pgpgin"] != stat["total_pgpgin"]
    assert shown["nr_shmem"] == 8 * 256
    assert shown["nr_anon_pages"] == stat["total_rss"] // 4096


def test_v1_events_are_those_of_all_cgroups_below(v1: Path) -> None:
    path = v1 / "sys/fs/cgroup/memory/engine/web/memory.stat"
    path.write_text("pgfault 3\npgmajfault 1\ntotal_pgfault 8\ntotal_pgmajfault 2\n")
    shown = vmstat(collector(v1).facts(record(v1, V1_PID)))

    assert (shown["pgfault"], shown["pgmajfault"]) == (8, 2)


def test_v1_counts_oom_kills(v1: Path) -> None:
    control = v1 / "sys/fs/cgroup/memory/engine/web/memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    facts = collector(v1).facts(record(v1, V1_PID))
    assert vmstat(facts)["oom_kill"] == 3
    assert "memory.oom_control" in explained("proc/vmstat", facts)["oom_kill"]

    control.write_text("oom_kill_disable 0\nunder_oom 0\n")  # before Linux 4.13
    assert vmstat(collector(v1).facts(record(v1, V1_PID)))["oom_kill"] == 0


@pytest.mark.parametrize("tree", ["cgroup-v1", "cgroup-v2"])
def test_vmstat_agrees_with_meminfo(tree: str) -> None:
    facts = recorded(tree)
    pages = vmstat(facts)
    kilobytes = {
        line.split()[0].rstrip(":"): int(line.split()[1])
        for line in render("proc/meminfo", facts).splitlines()
    }

    for name, lines in (
        ("nr_free_pages", ["MemFree"]),
        ("nr_active_file", ["Active(file)"]),
        ("nr_mapped", ["Mapped"]),
        ("nr_file_pages", ["Cached", "Buffers", "SwapCached"]),
        ("nr_slab_reclaimable", ["SReclaimable"]),
        ("nr_page_table_pages", ["PageTables"]),
    ):
        assert pages[name] == sum(kilobytes[line] for line in lines) // 4
    total = kilobytes["MemTotal"] // 4
    assert all(count <= total for name, count in pages.items() if name.startswith("nr_dirty"))
    assert 0 < pages["nr_dirty_background_threshold"] < pages["nr_dirty_threshold"] < total


def test_a_sum_of_amounts_is_no_more_than_all_memory(v2: Path) -> None:
    """Read while pages turn from dirty to being written: both may be all of the page cache."""
    size = 256 << 20
    (scope(v2) / "memory.current").write_text(f"{size}\n")
    (scope(v2) / "memory.stat").write_text(
        f"file {size}\nfile_dirty {size}\nfile_writeback {size}\n"
    )
    shown = vmstat(collector(v2).facts(record(v2, 4242)))

    assert shown["nr_dirty"] == shown["nr_writeback"] == size // 4096
    assert shown["nr_zone_write_pending"] == size // 4096


def test_vmstat_of_the_whole_machine_agrees_with_its_meminfo_and_tells_no_events(v2: Path) -> None:
    facts = collector(v2).facts(Record(1, 4242, 90.5, CgroupPaths((("", "/"),))))
    shown = vmstat(facts)

    assert shown["nr_free_pages"] == 22020428 // 4
    assert shown["pgfault"] == 0
    assert shown["pgpgin"] == 0
    assert shown["oom_kill"] == 0


def test_no_event_of_the_hosts_is_told() -> None:
    """Whatever the host counts: with other numbers in its file, ours stay what they are."""
    for tree in PIDS:
        facts = recorded(tree)
        names = dict.fromkeys(facts.host.vmstat, 987654321)
        before = vmstat(facts)
        other = recorded(tree)
        other.host.__dict__["vmstat"] = names
        moved = {name for name, count in vmstat(other).items() if count != before[name]}

        assert moved == {"nr_dirty_threshold", "nr_dirty_background_threshold"}


# slabinfo, and kernels that have none of these files


def test_slabinfo_is_a_header() -> None:
    text = render("proc/slabinfo", recorded("cgroup-v1"))

    assert text.splitlines()[0] == "slabinfo - version: 2.1"
    assert text.splitlines()[1].startswith("# name            <active_objs> <num_objs> <objsize> ")
    assert text.count("\n") == 2


def test_slabinfo_is_roots_as_the_kernels_is() -> None:
    modes = {each.path: each.mode for each in EACH if each.path.startswith("proc/")}

    assert [path for path, mode in modes.items() if mode != 0o444] == ["proc/slabinfo"]
    assert modes["proc/slabinfo"] == 0o400


@pytest.mark.parametrize("tree", list(PIDS))
def test_a_kernel_without_these_files(tmp_path: Path, tree: str) -> None:
    shutil.copytree(FIXTURES / tree, tmp_path / tree)
    for name in ("diskstats", "partitions", "vmstat"):
        (tmp_path / tree / "proc" / name).unlink()
    facts = collector(tmp_path / tree).facts(record(tmp_path / tree, PIDS[tree]))

    assert render("proc/diskstats", facts) == render("proc/vmstat", facts) == ""
    assert render("proc/partitions", facts) == HEADER
