"""Facts and views of a real, limited cgroup and a real pid namespace (needs root, no FUSE)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sysfsd.facts.collector import FactsCollector
from sysfsd.kernel.cgroups import CgroupTree, read_cgroup_paths
from sysfsd.kernel.openfiles import OpenFiles
from sysfsd.kernel.procfs import init_of_pid_namespace
from tests.support.views import view
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes a cgroup")

NAME = f"sysfsd-test-{os.getpid()}"
MEMORY = 96 << 20


def directory(controller: str) -> Path:
    """The root directory of the hierarchy that has a controller; skips if there is none."""
    cgroup = CgroupTree.of_host().controller(read_cgroup_paths(os.getpid()), controller)
    if cgroup is None:
        pytest.skip(f"no {controller} controller on this host")
    if cgroup.version == 2:
        enabled = Path(cgroup.mountpoint, "cgroup.subtree_control").read_text().split()
        if controller not in enabled:
            pytest.skip(f"the {controller} controller is not enabled for cgroups of this host")
    return Path(cgroup.mountpoint)


@pytest.fixture
def limited() -> Iterator[list[Path]]:
    """A cgroup with 96 MiB and half a CPU, in as many hierarchies as that takes."""
    limits = {
        "memory": (("memory.limit_in_bytes", "memory.max"), str(MEMORY)),
        "cpu": (("cpu.cfs_quota_us", "cpu.max"), "50000"),
        "cpuacct": ((), ""),
    }
    made: list[Path] = []
    try:
        for controller, (files, value) in limits.items():
            if controller == "cpuacct" and Path(directory("cpu"), "cgroup.controllers").exists():
                continue  # v2 counts CPU time by itself
            path = directory(controller) / NAME
            if path not in made:
                path.mkdir()
                made.append(path)
            for file in files:
                if (path / file).exists():
                    (path / file).write_text(value)
        yield made
    finally:
        for path in made:
            until(
                lambda path=path: not (path / "cgroup.procs").read_text(),  # type: ignore[misc]
                "an empty cgroup",
            )
            path.rmdir()


@pytest.fixture
def inside(limited: list[Path]) -> Iterator[int]:
    """A process in that cgroup, busy, in a pid namespace of its own; its pid in ours."""
    script = (
        "read go; unshare --pid --fork --kill-child sh -c 'echo $$; while :; do :; done' & wait"
    )
    outer = subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    )
    assert outer.stdin is not None
    assert outer.stdout is not None
    try:
        for path in limited:
            (path / "cgroup.procs").write_text(str(outer.pid))
        outer.stdin.write(b"go\n")
        outer.stdin.flush()
        assert outer.stdout.readline() == b"1\n"
        yield next(pid for pid in pids(limited[0]) if inner_pid(pid) == [str(pid), "1"])
    finally:
        os.killpg(outer.pid, 9)
        outer.communicate()


def pids(cgroup: Path) -> list[int]:
    return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]


def inner_pid(pid: int) -> list[str]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[1:]
    return []


def test_the_views_of_a_limited_busy_process(inside: int) -> None:
    collector = FactsCollector(tree=CgroupTree.of_host())

    def shown(path: str) -> str:
        caller = collector.callers.identify(inside)
        return view(path).render(collector.facts_of_caller(caller)).decode()

    def busy() -> int:
        user, _, system = shown("proc/stat").split()[1:4]
        return int(user) + int(system)

    assert f"MemTotal:       {MEMORY // 1024:>8} kB\n" in shown("proc/meminfo")
    assert shown("sys/devices/system/cpu/online") == "0\n"
    assert shown("proc/cpuinfo").count("processor\t") == 1
    before = busy()
    until(lambda: busy() > before + 5, "some work")
    uptime, idle = (float(field) for field in shown("proc/uptime").split())
    assert 0 <= idle < uptime < 20
    assert shown("proc/loadavg").split()[3] in ("1/3", "2/3")
    assert shown("proc/loadavg").split()[4] == "1"  # its pid inside, not ours


def test_the_init_of_a_pid_namespace_is_found(inside: int) -> None:
    found = init_of_pid_namespace(inside)
    if found is None:
        pytest.skip("this kernel has no NS_GET_PID_FROM_PIDNS (6.11)")
    assert found == inside


def test_files_that_stay_open_of_a_cgroup_that_is_gone() -> None:
    """ENODEV, and another cgroup of the same name is another one."""
    tree = CgroupTree.of_host()
    own = tree.membership(read_cgroup_paths(os.getpid()))
    assert own is not None
    name = f"sysfsd-test-{os.getpid()}-kept"
    directory = Path(own.mountpoint, name)
    with OpenFiles(16) as files:
        directory.mkdir()
        try:
            assert files.read(own.mountpoint, f"/{name}", "cgroup.clone_children") in {b"0\n", None}
            assert files.read(own.mountpoint, f"/{name}", "cgroup.procs") == b""
            directory.rmdir()
            with pytest.raises(FileNotFoundError):
                files.read(own.mountpoint, f"/{name}", "cgroup.procs")
            assert len(files) == 0
            directory.mkdir()
            assert files.read(own.mountpoint, f"/{name}", "cgroup.procs") == b""
            directory.rmdir()
            with pytest.raises(FileNotFoundError):
                files.read(own.mountpoint, f"/{name}", "nope")
        finally:
            if directory.exists():
                directory.rmdir()
