"""Policies with cgroup v2 and an engine that knows annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.wait import until

if TYPE_CHECKING:
    from tests.vm.box import Box
    from tests.vm.conftest import Start

MIB = 1 << 20


def online(box: Box) -> int:
    return len(box.cpu_lines()) - 1


def nproc(box: Box) -> int:
    """What sched_getaffinity(2) says."""
    return int(box.docker.exec(box.name, "nproc"))


@pytest.mark.parametrize(("policy", "seen"), [("quota", 1), ("cpuset", 2), ("off", 4)], ids=str)
def test_how_many_cpus_a_container_sees(start: Start, policy: str, seen: int) -> None:
    limits = ("--cpus", "0.5", "--cpuset-cpus", "1-2")
    box = start(*limits, "--annotation", f"dev.sysfsd.cpu-policy={policy}")
    assert online(box) == seen
    assert box.read("sys/devices/system/cpu/online") == ("0\n" if seen == 1 else f"0-{seen - 1}\n")
    assert nproc(box) == 2


def test_a_pinned_container_runs_on_what_it_sees(start: Start) -> None:
    box = start("--cpus", "2", "--annotation", "dev.sysfsd.cpu-policy=pin")
    before = (box.cgroup.parent / "cpuset.cpus.effective").read_text()
    assert (online(box), nproc(box)) == (2, 2)
    box.docker("update", "--cpus", "3", box.name)
    until(lambda: (online(box), nproc(box)) == (3, 3), "three CPUs")
    box.docker("update", "--cpuset-cpus", "2-3", box.name)
    until(lambda: (online(box), nproc(box)) == (2, 2), "two CPUs")
    box.docker("update", "--cpus", "1", box.name)
    until(lambda: (online(box), nproc(box)) == (1, 1), "one CPU")
    box.limit("cpu.max", "max")
    until(lambda: (online(box), nproc(box)) == (2, 2), "the user's two")
    assert (box.cgroup / "cpuset.cpus").read_text() == "2-3\n"
    assert (box.cgroup.parent / "cpuset.cpus.effective").read_text() == before


def test_memory_high_is_a_limit_unless_it_is_to_be_ignored(start: Start) -> None:
    counted = start("--memory", "256m")
    ignored = start("--memory", "256m", "--annotation", "dev.sysfsd.memory-high=ignore")
    for box in (counted, ignored):
        assert box.meminfo()["MemTotal"] == 256 * MIB // 1024
        box.limit("memory.high", str(96 * MIB))
    until(lambda: counted.meminfo()["MemTotal"] == 96 * MIB // 1024, "memory.high")
    assert ignored.meminfo()["MemTotal"] == 256 * MIB // 1024


def test_a_bad_annotation_is_one_line(start: Start) -> None:
    with pytest.raises(AssertionError, match=r"dev\.sysfsd\.cpu-policy must be 'quota', 'cpuset'"):
        start("--annotation", "dev.sysfsd.cpu-policy=on")
