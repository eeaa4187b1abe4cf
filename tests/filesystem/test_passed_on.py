"""Directories that are ours for the sake of one name, and for all others the kernel's as before."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.attached import attach, system_container
from tests.support.containers import container
from tests.support.daemon import serving, sysfsd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.containers import Container
    from tests.support.daemon import Serving

NEIGH = "/proc/sys/net/ipv4/neigh"
FAMILIES = ("ipv4", "ipv6")
MODPROBE = Path("/proc/sys/kernel/modprobe")
THRESHOLD = f"{NEIGH}/default/gc_thresh3"
RETRANS = f"{NEIGH}/lo/retrans_time_ms"


@pytest.fixture
def box(daemon: Serving) -> Iterator[Container]:
    with system_container(daemon, "box") as running:
        yield running


def shell(box: Container, script: str) -> str:
    return box.run("sh", "-ec", script)


def inside(box: Container, script: str) -> Any:
    return json.loads(
        box.run(sys.executable, "-I", "-S", "-c", f"import json, os, errno\n{script}")
    )


def hosts(path: str) -> str:
    return Path(path).read_text()


def names(box: Container, directory: str = NEIGH) -> list[str]:
    return shell(box, f"ls -A {directory}").split()


def mounts(box: Container) -> list[str]:
    rows = [line.split() for line in box.run("cat", "/proc/self/mounts").splitlines()]
    return sorted(point for _, point, *_ in rows if "/neigh" in point)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_container_has_the_hosts_thresholds_until_it_writes_its_own(
    box: Container, family: str
) -> None:
    directory = f"/proc/sys/net/{family}/neigh/default"
    assert names(box, directory) == ["gc_thresh1", "gc_thresh2", "gc_thresh3"]
    before = [hosts(f"{directory}/gc_thresh{number}") for number in (1, 2, 3)]
    assert [box.run("cat", f"{directory}/gc_thresh{number}") for number in (1, 2, 3)] == before
    # What Docker Swarm's overlay networks do.
    for number in (1, 2, 3):
        box.run("sysctl", "-qw", f"net.{family}.neigh.default.gc_thresh{number}={8192 * number}")
    assert shell(box, f"cat {directory}/*").split() == ["8192", "16384", "24576"]
    assert [hosts(f"{directory}/gc_thresh{number}") for number in (1, 2, 3)] == before


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interface_has_its_own_as_soon_as_it_is_there(box: Container, family: str) -> None:
    directory = f"/proc/sys/net/{family}/neigh"
    assert sorted(names(box, directory)) == ["default", "lo"]
    shell(box, "ip link add first type veth peer name second")
    assert sorted(names(box, directory)) == ["default", "first", "lo", "second"]
    shell(box, f"echo 700 >{directory}/first/retrans_time_ms")
    assert shell(box, f"cat {directory}/first/retrans_time_ms") == "700\n"
    shell(box, "ip link set first name other")
    assert shell(box, f"cat {directory}/other/retrans_time_ms") == "700\n"
    assert sorted(names(box, directory)) == ["default", "lo", "other", "second"]
    # Another of a name that was there.
    shell(box, "ip link del other; ip link add first type veth peer name second")
    assert shell(box, f"cat {directory}/first/retrans_time_ms") != "700\n"
    shell(box, "ip link del first")
    assert sorted(names(box, directory)) == ["default", "lo"]
    assert shell(box, f"! cat {directory}/first/retrans_time_ms 2>&1").endswith(
        "No such file or directory\n"
    )


def test_the_kernel_has_what_is_written(box: Container) -> None:
    """In the container's network, and nowhere else."""
    before = hosts(RETRANS)
    shell(box, f"echo 1200 >{RETRANS}")
    bare = ["nsenter", f"--net=/proc/{box.pid}/ns/net", "cat", RETRANS]
    assert subprocess.check_output(bare, text=True, timeout=30) == "1200\n"
    assert hosts(RETRANS) == before
    # Both files are of one value.
    assert shell(box, f"cat {NEIGH}/lo/base_reachable_time_ms") == "30000\n"
    shell(box, f"echo 40 >{NEIGH}/lo/base_reachable_time")
    assert shell(box, f"cat {NEIGH}/lo/base_reachable_time_ms") == "40000\n"


SEQUENCE = """
os.chdir("/proc/sys/net/ipv4/neigh/lo")
def attempt(call, *arguments):
    try:
        found = call(*arguments)
        return found.decode() if isinstance(found, bytes) else found
    except OSError as error:
        return errno.errorcode[error.errno]

def written(name, data, flags=os.O_WRONLY, offset=0):
    fd = os.open(name, flags)
    try:
        return attempt(os.pwrite, fd, data, offset)
    finally:
        os.close(fd)

def shown(name):
    with open(name) as file:
        return file.read()

found = []
for name in sorted(os.listdir(".")):
    for data in (b"", b"1", b"2 ", b" 3\\n", b"\\t4\\n5", b"-1", b"x", b"1x", b"9" * 20,
                 b"2147483647", b"2147483648", b"0x10", b"010", b"7\\0", b"\\n", b"8" * 5000):
        found.append([name, data.decode(), written(name, data), shown(name)])
    found.append([name, "offset", written(name, b"5", offset=3), shown(name)])
    found.append([name, "truncated", written(name, b"6", os.O_WRONLY | os.O_TRUNC), shown(name)])
    found.append([name, "appended", written(name, b"7", os.O_WRONLY | os.O_APPEND), shown(name)])
for call in (
    (os.mkdir, "new"), (os.mkdir, "../new"), (os.unlink, "locktime"), (os.rmdir, "../lo"),
    (os.rename, "locktime", "gc_stale_time"), (os.symlink, "x", "new"), (os.mkfifo, "new"),
    (os.link, "locktime", "new"), (os.open, "new", os.O_CREAT | os.O_WRONLY), (os.listdir, "new"),
    (os.open, "../new", os.O_CREAT | os.O_WRONLY), (os.chmod, "locktime", 0o600),
    (os.chown, "locktime", 1, 1), (os.truncate, "locktime", 0), (os.truncate, ".", 0),
    (os.chmod, "..", 0o700), (os.open, "../nosuch/locktime", os.O_RDONLY),
    (os.listdir, "../nosuch"),
    (os.open, "gc_thresh1", os.O_RDONLY), (os.readlink, "locktime"), (os.open, "x" * 300, 0),
    (os.chmod, ".", 0o700), (os.chown, ".", 1, 1), (os.utime, "."), (os.utime, ".."),
    (os.access, "locktime", os.W_OK),
    (os.open, "..", os.O_WRONLY), (os.utime, "locktime"), (os.rmdir, "../default/no"),
):
    found.append([call[0].__name__, [str(each)[:40] for each in call[1:]], attempt(*call)])
def nobody():
    os.setresuid(1000, 1000, 1000)
    return [attempt(shown, "locktime"), attempt(written, "locktime", b"1")]
found.append(nobody())
print(json.dumps(found))
"""


def test_all_else_is_as_the_kernel_has_it(daemon: Serving) -> None:
    """The same attempts in a container that has nothing of ours, and the same results."""
    with container(isolated=True) as bare:
        expected = inside(bare, SEQUENCE)
    with system_container(daemon, "box") as box:
        found = inside(box, SEQUENCE)
    for ours, kernels in zip(found, expected, strict=True):
        assert ours == kernels
    assert len({json.dumps(each[2]) for each in expected if len(each) == 4}) > 4


def test_sysctl_lists_what_it_lists_without_us(daemon: Serving) -> None:
    """And what is added. It passes over the first two names of each directory, ``.`` and ``..``."""
    script = "ip link add first type veth peer name second; sysctl -aN"
    with container(isolated=True) as bare:
        expected = set(shell(bare, script).splitlines())
    with system_container(daemon, "box") as box:
        found = set(shell(box, script).splitlines())
        cpus = shell(box, "ls -a /sys/devices/system/cpu").split()
    added = found - expected
    assert expected - found == set()
    assert {each for each in added if ".neigh." in each} == {
        f"net.{family}.neigh.default.gc_thresh{number}"
        for family in FAMILIES
        for number in (1, 2, 3)
    }
    assert cpus[:2] == [".", ".."]


ADMIN = ("--inh-caps", "-all,+net_admin", "--ambient-caps", "-all,+net_admin")
NOT_ADMIN = ("--bounding-set", "-net_admin", "--inh-caps", "-net_admin")


@pytest.mark.parametrize(
    ("who", "may"),
    [
        ((), True),
        (("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"), False),
        # As systemd-networkd is.
        (("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", *ADMIN), True),
        (("setpriv", *NOT_ADMIN), False),
        # Everything, but in a namespace that does not own the network.
        (("unshare", "-Ur"), False),
    ],
    ids=["root", "user", "administrator", "root without", "root elsewhere"],
)
def test_who_may_write_is_who_may_administer_the_network(
    daemon: Serving, who: tuple[str, ...], may: bool
) -> None:
    """Whatever the mode says (``net_ctl_permissions``)."""
    script = f"echo 700 >{RETRANS} || echo no; stat -c %a {RETRANS}; cat {RETRANS}"
    with container(isolated=True) as bare, system_container(daemon, "box") as box:
        expected, found = (each.run(*who, "sh", "-c", script).split() for each in (bare, box))
    # What stat(2) says is what the kernel goes by: it is told of more than is shown without us.
    shown = "666" if "--ambient-caps" in who else "644"
    assert found == [each.replace("644", shown) for each in expected]
    assert ("no" not in found) == may
    assert found[-1] == ("700" if may else "1000")


def test_who_looks_from_another_network_has_the_kernels(box: Container) -> None:
    shell(box, f"echo 500 >{RETRANS}; echo 77 >{THRESHOLD}")
    script = f"ls {NEIGH}; cat {RETRANS}"
    assert box.run("unshare", "-n", "sh", "-ec", script).split() == ["lo", "1000"]
    nested = f"mount -t proc proc /proc; {script}"
    assert box.run("unshare", "-mpf", "sh", "-ec", nested).split() == ["lo", "500"]


def test_a_directory_stays_the_one_it_was(box: Container) -> None:
    """Who keeps it open, and goes elsewhere, has it still: as with procfs."""
    shell(box, f"echo 500 >{RETRANS}")
    kept = f"cd {NEIGH}/lo && unshare -n cat retrans_time_ms"
    assert shell(box, kept) == "500\n"
    with container(isolated=True) as bare:
        shell(bare, f"echo 500 >{RETRANS}")
        assert shell(bare, kept) == "500\n"


def test_in_a_network_that_is_not_its_own_nothing_is_covered(
    daemon: Serving, box: Container
) -> None:
    with container(network_of=box) as other:
        attach(daemon, "other", other)
        assert mounts(other) == []
        assert names(other) == ["lo"]
        assert box.run("cat", THRESHOLD) == hosts(THRESHOLD)
    with container() as other:
        attach(daemon, "hosts", other)
        assert set(names(other, f"{NEIGH}/default")) == set(os.listdir(f"{NEIGH}/default"))
        assert all(os.path.basename(point).startswith("gc_thresh") for point in mounts(other))
        before = hosts(THRESHOLD), hosts(RETRANS)
        shell(other, f"echo 77 >{THRESHOLD}; ! echo 77 >{RETRANS}")
        assert (hosts(THRESHOLD), hosts(RETRANS)) == before
        # Nor by way of the other mount: what is not bound is not there, either.
        exact = daemon.state_dir / "private/exact/containers/hosts/proc/sys/net/ipv4/neigh"
        assert os.listdir(exact) == ["default"]


def test_it_is_taken_back(daemon: Serving) -> None:
    with container(isolated=True) as box:
        bare = names(box)
        attach(daemon, "box", box)
        once = mounts(box)
        assert once == [f"/proc/sys/net/{family}/neigh" for family in FAMILIES]
        attach(daemon, "box", box)
        assert mounts(box) == once
        done = sysfsd("detach", str(box.pid), control=daemon.control)
        assert done.returncode == 0, done.stderr
        assert mounts(box) == []
        assert names(box) == bare


@pytest.mark.parametrize("number", [9, 15])
def test_a_restart_is_not_noticed(tmp_path: Path, number: int) -> None:
    script = (
        "import os, sys\n"
        f"fd = os.open({RETRANS!r}, os.O_RDWR)\n"
        f"os.chdir({NEIGH!r})\n"
        "print(os.pread(fd, 99, 0), flush=True)\n"
        "sys.stdin.readline()\n"
        "os.pwrite(fd, b'800', 0)\n"
        "print(os.pread(fd, 99, 0), sorted(os.listdir('.')), flush=True)\n"
    )
    with container(isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "box", box)
            shell(box, f"echo 500 >{RETRANS}; echo 77 >{THRESHOLD}")
            if number == 15:
                assert daemon.stop(number) == 0
                assert mounts(box) == []
                assert shell(box, f"cat {RETRANS}") == "500\n"
                return
            holding = box.started(sys.executable, "-I", "-S", "-c", script)
            assert holding.stdout is not None
            assert holding.stdout.readline() == "b'500\\n'\n"
            daemon.kill()
        with serving(tmp_path) as daemon:
            assert shell(box, f"cat {THRESHOLD}; cat {RETRANS}") == "77\n500\n"
            assert holding.communicate("go\n", 30)[0] == "b'800\\n' ['default', 'lo']\n"
            assert holding.returncode == 0
            assert daemon.stop() == 0


@pytest.mark.skipif(not MODPROBE.exists(), reason="this kernel loads no modules")
def test_no_module_is_loaded_for_a_name(box: Container, tmp_path: Path) -> None:
    """As for a network administrator who asks for an interface that is not there."""
    log, script, before = tmp_path / "log", tmp_path / "modprobe", MODPROBE.read_text()
    script.write_text(f'#!/bin/sh\necho "$@" >>{log}\n')
    script.chmod(0o755)
    MODPROBE.write_text(str(script))
    try:
        shell(box, f"! ls {NEIGH}/unwanted {NEIGH}/lo/unwanted")
        with pytest.raises(OSError, match="no interface"):
            socket.if_nametoindex("wanted")
        assert "wanted" in log.read_text().split()[-1]
        assert "unwanted" not in log.read_text()
    finally:
        MODPROBE.write_text(before)


def test_many_interfaces_are_listed_once_each(box: Container) -> None:
    shell(box, "for i in $(seq 150); do ip link add a$i type veth peer name b$i; done")
    expected = {"default", "lo", *(f"{side}{i}" for side in "ab" for i in range(1, 151))}
    found = names(box)
    assert len(found) == len(expected)
    assert set(found) == expected
    # One that the kernel would not number so by itself for a long time is left out.
    shell(box, "ip link add far index 20000000 type veth peer name near")
    assert set(names(box)) == expected | {"near"}
    shell(box, f"echo 4242 >{NEIGH}/a99/gc_stale_time")
    assert shell(box, f"cat {NEIGH}/*/gc_stale_time").split().count("4242") == 1
