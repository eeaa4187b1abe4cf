"""Directories whose entries depend on the container: CPUs and nodes."""

from __future__ import annotations

import errno
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sysfsd.kernel.cgroups import CgroupTree, read_cgroup_paths
from sysfsd.kernel.procfs import parse_cpu_list
from tests.support.attached import attach
from tests.support.containers import container
from tests.support.daemon import sysfsd
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.containers import Container
    from tests.support.daemon import Serving

CPU = "sys/devices/system/cpu"


@pytest.fixture
def two() -> Iterator[Container]:
    """A container with a quota of two CPUs, whatever this host has."""
    with container(memory=96 << 20, cpus=2) as running:
        yield running


def set_quota(box: Container, cpus: float) -> None:
    cgroup = CgroupTree.of_host().controller(read_cgroup_paths(box.pid), "cpu")
    assert cgroup is not None
    quota = int(cpus * 100000)
    if cgroup.version == 1:
        Path(cgroup.source("cpu.cfs_quota_us")).write_text(str(quota))
    else:
        Path(cgroup.source("cpu.max")).write_text(f"{quota} 100000")


def cpus_in(directory: Path) -> set[str]:
    return {name for name in os.listdir(directory) if re.fullmatch(r"cpu\d+", name)}


def test_cpus_come_and_go_with_the_quota(daemon: Serving, two: Container) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("this host has one CPU")
    directory = daemon.mountpoint / daemon.register("two", two.pid)["directory"] / CPU
    second = directory / "cpu1/topology/core_id"
    for cpus, present in ((2, True), (1, False), (2, True)):
        set_quota(two, cpus)
        until(lambda present=present: second.exists() == present, "the second CPU's directory")  # type: ignore[misc]
        until(
            lambda present=present: ("cpu1" in cpus_in(directory)) == present,  # type: ignore[misc]
            "the second CPU in the listing",
        )
        assert (directory / "online").read_text() == ("0-1\n" if present else "0\n")
    held = os.open(directory / "cpu1", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert "topology" in os.listdir(held)
        set_quota(two, 1)
        until(lambda: not second.exists(), "no second CPU")
        with pytest.raises(OSError) as raised:
            os.stat(second)
        assert raised.value.errno == errno.ENOENT
    finally:
        os.close(held)
    daemon.call("release", id="two")


def test_a_running_container_has_just_its_cpus(daemon: Serving, box: Container) -> None:
    attach(daemon, "box", box)
    names = box.run("ls", f"/{CPU}").split()
    assert [name for name in names if re.fullmatch(r"cpu\d+", name)] == ["cpu0"]
    assert "cpuidle" not in names
    assert box.run("cat", f"/{CPU}/cpu0/topology/core_siblings_list") == "0\n"
    if Path("/sys/devices/system/node").exists():
        nodes = parse_cpu_list(box.run("cat", "/sys/devices/system/node/online"))
        directories = [f"/sys/devices/system/node/node{node}" for node in nodes]
        texts = [box.run("cat", f"{directory}/meminfo") for directory in directories]
        totals = [re.search(r"MemTotal: +(\d+) kB", text) for text in texts]
        assert sum(int(total[1]) for total in totals if total) == 96 << 10
        lists = [box.run("cat", f"{directory}/cpulist") for directory in directories]
        assert sorted(lists) == ["\n"] * (len(nodes) - 1) + ["0\n"]
        base = directories[lists.index("0\n")]
        links = [name for name in box.run("ls", base).split() if re.fullmatch(r"cpu\d+", name)]
        assert links == ["cpu0"]
        assert box.run("readlink", f"{base}/cpu0") == "../../cpu/cpu0\n"
        assert box.run("cat", f"{base}/cpu0/topology/core_id") == "0\n"
    lscpu = box.run("lscpu")
    assert re.search(r"^CPU\(s\): +1$", lscpu, re.MULTILINE)
    assert re.search(r"^Socket\(s\): +1$", lscpu, re.MULTILINE)
    detached = sysfsd("detach", str(box.pid), control=daemon.control)
    assert detached.returncode == 0, detached.stderr
    assert len(box.run("ls", f"/{CPU}").split()) == len(os.listdir(f"/{CPU}"))


@pytest.mark.parametrize("name", ["cpu", "cpu01", "cpu-1", "cpu99999", "cpu{}", "x" * 255])
def test_there_is_nothing_else(web: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        os.stat(web / CPU / name)


def test_directories_cannot_be_changed(web: Path) -> None:
    base = web / CPU
    for change in (
        (base / "cpu7").mkdir,
        (base / "cpu0").rmdir,
        partial((base / "cpu0").rename, base / "cpu1"),
        (base / "cpu0/topology/core_id").unlink,
        partial((base / "cpu0").chmod, 0o777),
    ):
        with pytest.raises(PermissionError):
            change()


def test_everything_below_can_be_read(web: Path) -> None:
    read = 0
    for path, _, files in os.walk(web):
        for file in files:
            data = Path(path, file).read_bytes()
            assert data.endswith(b"\n") or file == "diskstats"
            read += 1
    assert read > 50
