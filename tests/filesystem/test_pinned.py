"""``sysfsd serve``: reading views through the mount."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.containers import UID_BASE, container
from tests.support.daemon import serving
from tests.support.views import bare, of_this_host
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.containers import Container
    from tests.support.daemon import Serving
    from tests.support.tidy import ExpectedLog


@pytest.mark.parametrize("path", of_this_host())
def test_every_view_has_its_real_size(web: Path, path: str) -> None:
    with (web / path).open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(1 << 20)
        assert len(data) == size
        # A container that used no disk has no line there.
        assert data.endswith(b"\n") or path == "proc/diskstats"
        assert b"\0" not in data


def test_limits_show(web: Path) -> None:
    meminfo = bare((web / "proc/meminfo").read_bytes()).decode()
    assert f"MemTotal:       {96 << 10:>8} kB\n" in meminfo
    assert (web / "sys/devices/system/cpu/online").read_text() == "0\n"


@pytest.mark.parametrize("path", ["proc/meminfo", "proc/cpuinfo"])
def test_byte_by_byte_and_past_the_end(web: Path, path: str) -> None:
    fd = os.open(web / path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        # The first line does not change: MemTotal and "processor : 0".
        line = os.pread(fd, 4096, 0).partition(b"\n")[0]
        assert b"".join(os.read(fd, 1) for _ in line) == line
        assert os.pread(fd, 10, size + 5) == b""
        assert os.pread(fd, 4096, size - 1) == b"\n"
    finally:
        os.close(fd)


def test_sendfile(web: Path, tmp_path: Path) -> None:
    with (web / "proc/meminfo").open("rb") as source, (tmp_path / "copy").open("wb") as target:
        size = os.fstat(source.fileno()).st_size
        assert os.sendfile(target.fileno(), source.fileno(), 0, size) == size
    assert (tmp_path / "copy").read_text().startswith("MemTotal:")


def test_programs_are_told_to_read_a_file_at_once(web: Path) -> None:
    """Stdio takes this for the size of its buffer."""
    for path in ("proc/uptime", "proc/vmstat", "proc/cpuinfo"):
        status = (web / path).stat()
        assert status.st_blksize >= max(4096, status.st_size)
        assert status.st_blksize.bit_count() == 1


def test_two_containers_at_once(daemon: Serving, web: Path) -> None:
    with container(memory=200 << 20) as other:
        directory = daemon.mountpoint / daemon.register("other", other.pid)["directory"]
        assert f"{200 << 10} kB" in (directory / "proc/meminfo").read_text().splitlines()[0]
        assert f"{96 << 10} kB" in (web / "proc/meminfo").read_text().splitlines()[0]
        assert sorted(os.listdir(daemon.containers)) == ["other", "web"]
    until(lambda: os.listdir(daemon.containers) == ["web"], "the other to be gone")


def test_numbers_move_on(web: Path) -> None:
    uptime = web / "proc/uptime"
    with uptime.open("rb", buffering=0) as file:
        first = float(file.read().split()[0])

        def moved() -> bool:
            file.seek(0)
            return float(file.read().split()[0]) > first

        until(moved, "a refresh of an open file")


def test_a_refresh_is_never_cut_short(web: Path, box: Container) -> None:
    """Sizes change while many read: no line is cut, no NUL appears, sizes agree."""
    reader = (
        "import sys\n"
        "for _ in range(4000):\n"
        "    data = open(sys.argv[1], 'rb').read()\n"
        "    assert data.endswith(b'\\n') and b'\\0' not in data, data\n"
    )
    command = ["python3", "-c", reader, str(web / "proc/stat")]
    readers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    for each in readers:
        _, error = each.communicate(timeout=60)
        assert each.returncode == 0, error.decode()


def test_files_are_the_containers_roots(daemon: Serving, web: Path, box: Container) -> None:
    status = (web / "proc/meminfo").stat()
    assert stat.S_IMODE(status.st_mode) == 0o444
    assert (status.st_uid, status.st_gid) == (UID_BASE, UID_BASE)
    assert stat.S_IMODE((web / "proc/slabinfo").stat().st_mode) == 0o400
    assert stat.S_IMODE(daemon.containers.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda path: path.write_text("1"), {errno.EACCES, errno.EPERM}),
        (lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)), {errno.EACCES}),
        (lambda path: path.chmod(0o777), {errno.EPERM}),
        (lambda path: os.chown(path, 1, 1), {errno.EPERM}),
        (lambda path: path.unlink(), {errno.EPERM}),
        (lambda path: path.rename(path.with_name("x")), {errno.EPERM}),
        (lambda path: path.with_name("new").touch(), {errno.EPERM, errno.ENOSYS}),
        (lambda path: path.with_name("new").mkdir(), {errno.EPERM}),
        (lambda path: path.with_name("new").symlink_to("x"), {errno.EPERM}),
        (lambda path: os.setxattr(path, "user.fuse_stacktrace", b""), {errno.EOPNOTSUPP}),
        (lambda path: os.getxattr(path, "user.x"), {errno.EOPNOTSUPP, errno.ENODATA}),
    ],
)
def test_nothing_can_be_changed(
    web: Path, change: Callable[[Path], object], expected: set[int]
) -> None:
    with pytest.raises(OSError) as raised:
        change(web / "proc/meminfo")
    assert raised.value.errno in expected


def test_statfs_and_names_that_are_not_there(daemon: Serving, web: Path) -> None:
    assert os.statvfs(web).f_namemax == 255
    for name in ("nope", "..x", "é", "a" * 255):
        assert not (daemon.containers / name).exists()
        assert not (web / "proc" / name).exists()


def test_other_users_of_the_host_are_kept_out(daemon: Serving, web: Path) -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", daemon.containers],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Permission denied" in done.stderr


def test_an_open_file_outlives_nothing(daemon: Serving, box: Container) -> None:
    directory = daemon.mountpoint / daemon.register("gone", box.pid)["directory"]
    fd = os.open(directory / "proc/uptime", os.O_RDONLY)
    try:
        assert os.read(fd, 100)
        box.kill()
        until(lambda: not directory.exists(), "the views to go")

        def stale() -> bool:
            try:
                os.pread(fd, 100, 0)
            except OSError as error:
                return error.errno == errno.ESTALE
            return False

        until(stale, "ESTALE")
    finally:
        os.close(fd)
    assert "gone" not in daemon.ids()
    assert daemon.call("stats")["snapshots"] == 0


def test_the_same_id_again_is_another_container(daemon: Serving) -> None:
    with container(memory=64 << 20) as first:
        directory = daemon.mountpoint / daemon.register("again", first.pid)["directory"]
        assert f"{64 << 10} kB" in (directory / "proc/meminfo").read_text()
        first.kill()
        until(lambda: not directory.exists(), "the first to go")
    with container(memory=80 << 20) as second:
        daemon.register("again", second.pid)
        assert f"{80 << 10} kB" in (directory / "proc/meminfo").read_text()
    until(lambda: "again" not in daemon.ids(), "the second to go")


def test_a_view_that_fails_gives_the_kernels_own_file(
    tmp_path: Path, expected_log: ExpectedLog
) -> None:
    expected_log.allow("view failed")
    with container(memory=64 << 20) as box, serving(tmp_path, own_mounts=True) as daemon:
        directory: str = daemon.register("web", box.pid)["directory"]
        meminfo = daemon.mountpoint / directory / "proc/meminfo"

        def total() -> str:
            return meminfo.read_text().splitlines()[0].rstrip()

        # To the daemon, and to nobody else, the cgroup seems to be gone, before it was ever read.
        memory = _memory_hierarchy()
        _in_mounts_of(daemon, "mount", "-t", "tmpfs", "tmpfs", memory)
        host = Path("/proc/meminfo").read_text().splitlines()[0]
        until(lambda: total() == host, "the kernel's own file")
        assert daemon.call("stats")["views"]["fallbacks"]["proc/meminfo"] > 0
        assert any(event["event"].startswith("view failed") for event in daemon.events())
        _in_mounts_of(daemon, "umount", memory)
        until(lambda: f"{64 << 10} kB" in total(), "the view to be back")


def _memory_hierarchy() -> str:
    from sysfsd.kernel.cgroups import CgroupTree, read_cgroup_paths

    cgroup = CgroupTree.of_host().controller(read_cgroup_paths(os.getpid()), "memory")
    assert cgroup is not None
    return cgroup.mountpoint


def _in_mounts_of(daemon: Serving, *command: str) -> None:
    own, host = (os.stat(f"/proc/{pid}/ns/mnt") for pid in (daemon.process.pid, "self"))
    assert own.st_ino != host.st_ino
    target = str(daemon.process.pid)
    subprocess.run(["nsenter", "--target", target, "--mount", *command], check=True)
