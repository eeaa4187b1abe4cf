"""net.ipv4.ping_group_range: the kernel's own, cut to the groups that the container has."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.attached import attach
from tests.support.containers import UID_BASE, container
from tests.support.daemon import sysfsd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.containers import Container
    from tests.support.daemon import Serving

RANGE = "/proc/sys/net/ipv4/ping_group_range"

SCRIPT = """
import errno, json, os, socket, sys
def attempt(call):
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno]
def may_ping(group):
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(7, 7, 7)
        try:
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
        except PermissionError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
found = []
for text, position in json.loads(sys.argv[1]):
    fd = os.open("/proc/sys/net/ipv4/ping_group_range", os.O_RDWR)
    done = attempt(lambda: os.pwrite(fd, text.encode(), position))
    read = os.pread(fd, 100, 0).decode()
    found.append([done, read, [may_ping(group) for group in (0, 8, 1000, 65535)]])
print(json.dumps(found))
"""


def results(box: Container, writes: list[tuple[str, int]]) -> Any:
    return json.loads(box.run(sys.executable, "-I", "-S", "-c", SCRIPT, json.dumps(writes)))


@pytest.fixture
def box(daemon: Serving) -> Iterator[Container]:
    with container(isolated=True) as running:
        attach(daemon, "box", running)
        yield running


def test_what_the_kernel_takes_or_refuses_it_does_here(box: Container) -> None:
    writes = [
        ("5 8", 0), ("0\t1000\n", 0), ("7", 0), ("8 7", 0), ("1 0\n", 0), ("65535 65535", 0),
        ("x", 0), ("-1 5", 0), ("0 x", 0), ("0 4294967295", 0), ("65536 65536", 0), ("0 5", 3),
        ("0 9 9", 0), ("\n", 0), ("0 65535", 0),
    ]  # fmt: skip
    with container(isolated=True) as bare:
        expected = results(bare, writes)
    assert results(box, writes) == expected
    assert [True] * 4 in [may for _, _, may in expected]


def test_all_there_are_are_all_it_has(box: Container) -> None:
    """What Docker and systemd write; and it is in force."""
    before = Path(RANGE).read_text()
    nobody = results(box, [("1 0", 0)])[0]
    assert nobody[1:] == ["65534\t65534\n", [False] * 4]
    for everybody in ("0 2147483647\n", "0 4294967294"):
        done = results(box, [("1 0", 0), (everybody, 0)])[1]
        assert done == [len(everybody), "0\t65535\n", [True] * 4]
    assert results(box, [("1000 2147483647", 0)])[0][1:] == [
        "1000\t65535\n",
        [False, False, True, True],
    ]
    assert Path(RANGE).read_text() == before


def test_without_us_it_is_the_same_range(daemon: Serving, box: Container) -> None:
    results(box, [("8 2147483647", 0)])
    shown = sysfsd("show", "box", "net.ipv4.ping_group_range", control=daemon.control).stdout
    assert shown == "8\t65535\n"
    hosts = box.run("cat", RANGE, user=False)
    assert sysfsd("detach", str(box.pid), control=daemon.control).returncode == 0
    assert box.run("cat", RANGE) == shown == hosts
    # In the numbers of the host it is of this container's groups only.
    raw = box.run("cat", RANGE, user=False).split()
    assert raw == [str(UID_BASE + 8), str(UID_BASE + 65535)]


def test_on_the_hosts_network_it_is_the_hosts(daemon: Serving) -> None:
    before = Path(RANGE).read_text()
    with container() as box:
        attach(daemon, "box", box)
        assert results(box, [("0 5", 0)])[0][0] == "EPERM"
    assert Path(RANGE).read_text() == before


def test_a_network_inside_has_its_own(box: Container) -> None:
    results(box, [("0 5", 0)])
    script = f"exec 3<{RANGE}; unshare -n sh -c 'cat {RANGE}; cat /proc/self/fd/3' 3<{RANGE}"
    assert box.run("sh", "-c", script).splitlines()[0] != "0\t5"
    assert box.run("cat", RANGE) == "0\t5\n"
