"""The facts of a container, from recorded trees."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sysfsd.facts.collector import Facts, FactsCollector
from sysfsd.facts.host import HostFacts, boottime_ns, process_started
from sysfsd.facts.hugepages import read_hugepages, size_name
from sysfsd.kernel.cgroups import Cgroup, CgroupPaths, CgroupTree, read_cgroup_paths
from tests.support.recorded import Record
from tests.support.views import EACH

if TYPE_CHECKING:
    from sysfsd.views import View

FIXTURES = Path(__file__).parent / "fixtures"
V1_PID = int((FIXTURES / "cgroup-v1/pid").read_text())
MIB = 1 << 20
SECOND = 1_000_000_000


class Clock:
    now = 100 * SECOND

    def __call__(self) -> int:
        return self.now


def collector(base: Path, clock: Clock | None = None, max_callers: int = 8) -> FactsCollector:
    mounts = (base / "proc/self/mountinfo").read_text()
    return FactsCollector(
        tree=CgroupTree.from_mountinfo(mounts, str(base)),
        proc=str(base / "proc"),
        sys=str(base / "sys"),
        clock=clock or Clock(),
        boot_time=lambda: 1_700_000_000.0,
        max_callers=max_callers,
    )


def record(base: Path, pid: int) -> Record:
    return Record(1, pid, 90.5, read_cgroup_paths(pid, str(base / "proc")))


def facts(name: str) -> Facts:
    base = FIXTURES / name
    pid = V1_PID if name == "cgroup-v1" else 4242
    return collector(base).facts(record(base, pid))


def write(root: Path, values: dict[str, str]) -> None:
    for name, value in values.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(value)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "cgroup-v2", tmp_path / "v2")
    return tmp_path / "v2"


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "cgroup-v1", tmp_path / "v1")
    return tmp_path / "v1"


def test_v1_memory() -> None:
    memory = facts("cgroup-v1").memory

    assert memory.total.value == 512 * MIB
    assert "memory/engine/memory.limit_in_bytes (an ancestor's)" in memory.total.source
    assert 90 * MIB < memory.used.value < 160 * MIB
    assert memory.part("anon").value > 48 * MIB
    assert memory.part("shmem").value == 8 * MIB
    assert "total_shmem of" in memory.part("shmem").source
    assert memory.part("slab").value == 0
    assert "does not count slab" in memory.part("slab").source
    assert memory.swap_total.value == 0  # 256 MiB may be swapped, but the host has none


def test_v1_swap_is_what_exceeds_the_memory_limit(v1: Path) -> None:
    meminfo = v1 / "proc/meminfo"
    text = meminfo.read_text()
    meminfo.write_text(text.replace("SwapTotal:             0", "SwapTotal:       1048576"))
    stat = v1 / "sys/fs/cgroup/memory/engine/web/memory.stat"
    stat.write_text(stat.read_text().replace("total_swap 0", f"total_swap {300 * MIB}"))
    memory = collector(v1).facts(record(v1, V1_PID)).memory

    assert memory.swap_total.value == 256 * MIB
    assert "memory.memsw.limit_in_bytes" in memory.swap_total.source
    assert memory.swap_used.value == 256 * MIB  # never more than there is


def test_v1_without_swap_accounting(v1: Path) -> None:
    for path in (v1 / "sys/fs/cgroup/memory").rglob("memory.memsw.*"):
        path.unlink()
    memory = collector(v1).facts(record(v1, V1_PID)).memory

    assert (memory.swap_total.value, memory.swap_used.value) == (0, 0)
    assert "does not account swap" in memory.swap_total.source


def test_v2_memory() -> None:
    memory = facts("cgroup-v2").memory

    assert (memory.total.value, memory.used.value) == (256 * MIB, 144 * MIB)
    assert (memory.swap_total.value, memory.swap_used.value) == (128 * MIB, 4 * MIB)
    assert memory.part("file_mapped").value == 12 * MIB
    assert memory.part("anon_thp").value == 20 * MIB
    assert memory.part("no_such_key").value == 0


def test_usage_above_a_lowered_limit(v2: Path) -> None:
    scope = v2 / "sys/fs/cgroup/system.slice/docker-abc.scope"
    write(scope, {"memory.max": "1048576\n", "memory.swap.max": "0\n"})
    memory = collector(v2).facts(record(v2, 4242)).memory

    assert memory.used.value == memory.total.value == MIB
    assert memory.swap_used.value == memory.swap_total.value == 0
    assert memory.part("file").value <= MIB


def test_the_root_cgroup_is_the_whole_machine(v2: Path) -> None:
    paths = CgroupPaths((("", "/"),))
    memory = collector(v2).facts(Record(1, 4242, 90.5, paths)).memory

    assert memory.whole_machine
    assert memory.total.source.startswith("MemTotal of the host's")


def test_a_limit_above_the_hosts_memory(v2: Path) -> None:
    scope = v2 / "sys/fs/cgroup/system.slice/docker-abc.scope"
    write(scope, {"memory.max": f"{1 << 50}\n", "memory.swap.max": f"{1 << 50}\n"})
    memory = collector(v2).facts(record(v2, 4242)).memory

    assert memory.total == (24684092 * 1024, memory.total.source)
    assert memory.swap_total.value == 2097148 * 1024


def test_v1_cpus_effective_set_beats_the_quota() -> None:
    cpu = facts("cgroup-v1").cpu

    assert cpu.visible.value == 1
    assert cpu.cpuset.value == (1,)
    assert cpu.quota is not None
    assert cpu.quota.value == 2  # 1.5, an ancestor's
    assert "/engine/cpu.cfs_quota_us" in cpu.quota.source


def test_v2_cpus_the_ancestors_quota_wins() -> None:
    cpu = facts("cgroup-v2").cpu

    assert cpu.visible.value == 1
    assert "50000 us in 100000 us" in cpu.visible.source
    assert cpu.cpuset.value == (0, 1)  # of the nearest ancestor with the controller


@pytest.mark.parametrize(
    ("quota", "cpuset", "visible"),
    [
        ("max 100000", "0-7", 8),
        ("150000 100000", "0-7", 2),
        ("200000 100000", "0-7", 2),
        ("1000 100000", "0-7", 1),
        ("900000 100000", "0,2-3", 3),
        ("max 100000", "5", 1),
        ("300000 200000", "0-1", 2),
    ],
)
def test_visible_cpus(v2: Path, quota: str, cpuset: str, visible: int) -> None:
    root = v2 / "sys/fs/cgroup"
    write(
        root,
        {
            "cpuset.cpus.effective": cpuset,
            "system.slice/cpu.max": "max 100000\n",
            "system.slice/docker-abc.scope/cpu.max": f"{quota}\n",
        },
    )
    assert collector(v2).facts(record(v2, 4242)).cpu.visible.value == visible


def test_requested_cpus_that_are_not_effective_are_not_shown(v1: Path) -> None:
    web = v1 / "sys/fs/cgroup/cpuset/engine/web"
    write(web, {"cpuset.cpus": "0-3\n", "cpuset.effective_cpus": "0-1\n"})
    assert collector(v1).facts(record(v1, V1_PID)).cpu.cpuset.value == (0, 1)

    (web / "cpuset.effective_cpus").unlink()  # a kernel before 3.17
    assert collector(v1).facts(record(v1, V1_PID)).cpu.cpuset.value == (0, 1, 2, 3)


def test_without_any_controller_the_hosts_cpus_are_seen(v1: Path) -> None:
    cpu = collector(v1).facts(Record(1, V1_PID, 1.0, CgroupPaths())).cpu

    assert cpu.cpuset == ((0, 1), "the host's /sys/devices/system/cpu/online")
    assert cpu.quota is None


@pytest.mark.parametrize("gone", [(), ("cpuacct.usage_user",), ("cpuacct.usage_user", "stat")])
def test_v1_usage_and_its_fallbacks(v1: Path, gone: tuple[str, ...]) -> None:
    web = v1 / "sys/fs/cgroup/cpuacct/engine/web"
    total, user, system = (
        int((web / f"cpuacct.{name}").read_text()) for name in ("usage", "usage_user", "usage_sys")
    )
    for name in gone:
        (web / (name if name.startswith("cpuacct") else f"cpuacct.{name}")).unlink()
    clock = collector(v1).facts(record(v1, V1_PID)).cpu_times.clock

    if not gone:
        assert sum(clock.usage) == total
        assert clock.usage.system == total * system // (user + system)
    assert abs(sum(clock.usage) - total) < SECOND // 5
    assert clock.total.user + clock.total.system == sum(clock.usage)


def test_v2_usage_and_the_uptime_add_up(v2: Path) -> None:
    clock = Clock()
    source = collector(v2, clock)
    first = source.facts(record(v2, 4242))
    assert first.uptime.value == int(9.5 * SECOND)
    assert first.cpu_times.visible == ((int(2.5 * SECOND), int(1.5 * SECOND), int(5.5 * SECOND)),)

    clock.now += 2 * SECOND
    cpu_stat = v2 / "sys/fs/cgroup/system.slice/docker-abc.scope/cpu.stat"
    cpu_stat.write_text("usage_usec 4500000\nuser_usec 3000000\nsystem_usec 1500000\n")
    second = source.facts(record(v2, 4242))
    assert second.cpu_times.clock.total.user == 3 * SECOND
    assert sum(second.cpu_times.clock.total) == second.uptime.value


def test_a_refresh_is_one_consistent_set(v2: Path) -> None:
    now = collector(v2).facts(record(v2, 4242))
    before = now.memory
    write(v2, {"sys/fs/cgroup/system.slice/docker-abc.scope/memory.max": "1\n"})

    assert now.memory is before
    assert now.cpu_times is now.cpu_times


def test_forget_drops_everything(v2: Path) -> None:
    source = collector(v2)
    container = record(v2, 4242)
    _ = source.facts(container).cpu_times
    _ = source.facts(container).load
    source.forget(container)

    assert not source.load_sampler.tracks(container.serial)
    assert source.load_sampler.sample_all().containers == 0
    assert source.kept() == 0


def test_a_container_that_is_gone_is_an_error(v2: Path) -> None:
    gone = collector(v2).facts(record(v2, 4242))
    shutil.rmtree(v2 / "sys/fs/cgroup/system.slice/docker-abc.scope")

    for part in ("memory", "cpu", "cpu_times", "load"):
        with pytest.raises(FileNotFoundError):
            getattr(gone, part)


def test_callers_keep_a_bounded_state(v2: Path) -> None:
    (v2 / "proc/self/ns").mkdir()
    (v2 / "proc/self/ns/pid").write_text("")
    source = collector(v2, max_callers=3)
    for number in range(10):
        pid = 5000 + number
        cgroup = f"/system.slice/s{number}"
        write(
            v2,
            {
                f"proc/{pid}/cgroup": f"0::{cgroup}\n",
                f"proc/{pid}/status": f"NSpid:\t{pid}\n",
                f"sys/fs/cgroup{cgroup}/cgroup.controllers": "cpu memory\n",
                f"sys/fs/cgroup{cgroup}/cpu.stat": "user_usec 1\nsystem_usec 1\n",
            },
        )
        (v2 / f"proc/{pid}/ns").mkdir()
        os.link(v2 / "proc/self/ns/pid", v2 / f"proc/{pid}/ns/pid")
        caller = source.facts_of_caller(source.callers.identify(pid))
        assert caller.uptime.value == 100 * SECOND  # the host's: they share our pid namespace
        assert caller.cpu_times.clock.total.user == 1000

    assert source.load_sampler.sample_all().containers == 3
    assert source.kept() == 3


def test_facts_are_kept_no_longer_than_they_answer() -> None:
    base, clock = FIXTURES / "cgroup-v2", Clock()
    source = collector(base, clock)
    web = record(base, 4242)
    known = [weakref.ref(source.facts(replace(web, serial=each))) for each in (1, 2)]
    clock.now += SECOND
    source.facts(replace(web, serial=3))
    gc.collect()
    assert [each() for each in known] == [None, None]


def test_our_own_facts() -> None:
    """On the running kernel, whatever its cgroups are."""
    source = FactsCollector(tree=CgroupTree.of_host())
    own = source.facts_of_caller(source.callers.identify(os.getpid()))

    assert own.memory.total.value > 0
    assert own.cpu.visible.value >= 1
    assert 0 <= own.started.value <= own.now
    assert 0 < process_started(os.getpid()) * 1e9 <= boottime_ns()


RECORDED = "cgroup-v2-recorded"
SCOPE = "docker-2892f5bb456e9429ca4a2e42176e0abe599930a56a3b775d176d12752995e6df.scope"


def test_a_recorded_v2_container() -> None:
    base = FIXTURES / RECORDED
    scope = CgroupPaths((("", f"/sysfsdtest.slice/{SCOPE}"),))
    found = collector(base).facts(Record(1, 7378, 90.5, scope))

    assert found.memory.total.value == 64 * MIB
    assert found.memory.used.value == 63746048
    assert found.memory.swap_total.value == 128 * MIB
    assert 0 < found.memory.swap_used.value <= 128 * MIB
    assert found.cpu.cpuset.value == (1,)
    assert found.cpu.quota is not None
    assert found.cpu.quota.value == 2  # 1.5, the slice's
    assert found.cpu.visible.value == 1
    assert found.cpu_times.clock.usage == (6553809000, 4607453000)


def test_where_the_container_moved_itself_its_limits_are_the_same() -> None:
    base = FIXTURES / RECORDED
    paths = read_cgroup_paths(7378, str(base / "proc"))
    assert (paths.get("") or "").endswith("/leaf")
    found = collector(base).facts(Record(1, 7378, 90.5, paths))

    assert found.memory.total.value == 64 * MIB
    assert (found.cpu.visible.value, found.cpu.cpuset.value) == (1, (1,))


@pytest.mark.parametrize("view", EACH, ids=lambda view: view.path)
def test_every_view_of_a_recorded_v2_container(view: View) -> None:
    base = FIXTURES / RECORDED
    scope = CgroupPaths((("", f"/sysfsdtest.slice/{SCOPE}"),))
    text = view.render(collector(base).facts(Record(1, 7378, 90.5, scope))).decode()

    assert text.endswith("\n") or not text  # it has no diskstats


# Huge pages


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("parent", "own", "used", "total", "free"),
    [
        (None, None, 0, 100, 60),
        (None, 20, 5, 20, 15),
        (8, 20, 5, 8, 3),
        (None, 70, 5, 70, 60),  # the host has no more
        (None, 4, 9, 4, 0),  # lowered below what is in use
        (None, 500, 0, 100, 60),
    ],
)
def test_huge_pages(
    tmp_path: Path,
    version: int,
    parent: int | None,
    own: int | None,
    used: int,
    total: int,
    free: int,
) -> None:
    size = 2 << 20
    v1 = version == 1
    limit_file, use_file = ("limit_in_bytes", "usage_in_bytes") if v1 else ("max", "current")
    group = tmp_path / "cgroup/slice/box"
    group.mkdir(parents=True)
    for directory, limit in ((group.parent, parent), (group, own)):
        none = "9223372036854771712" if v1 else "max"
        text = none if limit is None else str(limit * size)
        (directory / f"hugetlb.2MB.{limit_file}").write_text(f"{text}\n")
    (group / f"hugetlb.2MB.{use_file}").write_text(f"{used * size}\n")
    (tmp_path / "meminfo").write_text(
        "HugePages_Total: 100\nHugePages_Free: 60\nHugepagesize: 2048 kB\n"
    )
    host = HostFacts(proc=str(tmp_path))
    cgroup = Cgroup(version, str(tmp_path / "cgroup"), "/slice/box")
    found = read_hugepages(lambda: cgroup, host)
    assert (found.total.value, found.free.value, found.size) == (total, free, size)
    assert (limit_file in found.total.source) == (total < 100)


def test_names_of_sizes() -> None:
    assert [size_name(size) for size in (64 << 10, 2 << 20, 1 << 30)] == ["64KB", "2MB", "1GB"]


def test_nobody_divides_by_a_limit_of_nothing(v1: Path, v2: Path) -> None:
    write(v1, {"sys/fs/cgroup/memory/engine/web/memory.limit_in_bytes": "0\n"})
    write(v2, {"sys/fs/cgroup/system.slice/docker-abc.scope/memory.max": "0\n"})
    for base, pid in ((v1, V1_PID), (v2, 4242)):
        memory = collector(base).facts(record(base, pid)).memory
        assert (memory.total.value, memory.used.value) == (4096, 4096)
