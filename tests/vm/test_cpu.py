"""CPU time, quotas and cpusets of real controllers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from sysfsd.freshness import LONGEST_NS
from tests.support.wait import until
from tests.vm.box import CGROUPS, TICKS, Box, CpuLine
from tests.vm.conftest import command

if TYPE_CHECKING:
    from tests.vm.conftest import Start

BURN = ("sh", "-c", "while :; do :; done & while :; do :; done")
"""Two loops: more than a CPU's worth."""

SLACK = LONGEST_NS / 1e9 + 0.5
"""Seconds by which a view may be behind the kernel: an emulated machine has much to do."""


@dataclass(frozen=True)
class Sample:
    """What a container shows, and the kernel's numbers just before and just after."""

    began: float
    used_before: float
    lines: dict[str, CpuLine]
    uptime: float
    idle: float
    used_after: float
    ended: float

    @classmethod
    def of(cls, box: Box) -> Sample:
        began, used = time.monotonic(), box.usage()
        lines = box.cpu_lines()
        uptime, idle = map(float, box.read("proc/uptime").split())
        return cls(began, used, lines, uptime, idle, box.usage(), time.monotonic())


def assert_moves_as_it_must(first: Sample, then: Sample, *, quota: float) -> None:
    """Between two samples, each time moves as much as the kernel's, and not more than it can."""
    least, most = then.began - first.ended, then.ended - first.began
    before, after = first.lines["cpu"], then.lines["cpu"]
    count = len(then.lines) - 1
    # Each CPU was busy or idle all the time.
    passed = (after.total - before.total) / TICKS
    assert count * (least - SLACK) <= passed <= count * (most + SLACK)
    assert least - SLACK <= then.uptime - first.uptime <= most + SLACK
    assert (
        count * (least - SLACK)
        <= then.idle + after.busy / TICKS - (first.idle + before.busy / TICKS)
        <= count * (most + SLACK)
    )
    # It was busy for as long as the kernel says, which the quota bounds.
    busy = (after.busy - before.busy) / TICKS
    assert (
        then.used_before - first.used_after - SLACK
        <= busy
        <= then.used_after - first.used_before + SLACK
    )
    assert busy <= quota * most + SLACK
    # The whole is its parts; a tick of each may be lost in rounding, for user, system and idle.
    parts = [line for name, line in then.lines.items() if name != "cpu"]
    assert 0 <= after.total - sum(line.total for line in parts) <= 3 * count
    for name, line in then.lines.items():
        if name in first.lines:
            assert_not_backwards(first.lines[name], line)


def assert_not_backwards(before: CpuLine, after: CpuLine) -> None:
    assert before.user <= after.user
    assert before.system <= after.system
    assert before.idle <= after.idle


@pytest.mark.parametrize(("quota", "cpus"), [(0.5, 1), (1.5, 2)])
def test_a_quota_is_burned(start: Start, quota: float, cpus: int) -> None:
    box = start(f"--cpus={quota}", command=BURN)
    assert set(box.cpus().values()) == {tuple(range(cpus))}
    first = Sample.of(box)
    until(lambda: box.usage() > first.used_after + 4, "four seconds of CPU time")
    then = Sample.of(box)
    assert_moves_as_it_must(first, then, quota=quota)
    assert "nr_throttled 0" not in (box.cgroup / "cpu.stat").read_text().splitlines()
    # Both loops want to run, all the time.
    until(lambda: float(box.read("proc/loadavg").split()[0]) > 0, "some load")
    assert int(box.read("proc/loadavg").split()[3].split("/")[1]) == 2


def test_an_idle_container_is_idle(start: Start) -> None:
    box = start("--cpus=2")
    first = Sample.of(box)
    until(lambda: time.monotonic() > first.ended + 5, "five seconds")
    then = Sample.of(box)
    assert_moves_as_it_must(first, then, quota=0.1)


def test_changing_quotas_never_move_a_counter_back(start: Start) -> None:
    box = start("--cpus=2", command=BURN)
    samples = [Sample.of(box)]
    for quota, cpus in ((0.5, 1), (3.0, 3), (1.0, 1)):
        box.docker("update", f"--cpus={quota}", box.name)
        until(lambda cpus=cpus: len(box.cpu_lines()) == 1 + cpus, f"{cpus} CPUs")  # type: ignore[misc]
        samples.append(Sample.of(box))
    for before, after in pairwise(samples):
        assert_not_backwards(before.lines["cpu"], after.lines["cpu"])
        assert before.idle <= after.idle


def test_a_cpuset_changes_while_it_runs(parent: str, start: Start) -> None:
    box = start("--cpuset-cpus=1-3", f"--cgroup-parent={parent}", command=BURN)
    last = box.cpu_lines()["cpu"]

    def shows(count: int) -> None:
        nonlocal last
        until(
            lambda: {len(each) for each in box.cpus().values()} == {count},
            f"{count} CPUs in all files",
        )
        now = box.cpu_lines()["cpu"]
        assert_not_backwards(last, now)
        last = now

    shows(3)
    box.docker("update", "--cpuset-cpus=2", box.name)
    shows(1)
    box.docker("update", "--cpuset-cpus=0-3", box.name)
    shows(4)
    # What it asks for is not what it gets: an ancestor has less.
    command("systemctl", "set-property", "--runtime", parent, "AllowedCPUs=2-3")
    until(lambda: _effective(box) == "2-3", "systemd's cpuset")
    shows(2)
    command("systemctl", "set-property", "--runtime", parent, "AllowedCPUs=0-3")
    shows(4)


def _effective(box: Box) -> str:
    return (CGROUPS / box.cgroup / "cpuset.cpus.effective").read_text().strip()
