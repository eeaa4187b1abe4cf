"""Whose cgroup a process's is: real cgroups, real cgroup namespaces (needs root, no FUSE)."""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from sysfsd.facts.callers import Callers
from sysfsd.facts.host import boottime_ns, process_started
from sysfsd.facts.placement import placement_of
from sysfsd.kernel.cgroup_namespaces import namespace_root
from sysfsd.kernel.cgroups import CgroupTree
from tests.support.cgroups import TestCgroup, cgroup
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ID = "5e" * 32


@contextmanager
def process(*prefix: str, within: TestCgroup, below: str = "") -> Iterator[int]:
    """A process that was put into a cgroup, and then went through ``prefix``."""
    waits = ["sh", "-c", 'read go && exec "$@"', "sh", *prefix, "cat"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            within.put(child.pid, below)
            child.stdin.write(b"go\nhere\n")
            child.stdin.flush()
            assert child.stdout.readline() == b"here\n"
            yield child.pid
        finally:
            child.kill()


def own_namespace() -> int:
    return os.stat("/proc/thread-self/ns/cgroup").st_ino


@pytest.fixture(autouse=True)
def _we_stay_where_we_are() -> Iterator[None]:
    before = own_namespace()
    yield
    assert own_namespace() == before


def test_the_root_of_a_namespace_wherever_its_processes_sit() -> None:
    with cgroup("leaf", "leaf/deep") as box, process("unshare", "--cgroup", within=box) as pid:
        for below in ("", "leaf", "leaf/deep"):
            box.put(pid, below)
            root = namespace_root(pid)
            assert root is not None
            assert root.get(box.controller) == box.path
            place = placement_of(pid)
            assert place.bounded
            assert place.cgroup.get(box.controller) == box.path


def test_who_shares_our_namespace_has_no_root_of_its_own() -> None:
    assert namespace_root(os.getpid()) is None
    with cgroup("init") as box, process(within=box, below="init") as pid:
        assert namespace_root(pid) is None
        place = placement_of(pid)
        assert not place.bounded
        assert place.cgroup.get(box.controller) == box.path


def test_who_shares_our_namespace_is_known_by_its_engines_name() -> None:
    with cgroup(ID, f"{ID}/leaf") as box, process(within=box, below=f"{ID}/leaf") as pid:
        place = placement_of(pid)
        assert place.bounded
        assert place.cgroup.get(box.controller) == f"{box.path}/{ID}"


def test_a_user_namespace_around_it_keeps_nobody_out() -> None:
    with (
        cgroup("leaf") as box,
        process("unshare", "--user", "--cgroup", within=box) as pid,
    ):
        box.put(pid, "leaf")
        assert placement_of(pid).cgroup.get(box.controller) == box.path


def test_who_sits_outside_of_its_own_namespace() -> None:
    with (
        cgroup("leaf", "other") as box,
        process("unshare", "--cgroup", within=box, below="leaf") as pid,
    ):
        for outside in ("", "other"):
            box.put(pid, outside)
            assert namespace_root(pid) is None
            expected = f"{box.path}/{outside}".rstrip("/")
            assert placement_of(pid).cgroup.get(box.controller) == expected


def test_a_container_that_moves_about_never_looks_wider() -> None:
    """Below its root it has made the names of its root's again, and runs to and fro."""
    with (
        cgroup("box", "box/a", "box/box", "box/box/a") as outer,
        process("unshare", "--cgroup", within=outer, below="box") as pid,
    ):
        done = threading.Event()

        def run_about() -> None:
            while not done.is_set():
                for below in ("box/a", "box/box/a", "box/box"):
                    outer.put(pid, below)

        runner = threading.Thread(target=run_about)
        runner.start()
        try:
            for _ in range(500):
                found = placement_of(pid).cgroup.get(outer.controller)
                assert found == f"{outer.path}/box"
        finally:
            done.set()
            runner.join()


def test_a_process_that_is_gone() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(OSError):
        placement_of(child.pid)


def test_a_container_is_as_old_as_its_oldest_process() -> None:
    """Not as its pid namespace, which is the host's here, and ``pause``'s in a pod."""
    callers = Callers(CgroupTree.of_host())
    with cgroup(ID, f"{ID}/leaf") as box, process(within=box, below=f"{ID}/leaf") as first:
        started = process_started(first)
        _let_time_pass(started)
        with process(within=box, below=ID) as second:
            assert process_started(second) > started
            found = callers.identify(second).started
            assert found.value == pytest.approx(started * 1e9, abs=1e7)
            assert f"pid {first}" in found.source
            assert callers.identify(first) == callers.identify(second)
            # Nor does it grow younger when that one ends.
            os.kill(first, 9)
            until(lambda: _is_zombie(first), "its end")
            assert callers.identify(second).started == found


def test_a_pod_whose_containers_share_a_pid_namespace() -> None:
    """Its init, ``pause``, is another container's: neither its cgroup nor its age counts."""
    callers = Callers(CgroupTree.of_host())
    script = "read go; sleep 1000 & wait"
    with (
        cgroup(ID, "pause") as box,
        subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", script],
            stdin=subprocess.PIPE,
        ) as pod,
    ):
        assert pod.stdin is not None
        try:
            (pause,) = until(lambda: _children(pod.pid), "the pod's init")
            box.put(pause, "pause")
            _let_time_pass(process_started(pause))
            pod.stdin.write(b"go\n")
            pod.stdin.flush()
            (app,) = until(lambda: _children(pause), "the container's process")
            box.put(app, ID)
            caller = callers.identify(app)
            assert caller.cgroup.get(box.controller) == f"{box.path}/{ID}"
            assert caller.started.value == pytest.approx(process_started(app) * 1e9, abs=1e7)
            assert caller.pid_depth == 1
        finally:
            pod.kill()
            pod.wait()


def test_another_cgroup_of_the_same_name_is_another_container() -> None:
    callers = Callers(CgroupTree.of_host())
    with cgroup(ID) as box:
        with process(within=box, below=ID) as pid:
            first = callers.identify(pid)
        until(lambda: not (box.directory / ID / "cgroup.procs").read_text(), "its end")
        (box.directory / ID).rmdir()
        (box.directory / ID).mkdir()
        _let_time_pass(first.started.value / 1e9)
        with process(within=box, below=ID) as pid:
            second = callers.identify(pid)
            assert second.cgroup == first.cgroup
            assert second.started.value > first.started.value
            assert second != first


def _let_time_pass(started: float) -> None:
    """Wait until a process made from now on is younger, in ticks of 10 ms, than one made then."""
    until(lambda: boottime_ns() > (started + 0.02) * 1e9, "the clock to move on")


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(each) for each in file.read().split()]


def _is_zombie(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"
