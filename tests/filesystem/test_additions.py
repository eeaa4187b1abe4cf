"""Sysctls that the host has and a network namespace lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.attached import attach, system_container
from tests.support.containers import container
from tests.support.daemon import serving, sysfsd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.containers import Container
    from tests.support.daemon import Serving

CORE = "/proc/sys/net/core"
QDISC, BACKLOG = f"{CORE}/default_qdisc", f"{CORE}/netdev_max_backlog"
SOMAXCONN = f"{CORE}/somaxconn"


@pytest.fixture
def box(daemon: Serving) -> Iterator[Container]:
    with system_container(daemon, "box") as running:
        yield running


def names(box: Container) -> set[str]:
    return set(box.run("ls", "-A", CORE).split())


def mounts(box: Container) -> list[str]:
    """What is mounted in and below the directory, over what: `<point> <type>`."""
    rows = [line.split() for line in box.run("cat", "/proc/self/mounts").splitlines()]
    return sorted(f"{point} {kind}" for _, point, kind, *_ in rows if point.startswith(CORE))


def write(box: Container, path: str, value: str) -> str:
    """Write, and return the name of what went wrong."""
    script = (
        "import errno, os, sys\n"
        "try: os.write(os.open(sys.argv[1], os.O_WRONLY), os.fsencode(sys.argv[2]))\n"
        "except OSError as error: print(errno.errorcode[error.errno])\n"
    )
    return box.run(sys.executable, "-I", "-S", "-c", script, path, value).strip()


def hosts(path: str) -> str:
    return Path(path).read_text()


def test_they_are_the_hosts_until_the_container_writes_its_own(box: Container) -> None:
    before = {path: hosts(path) for path in (QDISC, BACKLOG)}
    assert {path: box.run("cat", path) for path in before} == before
    box.run("sysctl", "-qw", "net.core.default_qdisc=fq", "net.core.netdev_max_backlog=4321")
    assert [box.run("cat", path) for path in before] == ["fq\n", "4321\n"]
    assert {path: hosts(path) for path in before} == before
    assert write(box, QDISC, "nonsense") == "ENOENT"
    assert write(box, BACKLOG, "many") == "EINVAL"


def test_the_kernels_own_beside_them_are_still_the_kernels(box: Container) -> None:
    before = hosts(SOMAXCONN)
    kinds = {line.split()[0]: line.split()[1] for line in mounts(box)}
    assert kinds[CORE] == "tmpfs"
    assert kinds[SOMAXCONN] == "proc"
    assert kinds[QDISC].startswith("fuse")
    box.run("sh", "-c", f"echo 99 >{SOMAXCONN}")
    assert box.run("cat", SOMAXCONN) == "99\n"
    # In force: `ss` shows the backlog that listen(2) was given, cut to it.
    script = (
        "import socket; s = socket.create_server(('127.0.0.1', 0), backlog=5000); "
        "import subprocess; print(subprocess.check_output(['ss', '-Hltn']).split()[2].decode())"
    )
    assert box.run(sys.executable, "-I", "-c", script) == "99\n"
    assert hosts(SOMAXCONN) == before


def test_only_what_the_table_has_is_added(daemon: Serving) -> None:
    found = json.loads(sysfsd("doctor", "--json", control=daemon.control).stdout)["sysctls"]
    added = {
        Path(each["name"]).name
        for each in found
        if each["state"] == "added" and each["name"].startswith("net/core/")
    }
    assert "default_qdisc" in added
    with container(isolated=True) as box:
        before = names(box)
        assert not added & before
        attach(daemon, "box", box)
        assert names(box) == before | added
        assert {each for each in hosts_names() if each not in before | added}, "all were added"
        # Again is nothing new, and detached nothing is left.
        once = mounts(box)
        attach(daemon, "box", box)
        assert mounts(box) == once
        done = sysfsd("detach", str(box.pid), control=daemon.control)
        assert done.returncode == 0, done.stderr
        assert names(box) == before
        assert mounts(box) == []


def hosts_names() -> list[str]:
    return [each.name for each in Path(CORE).iterdir()]


def test_as_many_are_detached_as_were_attached(daemon: Serving) -> None:
    with container(isolated=True) as box:
        said = sysfsd("attach", "--id", "box", str(box.pid), control=daemon.control).stdout
        back = sysfsd("detach", str(box.pid), control=daemon.control).stdout
        assert said.replace("attached", "detached") == back


@pytest.mark.parametrize("number", [9, 15])
def test_the_kernels_own_outlive_the_daemon(tmp_path: Path, number: int) -> None:
    with container(isolated=True) as box:
        bare = names(box)
        with serving(tmp_path) as daemon:
            attach(daemon, "box", box)
            once = mounts(box)
            box.run("sh", "-c", f"echo 4321 >{BACKLOG}; echo 77 >{SOMAXCONN}")
            daemon.stop(number)
        assert box.run("cat", SOMAXCONN) == "77\n"
        assert write(box, SOMAXCONN, "78") == ""
        if number == 15:
            assert names(box) == bare
        with serving(tmp_path) as daemon:
            attach(daemon, "box", box)
            assert mounts(box) == once
            assert box.run("cat", BACKLOG, SOMAXCONN) == "4321\n78\n"
        assert names(box) == bare
        assert box.run("cat", SOMAXCONN) == "78\n"


def test_another_network_inside_has_the_kernels_directory(box: Container) -> None:
    box.run("sh", "-c", f"echo fq >{QDISC}; echo 99 >{SOMAXCONN}")
    shown = box.run("unshare", "-n", "sh", "-c", f"cat {SOMAXCONN}; ls {CORE}").split()
    assert shown[0] != "99"
    assert "default_qdisc" not in shown
    # And so has one that mounts a procfs of its own.
    nested = "mount -t proc proc /proc && ls /proc/sys/net/core"
    assert "default_qdisc" not in box.run("unshare", "-mpf", "sh", "-c", nested).split()


def test_those_who_share_a_network_share_them(daemon: Serving, box: Container) -> None:
    with container(network_of=box) as other:
        attach(daemon, "other", other)
        box.run("sh", "-c", f"echo 4321 >{BACKLOG}")
        assert other.run("cat", BACKLOG) == "4321\n"
        assert mounts(other) == mounts(box)


def test_on_the_hosts_network_nothing_is_missing(daemon: Serving) -> None:
    with container() as box:
        attach(daemon, "box", box)
        assert f"{CORE} tmpfs" not in mounts(box)
        before = hosts(BACKLOG)
        box.run("sh", "-c", f"echo 4321 >{BACKLOG}")
        assert box.run("cat", BACKLOG) == "4321\n"
        assert hosts(BACKLOG) == before


def test_nobody_writes_to_the_directory(box: Container) -> None:
    script = f"mount -o remount,bind,rw {CORE} && touch {CORE}/new"
    assert "Read-only file system" in failure(box, script)
    assert "ermission denied" in failure(box, f"mount -o remount,rw {CORE}")
    assert "new" not in names(box)


def failure(box: Container, script: str) -> str:
    done = subprocess.run(
        [*box.enter(), "sh", "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode != 0
    return done.stderr


def test_a_mount_of_the_containers_own_is_left_alone(daemon: Serving) -> None:
    """Above ours, and instead of ours."""
    with system_container(daemon, "box") as box:
        box.run("sh", "-c", f"mount -t tmpfs sysfsd {CORE} && touch {CORE}/mine")
        done = sysfsd("detach", str(box.pid), control=daemon.control)
        assert done.returncode == 0, done.stderr
        assert names(box) == {"mine"}
        again = sysfsd("attach", "--id", "box", str(box.pid), control=daemon.control)
        assert again.returncode == 0, again.stderr
        assert names(box) == {"mine"}
