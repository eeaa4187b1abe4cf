"""``sysfsd mount``: everybody sees their own numbers in the same files."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.containers import Container, container
from tests.support.daemon import started
from tests.support.views import of_this_host
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Serving
    from tests.support.tidy import ExpectedLog


@pytest.fixture(scope="module")
def views(daemon: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mount that asks the daemon."""
    base = tmp_path_factory.mktemp("mount")
    directory, log = base / "views", base / "log"
    directory.mkdir()
    with started(["mount", str(directory), "--control", daemon.control], log):
        until(directory.is_mount, "the mount")
        assert (directory / "proc/uptime").read_text()
        yield directory
    assert not directory.is_mount()


def total(text: str) -> int:
    """MemTotal in kB."""
    return int(text.split("MemTotal:")[1].split(maxsplit=1)[0])


def seen_by(box: Container, path: Path, command: str = "cat") -> str:
    """What a process of a container reads; it keeps our mount namespace to find the file."""
    pidfile = f"/proc/{box.pid}/ns"
    return subprocess.run(
        ["nsenter", f"--user={pidfile}/user", f"--pid={pidfile}/pid", command, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout


@pytest.fixture
def readable(views: Path) -> Path:
    """That mount where everybody gets to it: pytest's own directories are 0700."""
    for parent in [views.parent, *views.parent.parents]:
        if str(parent) not in {"/", "/tmp"}:
            parent.chmod(parent.stat().st_mode | 0o055)
    return views


def test_all_views_are_there_with_real_sizes(views: Path) -> None:
    for path in of_this_host():
        with (views / path).open("rb", buffering=0) as file:
            data, status = file.read(1 << 20), os.fstat(file.fileno())
            # This process used no disk that anybody would know of.
            assert (data and status.st_size) or path == "proc/diskstats"
            assert stat.S_IMODE(status.st_mode) == (0o400 if path == "proc/slabinfo" else 0o444)
    assert sorted(os.listdir(views)) == ["proc", "sys"]


def test_slabinfo_is_for_the_hosts_root_as_the_kernels_own_is(
    box: Container, readable: Path
) -> None:
    for path in ("/proc/slabinfo", f"{readable}/proc/slabinfo"):
        user = f"--user=/proc/{box.pid}/ns/user"
        done = subprocess.run(
            ["nsenter", user, "cat", path], capture_output=True, text=True, check=False, timeout=30
        )
        assert "Permission denied" in done.stderr, path
    assert (readable / "proc/slabinfo").read_text().startswith("slabinfo - version: 2.1\n")


def test_sendfile(views: Path, tmp_path: Path) -> None:
    with (views / "proc/swaps").open("rb") as source, (tmp_path / "copy").open("wb") as target:
        size = os.fstat(source.fileno()).st_size
        assert os.sendfile(target.fileno(), source.fileno(), 0, size) == size
    assert (tmp_path / "copy").stat().st_size == size


def test_an_open_file_is_one_snapshot(views: Path) -> None:
    fd = os.open(views / "proc/uptime", os.O_RDONLY)
    try:
        first = os.pread(fd, 100, 0)
        text = (views / "proc/uptime").read_bytes

        until(lambda: text() != first, "time to pass")
        assert os.pread(fd, 100, 0) == first
        assert b"".join(os.pread(fd, 1, each) for each in range(len(first))) == first
        assert os.pread(fd, 100, len(first)) == b""
    finally:
        os.close(fd)


def test_registered_callers_see_their_containers_numbers(daemon: Serving, readable: Path) -> None:
    with container(memory=64 << 20) as one, container(memory=80 << 20) as two:
        daemon.register("one", one.pid)
        daemon.register("two", two.pid)
        # The process is in the test's cgroup: its user namespace is what decides.
        assert total(seen_by(one, readable / "proc/meminfo")) == 64 << 10
        assert total(seen_by(two, readable / "proc/meminfo")) == 80 << 10
        assert total((readable / "proc/meminfo").read_text()) > 80 << 10
    until(lambda: not {"one", "two"} & set(daemon.ids()), "the records to go")


def test_callers_list_their_own_cpus(daemon: Serving, readable: Path) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("this host has one CPU")
    directory = readable / "sys/devices/system/cpu"
    with container(cpus=2) as two, container(cpus=0.5) as one:
        daemon.register("two", two.pid)
        daemon.register("one", one.pid)
        for box, expected in ((two, ["cpu0", "cpu1"]), (one, ["cpu0"]), (two, ["cpu0", "cpu1"])):
            names = seen_by(box, directory, "ls").split()
            assert [name for name in names if name.startswith("cpu") and name[3:].isdigit()] == (
                expected
            )
        assert seen_by(two, directory / "cpu1/topology/core_id") == "1\n"
        with pytest.raises(subprocess.CalledProcessError):
            seen_by(one, directory / "cpu1/topology/core_id")
    until(lambda: not daemon.ids(), "the containers to be gone")


def test_a_nested_user_namespace_belongs_to_its_ancestor(daemon: Serving, readable: Path) -> None:
    with container(memory=64 << 20) as box:
        daemon.register("outer", box.pid)
        enter = ["nsenter", f"--user=/proc/{box.pid}/ns/user", "--setuid=0", "--setgid=0"]
        nested = ["unshare", "--user", "--map-root-user"]
        done = subprocess.run(
            [*enter, *nested, *nested, "cat", str(readable / "proc/meminfo")],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        assert total(done.stdout) == 64 << 10
    until(lambda: "outer" not in daemon.ids(), "the record to go")


def test_callers_of_no_container_see_their_own_cgroup(views: Path) -> None:
    reader = (
        "import sys; sys.stdin.readline(); print(open(sys.argv[1]).read()); "
        "sys.stdout.flush(); sys.stdin.readline()"
    )
    with container(memory=72 << 20, user_namespace=False) as box:
        process = subprocess.Popen(
            [sys.executable, "-c", reader, str(views / "proc/meminfo")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        _join_cgroups(process.pid, box.pid)
        text, _ = process.communicate("go\nbye\n", timeout=30)
        assert total(text) == 72 << 10
        assert total((views / "proc/meminfo").read_text()) != 72 << 10


def test_a_thread_that_is_not_the_first(views: Path) -> None:
    found: list[str] = []
    path = views / "proc/loadavg"
    thread = threading.Thread(target=lambda: found.append(path.read_text()))
    thread.start()
    thread.join()
    assert len(found[0].split()) == 5


def test_nothing_can_be_written(views: Path) -> None:
    with pytest.raises(OSError) as raised:
        os.open(views / "proc/meminfo", os.O_WRONLY)
    assert raised.value.errno == errno.EACCES


def test_a_daemon_that_hangs_does_not_hang_callers(
    tmp_path: Path, expected_log: ExpectedLog
) -> None:
    expected_log.allow("no answer from the daemon")
    directory, log = tmp_path / "views", tmp_path / "log"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control"))
        silent.listen(64)  # and never answers
        with started(["mount", str(directory), "--control", str(tmp_path / "control")], log):
            until(directory.is_mount, "the mount")
            assert (directory / "proc/meminfo").read_text().startswith("MemTotal:")
            assert (directory / "proc/stat").read_text().startswith("cpu ")
            assert "no answer from the daemon" in log.read_text()


def test_a_daemon_that_goes_away(own_daemon: Serving, tmp_path: Path, readable: Path) -> None:
    directory, log = tmp_path / "views", tmp_path / "mount-log"
    directory.mkdir()
    with started(["mount", str(directory), "--control", own_daemon.control], log):
        until(directory.is_mount, "the mount")
        assert (directory / "proc/meminfo").read_text()
        assert own_daemon.stop() == 0
        assert (directory / "proc/meminfo").read_text().startswith("MemTotal:")


def _join_cgroups(pid: int, like: int) -> None:
    """Put a process into the cgroups that another is in."""
    from sysfsd.kernel.cgroups import CgroupTree, read_cgroup_paths

    cgroup = CgroupTree.of_host().controller(read_cgroup_paths(like), "memory")
    assert cgroup is not None
    Path(f"{cgroup.mountpoint}{cgroup.path}", "cgroup.procs").write_text(str(pid))
