"""The policy ``pin`` with real cpusets: what sched_getaffinity(2) says of a container's init."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from sysfsd.containers.record import ContainerRecord
from sysfsd.kernel.cgroups import CgroupTree, read_cgroup_paths
from sysfsd.pinning.pinner import GRACE_SECONDS, RETRY_SECONDS, Pinner
from sysfsd.policy import Policy
from tests.filesystem.test_restart import set_quota
from tests.support.containers import UID_BASE, Container, container
from tests.support.daemon import serving, sysfsd
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Serving
    from tests.support.tidy import ExpectedLog

ONLINE = sorted(os.sched_getaffinity(0))
BOTH = ",".join(str(cpu) for cpu in ONLINE[:2])
PIN = {"cpu-policy": "pin"}

pytestmark = pytest.mark.skipif(len(ONLINE) < 2, reason="one CPU leaves nothing to pin")


def cpuset(box: Container) -> Path:
    """The file; skips where cpusets are not enabled for cgroups."""
    for cgroup in box.cgroups:
        if (cgroup / "cpuset.cpus").exists():
            return cgroup / "cpuset.cpus"
    pytest.skip("no cpuset controller for cgroups on this host")


@pytest.fixture
def box() -> Iterator[Container]:
    """Half a CPU of two."""
    with container(cpus=0.5, cpuset=BOTH) as running:
        cpuset(running)
        yield running


def register(daemon: Serving, box: Container, name: str = "web", **policy: str) -> None:
    pidfd = os.pidfd_open(box.pid)
    try:
        daemon.call("register", pidfd, id=name, policy={**PIN, **policy})
    finally:
        os.close(pidfd)


def affinity(box: Container) -> int:
    """As nproc(1) and Go count CPUs."""
    return len(os.sched_getaffinity(box.pid))


def settled(box: Container, count: int) -> None:
    until(lambda: affinity(box) == count, f"{count} CPUs")


def test_it_runs_on_as_many_cpus_as_it_sees(own_daemon: Serving, box: Container) -> None:
    before = cpuset(box).read_text()
    register(own_daemon, box)
    settled(box, 1)
    assert (own_daemon.containers / "web/sys/devices/system/cpu/online").read_text() == "0\n"
    assert own_daemon.call("stats")["pinning"] == {"pinned": 1, "failing": 0}
    assert own_daemon.call("list")["containers"][0]["policy"]["cpu-policy"] == "pin"

    set_quota(box, 2)
    settled(box, 2)
    assert cpuset(box).read_text() == before
    set_quota(box, 1)
    settled(box, 1)
    own_daemon.call("release", id="web")
    settled(box, 2)
    assert cpuset(box).read_text() == before
    until(lambda: own_daemon.call("stats")["pinning"]["pinned"] == 0, "nothing to be pinned")


def test_what_the_engine_writes_holds(own_daemon: Serving, box: Container) -> None:
    register(own_daemon, box)
    settled(box, 1)
    (ours,) = os.sched_getaffinity(box.pid)
    other = next(cpu for cpu in ONLINE[:2] if cpu != ours)
    cpuset(box).write_text(f"{other}")
    until(lambda: own_daemon.call("stats")["pinning"]["pinned"] == 0, "nothing to be pinned")
    assert os.sched_getaffinity(box.pid) == {other}
    cpuset(box).write_text(BOTH)
    settled(box, 1)
    assert own_daemon.stop() == 0
    assert os.sched_getaffinity(box.pid) == set(ONLINE[:2])


def test_containers_are_balanced_over_the_cpus(own_daemon: Serving, box: Container) -> None:
    with container(cpus=0.5, cpuset=BOTH) as second, container(cpus=1, cpuset=BOTH) as third:
        for number, each in enumerate((box, second, third)):
            register(own_daemon, each, f"c{number}")
            settled(each, 1)
        used = [tuple(os.sched_getaffinity(each.pid)) for each in (box, second, third)]
        assert used == [(ONLINE[0],), (ONLINE[1],), (ONLINE[0],)]
        second.kill()
        until(lambda: own_daemon.call("stats")["pinning"]["pinned"] == 2, "the dead to be left")


def test_a_policy_can_be_changed_while_it_runs(own_daemon: Serving, box: Container) -> None:
    for policy, count in (("pin", 1), ("quota", 2), ("pin", 1)):
        arguments = ["attach", str(box.pid), "--id", "web", "--cpu-policy", policy]
        done = sysfsd(*arguments, control=own_daemon.control)
        assert done.returncode == 0, done.stderr
        settled(box, count)
    done = sysfsd("attach", str(box.pid), control=own_daemon.control)  # says nothing about it
    assert done.returncode == 0, done.stderr
    assert affinity(box) == 1
    done = sysfsd("detach", str(box.pid), control=own_daemon.control)
    assert done.returncode == 0, done.stderr
    settled(box, 2)


def test_the_configuration_may_pin_everybody(tmp_path: Path, box: Container) -> None:
    config = tmp_path / "sysfsd.toml"
    config.write_text('cpu-policy = "pin"\n')
    with serving(tmp_path, "--config", str(config)) as daemon:
        daemon.register("web", box.pid)
        settled(box, 1)
        assert daemon.stop(signal.SIGTERM) == 0
    assert affinity(box) == 2


def test_a_successor_tells_ours_from_theirs(tmp_path: Path, box: Container) -> None:
    with serving(tmp_path) as first:
        register(first, box)
        settled(box, 1)
        first.process.kill()
        first.process.wait()
    assert affinity(box) == 1
    with serving(tmp_path) as second:
        register(second, box)
        assert affinity(box) == 1
        set_quota(box, 2)
        settled(box, 2)
        assert cpuset(box).read_text().strip() in {BOTH, f"{ONLINE[0]}-{ONLINE[1]}"}
        assert second.stop() == 0


def test_what_a_predecessor_left_is_undone_by_a_clean_stop(tmp_path: Path, box: Container) -> None:
    with serving(tmp_path) as first:
        register(first, box)
        settled(box, 1)
        first.process.kill()
        first.process.wait()
    with serving(tmp_path) as second:
        assert second.stop() == 0
    assert affinity(box) == 2


def record(box: Container, serial: int = 1) -> ContainerRecord:
    paths = read_cgroup_paths(box.pid)
    policy = Policy("pin")
    return ContainerRecord("web", box.pid, None, 0, 0, 1.0, paths, serial, 0, policy=policy)


def pinner(tmp_path: Path, records: list[ContainerRecord], **options: Any) -> Pinner:
    path = str(tmp_path / "pins.json")
    return Pinner(tree=CgroupTree.of_host(), records=lambda: records, path=path, **options)


async def test_what_a_predecessor_left_is_undone_if_nobody_comes_for_it(
    tmp_path: Path, box: Container
) -> None:
    await pinner(tmp_path, [record(box)])._do_round()
    assert affinity(box) == 1
    now = [100.0]
    successor = pinner(tmp_path, [], clock=lambda: now[0])
    await successor._do_round()
    assert affinity(box) == 1
    now[0] += GRACE_SECONDS
    await successor._do_round()
    assert affinity(box) == 2
    assert successor.stats() == {"pinned": 0, "failing": 0}


async def test_a_file_that_is_damaged(
    tmp_path: Path, box: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pins.json").write_text('{"pins": 7')
    first = pinner(tmp_path, [record(box)])
    assert "pins of a former daemon are not known" in capsys.readouterr().out
    await first._do_round()
    assert affinity(box) == 1
    await first.release_all()
    assert affinity(box) == 2


async def test_nothing_is_written_that_a_successor_could_not_know(
    tmp_path: Path, box: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pinner(tmp_path, [record(box)])
    (tmp_path / "pins.json.new").mkdir()
    for _ in range(3):
        await first._do_round()
        assert affinity(box) == 2
    assert capsys.readouterr().out.count("not pinned as it should be") == 1
    assert first.stats() == {"pinned": 0, "failing": 1}
    (tmp_path / "pins.json.new").rmdir()
    await first._do_round()
    assert affinity(box) == 1
    await first.release_all()


async def test_a_daemon_that_is_killed_in_between(
    tmp_path: Path, box: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a write, and between the write and what is remembered after it."""
    from sysfsd.kernel.cpusets import OpenCpuset

    class Killed(BaseException):
        pass

    write, theirs = OpenCpuset.write, cpuset(box).read_text()

    def before(_self: OpenCpuset, _cpus: str) -> None:
        raise Killed

    def after(self: OpenCpuset, cpus: str) -> None:
        write(self, cpus)
        raise Killed

    for quota in (1, 0.5):
        set_quota(box, quota)
        for moment in (before, after):
            monkeypatch.setattr(OpenCpuset, "write", moment)
            with pytest.raises(Killed):
                await pinner(tmp_path, [record(box)])._do_round()
            monkeypatch.setattr(OpenCpuset, "write", write)
            following = pinner(tmp_path, [record(box)])
            await following._do_round()
            assert affinity(box) == 1
            await following.release_all()
            assert cpuset(box).read_text() == theirs


@contextmanager
def neighbour(path: Path) -> Iterator[None]:
    """Somebody else in the same cgroup."""
    with subprocess.Popen(["sleep", "100"]) as process:
        (path.parent / "cgroup.procs").write_text(str(process.pid))
        try:
            yield
        finally:
            process.kill()


async def test_a_cgroup_that_is_shared_is_left_alone(
    tmp_path: Path, box: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    with neighbour(cpuset(box)):
        first = pinner(tmp_path, [record(box)])
        await first._do_round()
        assert affinity(box) == 2
        assert "others than the container are in its cgroup" in capsys.readouterr().out
    with container(cpus=0.5) as other:
        (cpuset(box).parent / "cgroup.procs").write_text(str(other.pid))
        second = pinner(tmp_path, [record(box), record(other, 2)])
        await second._do_round()
        assert affinity(box) == affinity(other) == 2
        assert "another container is in the same cgroup" in capsys.readouterr().out


def test_attach_says_when_it_could_not_pin(
    daemon: Serving, box: Container, expected_log: ExpectedLog
) -> None:
    expected_log.allow("others than the container are in its cgroup")
    with neighbour(cpuset(box)):
        arguments = ("attach", str(box.pid), "--id", "shared", "--cpu-policy", "pin")
        attached = sysfsd(*arguments, control=daemon.control)
        assert attached.returncode == 0
        assert "not pinned: others than the container" in attached.stderr
    again = sysfsd(*arguments, control=daemon.control)
    assert (again.returncode, again.stderr) == (0, "")
    assert affinity(box) == 1
    assert sysfsd("detach", str(box.pid), control=daemon.control).returncode == 0


async def test_the_root_and_what_a_container_made_are_left_alone(
    tmp_path: Path, box: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    made = cpuset(box).parent / "made"
    made.mkdir()
    try:
        if (made / "cpuset.mems").exists():
            for name in ("cpuset.mems", "cpuset.cpus"):
                (made / name).write_text((made.parent / name).read_text())
        (made / "cgroup.procs").write_text(str(box.pid))
        # As if its root had: what one makes in a cgroup file system is one's own.
        reason = "it has no cpuset of its own"  # v2, where nobody has enabled it here
        if (made / "cpuset.cpus").exists():
            os.chown(made / "cpuset.cpus", UID_BASE, UID_BASE)
            reason = "not a cpuset of the host's"
        first = pinner(tmp_path, [record(box)])
        await first._do_round()
        assert affinity(box) == 2
        assert reason in capsys.readouterr().out
        assert first.stats()["pinned"] == 0
    finally:
        (made.parent / "cgroup.procs").write_text(str(box.pid))
        made.rmdir()
    root = cpuset(box).parent.parent
    names = [name for name in ("cpuset.cpus", "cpuset.cpus.effective") if (root / name).exists()]
    host = [(root / name).read_text() for name in names]
    with container() as bare:  # where we are: in the root, or in a cgroup of the tests' service
        second = pinner(tmp_path, [record(bare)])
        await second._do_round()
        said = capsys.readouterr().out
        assert "no cpuset of its own" in said or "others than the container" in said
        assert affinity(bare) == len(ONLINE)
    assert host == [(root / name).read_text() for name in names]
    assert host


async def test_what_v1_refuses_is_said_once_and_tried_again(
    tmp_path: Path, box: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = cpuset(box).parent / "inner"
    inner.mkdir()
    refused = (inner / "cpuset.effective_cpus").exists()  # v2 narrows what is below by itself
    try:
        if refused:
            for name in ("cpuset.mems", "cpuset.cpus"):
                (inner / name).write_text((inner.parent / name).read_text())
        now = [1000.0]
        first = pinner(tmp_path, [record(box)], clock=lambda: now[0])
        await first._do_round()
        remembered = (tmp_path / "pins.json").stat()
        for _ in range(3):
            await first._do_round()
        assert (tmp_path / "pins.json").stat() == remembered  # not written again and again
        assert affinity(box) == (2 if refused else 1)
        assert capsys.readouterr().out.count("Device or resource busy") == refused
    finally:
        inner.rmdir()
    now[0] += RETRY_SECONDS
    await first._do_round()
    assert affinity(box) == 1
    await first.release_all()
    assert affinity(box) == 2


async def test_rounds_end_with_their_container(tmp_path: Path, box: Container) -> None:
    records = [record(box)]
    first = pinner(tmp_path, records)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.run)
        while not first.stats()["pinned"]:
            await first.settle()
        assert affinity(box) == 1
        box.kill()
        records.clear()
        while first.stats()["pinned"]:
            await first.settle()
        assert first.stats() == {"pinned": 0, "failing": 0}
        nursery.cancel_scope.cancel()


def test_a_log_without_complaints(own_daemon: Serving, expected_log: ExpectedLog) -> None:
    """A policy for a container that cannot be pinned is said, and it runs all the same."""
    expected_log.allow("not pinned as it should be")
    with container() as box:
        register(own_daemon, box)
        assert (own_daemon.containers / "web/proc/stat").read_text()
        assert affinity(box) == len(ONLINE)
        until(lambda: own_daemon.call("stats")["pinning"]["failing"] == 1, "it to be said")
