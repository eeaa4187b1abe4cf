"""``sysfsd serve`` as a process: start, stop, lock, what a crash leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.attached import attach
from tests.support.containers import container
from tests.support.daemon import serving, started, sysfsd
from tests.support.tidy import count_fds
from tests.support.views import points_of_this_host
from tests.support.wait import until

if TYPE_CHECKING:
    from tests.support.containers import Container
    from tests.support.daemon import Serving
    from tests.support.tidy import ExpectedLog

CYCLES = 500


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_clean_stop(own_daemon: Serving, number: int) -> None:
    assert own_daemon.mountpoint.is_mount()
    with container() as box:
        own_daemon.register("web", box.pid)
        assert (own_daemon.containers / "web/proc/uptime").read_text()
        assert own_daemon.stop(number) == 0
    assert not own_daemon.mountpoint.is_mount()
    assert not Path(own_daemon.control).exists()
    assert own_daemon.events()[-1]["event"] == "stopped"


def test_a_clean_stop_gives_running_containers_the_kernels_files(own_daemon: Serving) -> None:
    with container(memory=96 << 20) as box:
        host = box.run("cat", "/proc/meminfo").splitlines()[0]
        attached = sysfsd("attach", str(box.pid), control=own_daemon.control)
        assert attached.returncode == 0, attached.stderr
        assert box.run("cat", "/proc/meminfo").splitlines()[0] != host
        assert own_daemon.stop() == 0
        assert box.run("cat", "/proc/meminfo").splitlines()[0] == host
        assert " /proc/meminfo " not in box.run("cat", "/proc/self/mountinfo")


def test_a_clean_stop_while_somebody_is_in_it(own_daemon: Serving) -> None:
    with container() as box:
        web = own_daemon.containers / own_daemon.register("web", box.pid)["directory"][11:]
        here = os.open(web, os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert own_daemon.stop() == 0
            assert not own_daemon.mountpoint.is_mount()
        finally:
            os.close(here)


def test_it_ends_when_it_is_unmounted(own_daemon: Serving) -> None:
    subprocess.run(["umount", own_daemon.mountpoint], check=True)
    assert own_daemon.process.wait(20) == 0
    assert not Path(own_daemon.control).exists()


def test_a_second_instance_is_refused(daemon: Serving, tmp_path: Path) -> None:
    options = ["--mountpoint", str(tmp_path / "m"), "--control", str(tmp_path / "control")]
    done = sysfsd("serve", *options, "--state-dir", str(daemon.state_dir))
    assert done.returncode == 1
    assert f"pid {daemon.process.pid}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert daemon.call("hello")


def test_somebody_elses_mountpoint_is_refused(daemon: Serving, tmp_path: Path) -> None:
    options = ["--mountpoint", str(daemon.mountpoint), "--control", str(tmp_path / "control")]
    done = sysfsd("serve", *options, "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 1
    assert "another sysfsd is mounted" in done.stderr
    assert daemon.mountpoint.is_mount()
    # The same for those who have no --mountpoint to choose.
    done = sysfsd("mount", str(daemon.mountpoint))
    assert done.returncode == 1
    assert done.stderr == (
        f"sysfsd: another sysfsd is mounted at {daemon.mountpoint}; stop it, "
        "or choose another directory\n"
    )
    assert daemon.mountpoint.is_mount()


def test_what_a_killed_predecessor_left_is_cleared(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        first.mountpoint.stat()  # the kernel keeps what it is told
        first.kill_with_holder()
        with pytest.raises(OSError, match="not connected"):
            os.statvfs(first.mountpoint)
        assert Path(first.control).exists()
        with serving(tmp_path) as second:
            assert second.call("hello")["pid"] == second.process.pid
            assert os.listdir(second.mountpoint) == ["containers"]
            assert second.stop() == 0
    assert not first.mountpoint.is_mount()


def test_ready_and_stopping_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        with serving(tmp_path) as daemon:
            assert systemd.recv(100) == b"READY=1"
            assert daemon.stop() == 0
            assert systemd.recv(100) == b"STOPPING=1"


def test_containers_root_gets_through_to_the_stage(daemon: Serving) -> None:
    assert daemon.state_dir.stat().st_mode & 0o777 == 0o711
    assert (daemon.state_dir / "stage").stat().st_mode & 0o777 == 0o711
    assert Path(daemon.control).stat().st_mode & 0o777 == 0o600


def test_a_wrong_configuration_is_one_line(tmp_path: Path) -> None:
    config = tmp_path / "sysfsd.toml"
    config.write_text('mountpiont = "/x"\n')
    done = sysfsd("serve", "--config", str(config), "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 2
    assert done.stderr == (
        f"sysfsd: {config}: unknown key 'mountpiont'; did you mean 'mountpoint'?\n"
    )


def test_nothing_leaks_over_many_containers(daemon: Serving) -> None:
    def weigh() -> dict[str, int]:
        stats = daemon.call("stats")
        mounts = Path("/proc/self/mountinfo").read_text().count(str(daemon.mountpoint))
        return {
            "fds": count_fds(daemon.process.pid),
            "records": stats["containers"],
            "snapshots": stats["snapshots"],
            "tasks": stats["tasks"],
            "mounts": mounts,
        }

    def cycle(number: int) -> None:
        # A container as cheap as can be: its init in namespaces of its own.
        init = subprocess.Popen(
            ["unshare", "--user", "--mount", "sleep", "infinity"], stdin=subprocess.DEVNULL
        )
        try:
            until(lambda: _is_apart(init.pid), "a user namespace")
            _map(init.pid)
            name = f"cycle-{number}"
            daemon.register(name, init.pid)
            assert (daemon.containers / name / "proc/uptime").read_text()
            assert (daemon.containers / name / "proc/meminfo").read_text()
            if number % 3 == 0:
                daemon.call("release", id=name)
        finally:
            init.kill()
            init.wait()

    for number in range(10):
        cycle(number)
    until(lambda: weigh()["records"] == 0, "records to go")
    before = weigh()

    def cycles(first: int) -> None:
        for number in range(first, CYCLES, 2):
            cycle(number)

    workers = [threading.Thread(target=cycles, args=(first,)) for first in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    ends = Counter(event["event"] for event in daemon.events())
    assert ends["container gone"] + ends["container released"] >= CYCLES
    until(lambda: weigh()["records"] == 0, "records to go")
    after: dict[str, int] = {}

    def level() -> bool:
        # A request is a task and a connection of its own while it lasts.
        after.update(weigh())
        return all(after[name] <= before[name] for name in before)

    try:
        until(level, "the daemon to be as before")
    finally:
        print(f"\nover {CYCLES} containers: {before} -> {after}")


def _is_apart(pid: int) -> bool:
    own = os.stat("/proc/self/ns/user").st_ino
    return os.stat(f"/proc/{pid}/ns/user").st_ino != own


def _map(pid: int) -> None:
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text("0 1500000000 65536\n")


def test_mount_in_the_foreground_stops_cleanly(tmp_path: Path) -> None:
    directory, log = tmp_path / "views", tmp_path / "log"
    directory.mkdir()
    with started(["mount", str(directory), "--control", "/nowhere"], log) as process:
        until(directory.is_mount, "the mount")
        assert (directory / "proc/meminfo").read_text().startswith("MemTotal:")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not directory.is_mount()
    assert json.loads(log.read_text().splitlines()[-1])["event"] == "unmounted"


def test_mount_makes_no_directory(tmp_path: Path) -> None:
    absent, file = tmp_path / "absent", tmp_path / "file"
    file.touch()
    for path, message in (
        (absent, f"{absent} is not there; make it first: mkdir {absent}"),
        (file, f"{file} is not a directory"),
        (file / "below", f"{file / 'below'} is not a directory"),
    ):
        done = sysfsd("mount", str(path))
        assert (done.returncode, done.stderr) == (2, f"sysfsd: {message}\n")
    assert os.listdir(tmp_path) == ["file"]


def test_expected_complaints_only(expected_log: ExpectedLog) -> None:
    """The check itself can fail."""
    from tests.support.tidy import complaints

    lines = '{"level": "info"}\n{"level": "warning", "event": "a"}\nTraceback (most recent'
    found = complaints(lines)
    assert len(found) == 2
    expected_log.allow('"event": "a"')
    assert [expected_log.covers(line) for line in found] == [True, False]


def test_attaching_again_clears_away_what_a_killed_daemon_left(
    tmp_path: Path, box: Container
) -> None:
    with serving(tmp_path) as first:
        attach(first, "box", box)
        first.kill_with_holder()
    with pytest.raises(AssertionError, match="not connected"):
        box.run("cat", "/proc/meminfo")

    with serving(tmp_path) as second:
        attach(second, "box", box)
        assert box.run("head", "-1", "/proc/meminfo").split()[1] == str(96 << 10)
        wanted = points_of_this_host()
        points = [line.split()[1] for line in box.run("cat", "/proc/self/mounts").splitlines()]
        assert [points.count(f"/{point}") for point in wanted] == [1] * len(wanted)
