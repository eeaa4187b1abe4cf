"""The numbers that programs read in a system container agree with its limits, and each other."""

from __future__ import annotations

import itertools
import os
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from tests.engine.docker import DockerFailed
from tests.support.views import SYSCTL_POINTS, points_of_this_host
from tests.support.wait import until

if TYPE_CHECKING:
    from tests.engine.conftest import Start
    from tests.engine.docker import Docker

DIND = "sysfsd-dind:bookworm"


def test_memory(docker: Docker, start: Start) -> None:
    name = start("--memory", "300m", "--memory-swap", "300m", image=DIND, command=("sleep", "1000"))
    lines = {
        words[0]: [int(word) for word in words[1:]]
        for line in docker.exec(name, "free", "-k").splitlines()[1:]
        if (words := line.split())
    }
    total, used, free, _, _, available = lines["Mem:"]
    assert total == 300 << 10
    assert used + free <= total
    assert available <= total
    assert lines["Swap:"] == [0, 0, 0]
    assert docker.exec(name, "cat", "/proc/swaps").count("\n") == 0


def test_what_is_used_shows(docker: Docker, start: Start) -> None:
    name = start("--memory", "300m", image=DIND, command=("sleep", "1000"))

    def free() -> int:
        return int(docker.shell(name, "awk '/^MemFree/ { print $2 }' /proc/meminfo"))

    before = free()
    docker.shell(name, "mkdir -p /dev/shm && head -c 40M /dev/zero >/dev/shm/ballast")
    until(lambda: before - free() > 35 << 10, "40 MiB less of free memory")


def cpus_seen(docker: Docker, name: str) -> dict[str, int]:
    stat = docker.exec(name, "cat", "/proc/stat").splitlines()
    return {
        "/proc/stat": sum(line.startswith("cpu") and line[3].isdigit() for line in stat),
        "/proc/cpuinfo": int(docker.shell(name, "grep -c ^processor /proc/cpuinfo")),
        "getconf": int(docker.exec(name, "getconf", "_NPROCESSORS_ONLN")),
        "getconf, configured": int(docker.exec(name, "getconf", "_NPROCESSORS_CONF")),
        "lscpu": int(docker.shell(name, "lscpu | awk '/^CPU\\(s\\):/ { print $2 }'")),
    }


@pytest.mark.parametrize("options", [("--cpuset-cpus", "0"), ("--cpus", "1")], ids=" ".join)
def test_one_cpu(docker: Docker, start: Start, options: tuple[str, ...]) -> None:
    name = start(*options, image=DIND, command=("sleep", "1000"))
    assert set(cpus_seen(docker, name).values()) == {1}
    if options[0] == "--cpuset-cpus":
        # With a quota alone nproc(1) asks the scheduler, too, which lets it run on any CPU.
        assert docker.exec(name, "nproc", "--all") == "1"
        assert docker.exec(name, "nproc") == "1"


def test_no_limit_is_the_hosts_size(docker: Docker, start: Start) -> None:
    name = start(image=DIND, command=("sleep", "1000"))
    assert set(cpus_seen(docker, name).values()) == {os.cpu_count()}
    host_kb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 10
    assert f"MemTotal: {host_kb} kB" in " ".join(
        docker.exec(name, "head", "-n", "1", "/proc/meminfo").split()
    )


def test_uptime_is_the_containers(docker: Docker, start: Start) -> None:
    before = monotonic()
    name = start(image=DIND, command=("sleep", "1000"))

    def uptime() -> float:
        return float(docker.exec(name, "cat", "/proc/uptime").split()[0])

    # It began while the engine started it, and the machine long before.
    first = uptime()
    assert first <= monotonic() - before
    until(lambda: uptime() > first, "time goes on")
    assert "up 0 min" in docker.exec(name, "uptime")


def test_counters_never_run_backwards(docker: Docker, start: Start) -> None:
    name = start("--cpus", "1", image=DIND, command=("sleep", "1000"))
    script = "for i in 1 2 3 4 5 6 7 8 9 10; do head -n 1 /proc/stat; done"
    samples = [
        [int(word) for word in line.split()[1:]] for line in docker.shell(name, script).splitlines()
    ]
    assert len(samples) == 10
    for before, after in itertools.pairwise(samples):
        assert all(old <= new for old, new in zip(before, after, strict=True))


def test_a_changed_limit_shows_at_once(docker: Docker, start: Start) -> None:
    name = start("--memory", "300m", "--memory-swap", "300m", image=DIND, command=("sleep", "1000"))
    docker("update", "--memory", "200m", "--memory-swap", "200m", name)
    until(
        lambda: "204800 kB" in docker.exec(name, "head", "-n", "1", "/proc/meminfo"),
        "the new limit in /proc/meminfo",
    )


def test_a_changed_quota_shows_at_once(docker: Docker, start: Start) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("this host has one CPU")
    name = start("--cpus", "1", image=DIND, command=("sleep", "1000"))
    for cpus, count in (("2", 2), ("1", 1)):
        docker("update", "--cpus", cpus, name)
        until(
            lambda count=count: set(cpus_seen(docker, name).values()) == {count},  # type: ignore[misc]
            f"{count} CPUs in every file",
        )
        directories = docker.shell(name, "ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l")
        assert int(directories) == count


@pytest.mark.parametrize("runtime", ["sysfsd", "sysfsd-crun"])
def test_every_view_is_attached(docker: Docker, start: Start, runtime: str) -> None:
    try:
        name = start("--memory", "100m", image=DIND, command=("sleep", "1000"), runtime=runtime)
    except DockerFailed as error:
        if "hybrid mode not supported" in error.output:
            pytest.skip("crun refuses this host's mixture of cgroup v1 and v2")
        raise
    mounts = [
        line.split()[1:3] for line in docker.exec(name, "cat", "/proc/self/mounts").splitlines()
    ]
    mounted = {point for point, fstype in mounts if fstype.startswith("fuse")}
    # Pressure is the kernel's own file, where the engine gives the container a v2 cgroup as well.
    natively = {point for point, fstype in mounts if fstype == "cgroup2" and "pressure" in point}
    assert mounted >= {f"/proc/{file}" for file in ("uptime", "meminfo", "cpuinfo", "stat")}
    assert (mounted | natively) - SYSCTL_POINTS == {f"/{point}" for point in points_of_this_host()}
    for path in natively:
        assert docker.exec(name, "head", "-n", "1", path).startswith("some avg10=")
    for path in mounted - SYSCTL_POINTS:
        what = "directory" if path.startswith("/sys/") else "regular file"
        shown = docker.exec(name, "stat", "-c", "%u:%g %a %F", path)
        if what == "directory":
            assert shown == "0:0 555 directory"
        else:
            assert docker.exec(name, "cat", path) or path in {"/proc/swaps", "/proc/diskstats"}
            mode = "400" if path == "/proc/slabinfo" else "444"
            assert shown.replace(" empty", "") == f"0:0 {mode} regular file"
    assert docker.exec(name, "cat", "/sys/devices/system/cpu/online")
