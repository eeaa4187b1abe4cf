"""Emulated sysctls in real containers."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sysfsd.sysctls.table import SYSCTLS
from tests.support.attached import attach, system_container
from tests.support.containers import container
from tests.support.daemon import serving, sysfsd
from tests.support.views import SYSCTL_POINTS
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.containers import Container
    from tests.support.daemon import Serving
    from tests.support.tidy import ExpectedLog

SWAPPINESS = "/proc/sys/vm/swappiness"
PRINTK = "/proc/sys/kernel/printk"
HOSTNAME = "/proc/sys/kernel/hostname"


@pytest.fixture
def box(daemon: Serving) -> Iterator[Container]:
    with system_container(daemon, "box") as running:
        yield running


def inside(box: Container, script: str, *arguments: str) -> Any:
    """Run a Python script in a container and return what it prints as JSON."""
    program = f"import errno, json, os, sys, mmap\n{script}"
    return json.loads(box.run(sys.executable, "-I", "-S", "-c", program, *arguments))


ATTEMPT = """
def attempt(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
"""

WRITE = f"""{ATTEMPT}
print(json.dumps(attempt(os.write, os.open(sys.argv[1], os.O_WRONLY), b"mine")))
"""


def hosts(path: str) -> str:
    return Path(path).read_text()


def test_a_value_is_the_hosts_until_the_container_writes_its_own(box: Container) -> None:
    before = hosts(SWAPPINESS)
    assert box.run("cat", SWAPPINESS) == before
    box.run("sh", "-c", f"echo 17 > {SWAPPINESS}")
    assert box.run("cat", SWAPPINESS) == "17\n"
    assert hosts(SWAPPINESS) == before


def test_what_is_read_is_canonical_whatever_was_in_the_page_cache(box: Container) -> None:
    for text, read in (("0x11", "17\n"), ("  17", "17\n"), ("17 \n\n", "17\n"), ("021", "17\n")):
        box.run("sh", "-c", f'cat {SWAPPINESS}; printf "$1" > {SWAPPINESS}', "sh", text)
        assert box.run("cat", SWAPPINESS) == read
    box.run("sh", "-c", f"echo '4 4 1 7' > {PRINTK}")
    assert box.run("cat", PRINTK) == "4\t4\t1\t7\n"


def test_bad_values_are_refused_and_change_nothing(box: Container) -> None:
    result = inside(
        box,
        ATTEMPT
        + """
fd = os.open(sys.argv[1], os.O_RDWR)
print(json.dumps([
    [attempt(os.pwrite, fd, text, 0) for text in (b"-1", b"201", b"x", b"\\n", b"99999999999")],
    os.pread(fd, 100, 0).decode(),
    attempt(os.pwrite, fd, b"30 40", 0),
    attempt(os.pwrite, fd, b"40", 3),
    os.pread(fd, 100, 0).decode(),
]))
""",
        SWAPPINESS,
    )
    assert result == [["EINVAL"] * 5, hosts(SWAPPINESS), 3, 2, "30\n"]


def test_appending_and_truncating_is_writing(box: Container) -> None:
    box.run("sh", "-c", f"echo 20 > {SWAPPINESS}; echo 30 >> {SWAPPINESS}")
    assert box.run("cat", SWAPPINESS) == "30\n"
    box.run("truncate", "-s", "0", SWAPPINESS)
    box.run("touch", SWAPPINESS)
    assert box.run("cat", SWAPPINESS) == "30\n"


def test_who_may(box: Container) -> None:
    script = (
        ATTEMPT
        + """
if sys.argv[2] != "root":
    os.setgroups([])
    os.setresgid(1000, 1000, 1000)
    os.setresuid(1000, 1000, 1000)
path = sys.argv[1]
print(json.dumps([
    attempt(lambda: os.close(os.open(path, os.O_WRONLY))),
    attempt(os.chmod, path, 0o600),
    attempt(os.chown, path, 1, 1),
    attempt(os.unlink, path),
    attempt(os.rename, path, path + "x"),
    [os.stat(path).st_uid, os.stat(path).st_gid, oct(os.stat(path).st_mode)],
]))
"""
    )
    there = [0, 0, "0o100644"]
    assert inside(box, script, SWAPPINESS, "root") == [
        None, "EPERM", "EPERM", "EACCES", "ENOENT", there,
    ]  # fmt: skip
    assert inside(box, script, SWAPPINESS, "user") == [
        "EACCES", "EPERM", "EPERM", "EACCES", "ENOENT", there,
    ]  # fmt: skip


def test_every_way_of_reading_gives_the_same(box: Container) -> None:
    result = inside(
        box,
        """
path = sys.argv[1]
fd = os.open(path, os.O_RDONLY)
single = []
while byte := os.read(fd, 1):
    single.append(byte)
whole = b"".join(single)
reader, writer = os.pipe()
def sent():
    os.sendfile(writer, fd, 0, 65536)
    return os.read(reader, 65536)
def spliced():
    os.splice(fd, writer, 65536, offset_src=0)
    return os.read(reader, 65536)
def vectors():
    parts = [bytearray(1), bytearray(2), bytearray(100)]
    count = os.preadv(fd, parts, 0)
    return b"".join(parts)[:count]
with mmap.mmap(fd, len(whole), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapped:
    seen = mapped[:]
print(json.dumps([each.decode() for each in (
    whole, os.pread(fd, 65536, 0), sent(), spliced(), vectors(), seen,
    os.pread(fd, 100, len(whole)), os.pread(fd, 100, 1 << 20), os.pread(fd, 100, 2),
)]))
""",
        PRINTK,
    )
    whole = hosts(PRINTK)
    assert result == [whole] * 6 + ["", "", whole[2:]]


def test_the_hostname_is_the_uts_namespaces(box: Container) -> None:
    before = hosts(HOSTNAME)
    box.run("hostname", "inner")
    assert box.run("cat", HOSTNAME) == "inner\n"
    box.run("sh", "-c", f"echo other > {HOSTNAME}")
    assert box.run("hostname") == "other\n"
    box.run("sh", "-c", "echo example.org > /proc/sys/kernel/domainname")
    assert box.run("domainname") == "example.org\n"
    assert hosts(HOSTNAME) == before


def test_a_container_in_the_hosts_uts_namespace_does_not_rename_the_host(daemon: Serving) -> None:
    before = hosts(HOSTNAME)
    with container() as box:
        attach(daemon, "shares", box)
        assert inside(box, WRITE, HOSTNAME) == "EPERM"
        assert box.run("cat", HOSTNAME) == before
    assert hosts(HOSTNAME) == before


def test_nobody_renames_a_namespace_of_anothers(daemon: Serving) -> None:
    """The kernel's rule for sethostname(2): rights over the owner of the UTS namespace."""
    with system_container(daemon, "owner") as owner, container(uts_of=owner) as guest:
        attach(daemon, "guest", guest)
        owner.run("hostname", "mine")
        assert inside(guest, WRITE, HOSTNAME) == "EPERM"
        assert owner.run("hostname") == "mine\n"


def test_a_uts_namespace_inside_has_names_of_its_own(box: Container) -> None:
    box.run("hostname", "outer")
    script = f"hostname nested; cat {HOSTNAME}; echo other 2>/dev/null >{HOSTNAME} || echo refused"
    assert box.run("unshare", "-u", "sh", "-c", script).split() == ["nested", "refused"]
    assert box.run("cat", HOSTNAME) == "outer\n"


def test_on_the_hosts_network_nobody_shares(daemon: Serving) -> None:
    buffers = "/proc/sys/net/core/rmem_max"
    with container() as one, container() as two:
        attach(daemon, "one", one)
        attach(daemon, "two", two)
        one.run("sh", "-c", f"echo 7777777 > {buffers}")
        assert one.run("cat", buffers) == "7777777\n"
        assert two.run("cat", buffers) == hosts(buffers)


def test_a_user_inside_does_not_lock_root_out(box: Container) -> None:
    script = f"""{ATTEMPT}
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
child = os.fork()
if child == 0:
    os.setresuid(1000, 1000, 1000)
    held = []
    try:
        while True:
            held.append(os.open(sys.argv[1], os.O_RDONLY))
    except OSError as error:
        os.write(1, json.dumps([len(held), errno.errorcode[error.errno]]).encode() + b"\\n")
    os.kill(os.getpid(), 19)
os.waitpid(child, os.WUNTRACED)
print(json.dumps(attempt(lambda: os.read(os.open(sys.argv[1], os.O_RDONLY), 10).decode())))
os.kill(child, 9)
"""
    program = f"import errno, json, os, sys\n{script}"
    output = box.run(sys.executable, "-I", "-S", "-c", program, SWAPPINESS).splitlines()
    assert [json.loads(line) for line in output] == [[1024, "EMFILE"], hosts(SWAPPINESS)]


def test_attached_again_under_the_same_id_or_another(daemon: Serving) -> None:
    with container(isolated=True) as box:
        attach(daemon, "again", box)
        box.run("sh", "-c", f"echo 33 > {SWAPPINESS}")
        daemon.call("release", id="again")
        attach(daemon, "again", box)
        assert box.run("cat", SWAPPINESS) == "33\n"
        attach(daemon, "alias", box)
        assert box.run("cat", SWAPPINESS) == "33\n"


@pytest.mark.parametrize("isolated", [True, False])
def test_two_records_of_one_init_are_one_container(tmp_path: Path, isolated: bool) -> None:
    """On a network of its own; and on the host's, where no two containers share."""
    buffers, cache = "/proc/sys/net/core/rmem_max", "proc/sys/vm/vfs_cache_pressure"
    with container(isolated=isolated) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "early", box)
            late = daemon.register("late", box.pid)["binds"][cache]["directory"]
            Path(late, cache).write_text("77")
            box.run("sh", "-c", f"echo 5000000 > {buffers}; echo 31 > {SWAPPINESS}")
            daemon.stop(9)
        with serving(tmp_path) as daemon:
            for name in ("late", "early"):
                daemon.register(name, box.pid)
                shown = [
                    sysfsd("show", name, path, control=daemon.control).stdout
                    for path in (SWAPPINESS, buffers, cache)
                ]
                assert shown == ["31\n", "5000000\n", "77\n"]
            daemon.call("release", id="early")
            assert sysfsd("show", "late", cache, control=daemon.control).stdout == "77\n"


def test_a_file_that_stays_behind_ends_nothing(tmp_path: Path, expected_log: ExpectedLog) -> None:
    expected_log.allow("a container's file stays behind")
    with serving(tmp_path) as daemon, container(isolated=True) as other:
        attach(daemon, "other", other)
        with container(isolated=True) as box:
            attach(daemon, "box", box)
            box.run("sh", "-c", f"echo 19 > {SWAPPINESS}")
            [file] = (tmp_path / "state/sysctls").iterdir()
            file.unlink()
            file.mkdir()
        until(lambda: daemon.ids() == ["other"], "the end of the container")
        assert other.run("cat", SWAPPINESS) == hosts(SWAPPINESS)


def test_networks_share_their_values_and_containers_do_not(daemon: Serving) -> None:
    buffers = "/proc/sys/net/core/rmem_max"
    with (
        system_container(daemon, "first") as first,
        container(network_of=first) as second,
        system_container(daemon, "third") as third,
    ):
        attach(daemon, "second", second)
        first.run("sh", "-c", f"echo 5000000 > {buffers}; echo 11 > {SWAPPINESS}")
        assert second.run("cat", buffers) == "5000000\n"
        assert second.run("cat", SWAPPINESS) == hosts(SWAPPINESS)
        assert third.run("cat", buffers) == hosts(buffers)
        second.run("sh", "-c", f"echo 6000000 > {buffers}")
        assert first.run("cat", buffers) == "6000000\n"


def test_a_network_namespace_inside_begins_with_the_defaults(box: Container) -> None:
    buffers = "/proc/sys/net/core/rmem_max"
    box.run("sh", "-c", f"echo 5000000 > {buffers}; echo 11 > {SWAPPINESS}")
    # Its files in /proc/sys/net are the kernel's; it has ours from a descriptor, or a bind.
    script = f"exec 3<{buffers}; read value <&3; echo $value; cat /proc/self/fd/3"
    assert box.run("sh", "-c", script).split() == ["5000000", "5000000"]
    script = (
        f"mount -t tmpfs tmpfs /mnt; touch /mnt/bound; mount --bind {buffers} /mnt/bound; "
        "unshare -n cat /mnt/bound"
    )
    assert box.run("unshare", "-m", "sh", "-c", script) == hosts(buffers)
    assert box.run("unshare", "-n", "cat", buffers) == hosts(buffers)
    assert box.run("unshare", "-n", "cat", SWAPPINESS) == "11\n"


@pytest.mark.parametrize("number", [9, 15])
def test_values_outlive_the_daemon(tmp_path: Path, number: int) -> None:
    with container(isolated=True) as box, container(network_of=box) as other:
        with serving(tmp_path) as daemon:
            attach(daemon, "box", box)
            attach(daemon, "other", other)
            box.run("sh", "-c", f"echo 19 > {SWAPPINESS}")
            box.run("sh", "-c", "echo 7000000 > /proc/sys/net/core/rmem_max")
            daemon.process.send_signal(number)
            daemon.process.wait(60)
        with serving(tmp_path) as daemon:
            attach(daemon, "other", other)
            attach(daemon, "box", box)
            for each in (box, other):
                assert each.run("cat", "/proc/sys/net/core/rmem_max") == "7000000\n"
            assert box.run("cat", SWAPPINESS) == "19\n"
            assert other.run("cat", SWAPPINESS) == hosts(SWAPPINESS)
            files = tmp_path / "state/sysctls"
            assert len(list(files.iterdir())) == 2
    with serving(tmp_path):
        assert not list(files.iterdir())


def test_all_else_is_as_in_a_namespace_without_us(daemon: Serving) -> None:
    script = """
found = {}
for directory, names, files in os.walk("/proc/sys"):
    for name in (*names, *files):
        path = os.path.join(directory, name)
        status = os.lstat(path)
        found[path] = [oct(status.st_mode), status.st_uid, status.st_gid]
print(json.dumps(found))
"""
    with container(isolated=True) as bare:
        without = inside(bare, script)
    with system_container(daemon, "listed") as box:
        mounts = box.run("cat", "/proc/self/mounts").splitlines()
        ours = {line.split()[1] for line in mounts} & SYSCTL_POINTS
        ours = {path for path in ours if path.startswith("/proc/sys/")}
        found = inside(box, script)
    modes = {f"/{node.path}": oct(stat.S_IFREG | node.mode) for node in SYSCTLS}
    # Those that are there for one more name: with all else in them as before.
    whole = ours - modes.keys()
    added = {path for path in modes if os.path.dirname(path).removesuffix("/default") in whole}
    expected = without | {path: [modes[path], 0, 0] for path in ours - whole | added}
    expected |= {f"{path}/default": [oct(stat.S_IFDIR | 0o555), 0, 0] for path in whole}
    assert len(whole) == 2
    assert found == expected
    assert len(ours) > 20
    assert all(path.startswith("/proc/sys/net/") or without[path][1:] != [0, 0] for path in ours)


def doctors(daemon: Serving, config: Path) -> dict[str, Any]:
    """What it says of those sysctls that the administrator decided about."""
    found = sysfsd("doctor", "--json", "--config", str(config), control=daemon.control).stdout
    return {
        each["name"]: (each["policy"], each["raised"])
        for each in json.loads(found)["sysctls"]
        if each["policy"] != "never" or each["raised"]
    }


def test_the_administrator_may_have_the_host_follow(tmp_path: Path) -> None:
    queued, cores = "/proc/sys/fs/inotify/max_queued_events", "/proc/sys/kernel/core_pattern"
    before = int(hosts(queued))
    config = tmp_path / "sysfsd.toml"
    config.write_text(
        '[sysctls]\n"fs.inotify.max_queued_events" = "max"\n"kernel.core_pattern" = "forbid"\n'
    )
    try:
        with (
            container(isolated=True) as box,
            serving(tmp_path, "--config", str(config)) as daemon,
        ):
            attach(daemon, "box", box)
            box.run("sh", "-c", f"echo {before + 500} > {queued}")
            assert int(hosts(queued)) == before + 500
            assert inside(box, WRITE, cores) == "EPERM"
            assert doctors(daemon, config) == {
                "fs/inotify/max_queued_events": (
                    "max",
                    {"original": before, "now": before + 500, "containers": 1},
                ),
                "kernel/core_pattern": ("forbid", None),
            }
            with system_container(daemon, "other") as other:
                other.run("sh", "-c", f"echo {before + 900} > {queued}")
                other.run("sh", "-c", f"echo 5 > {queued}")
                assert other.run("cat", queued) == "5\n"
                assert int(hosts(queued)) == before + 500
            daemon.process.kill()
            daemon.process.wait(60)
        # Its container ended meanwhile.
        with serving(tmp_path, "--config", str(config)):
            assert int(hosts(queued)) == before
    finally:
        Path(queued).write_text(str(before))


def test_what_a_network_needs_stays_raised_until_its_last_is_gone(
    tmp_path: Path, expected_log: ExpectedLog
) -> None:
    expected_log.allow("policy without effect")
    buffers = "/proc/sys/net/core/rmem_max"
    before = int(hosts(buffers))
    config = tmp_path / "sysfsd.toml"
    config.write_text('[sysctls]\n"net.core.rmem_max" = "max"\n"kernel.pid_max" = "forbid"\n')
    try:
        with (
            serving(tmp_path, "--config", str(config)) as daemon,
            container(isolated=True) as first,
        ):
            attach(daemon, "first", first)
            with container(network_of=first) as second:
                attach(daemon, "second", second)
                second.run("sh", "-c", f"echo {before + 4096} > {buffers}")
            until(lambda: daemon.ids() == ["first"], "the end of the second")
            assert int(hosts(buffers)) == before + 4096
            first.run("sh", "-c", f"echo {before + 8192} > {buffers}")
            assert int(hosts(buffers)) == before + 8192
            shown = sysfsd("show", "--explain", "first", buffers, control=daemon.control).stdout
            assert f"the host has {before + 8192}" in shown
            first.kill()
            until(lambda: int(hosts(buffers)) == before, "the host's own value")
    finally:
        Path(buffers).write_text(str(before))


def test_show_says_where_a_value_comes_from(daemon: Serving, box: Container) -> None:
    def explained() -> str:
        return sysfsd("show", "--explain", "box", SWAPPINESS, control=daemon.control).stdout

    assert f"the host's {SWAPPINESS}" in explained()
    box.run("sh", "-c", f"echo 21 > {SWAPPINESS}")
    assert "written by the container" in explained()
    for name in (SWAPPINESS, "proc/sys/vm/swappiness", "vm.swappiness", "vm/swappiness"):
        assert sysfsd("show", "box", name, control=daemon.control).stdout == "21\n"
    for name in ("vm.swapiness", "vm", "swappiness", "proc.meminfo", ".", "a..b", ""):
        refused = sysfsd("show", "box", name, control=daemon.control)
        assert refused.returncode == 3
        assert f"sysfsd has no view at {name!r}; it has: " in refused.stderr


def test_a_container_whose_root_is_the_hosts_keeps_the_kernels(daemon: Serving) -> None:
    with container(user_namespace=False) as box:
        attach(daemon, "ordinary", box)
        mounts = box.run("cat", "/proc/self/mountinfo", user=False)
        assert "/proc/meminfo" in mounts
        assert "/proc/sys/" not in mounts
        shown = sysfsd("show", "ordinary", SWAPPINESS, control=daemon.control)
        assert shown.returncode == 3
        assert "the kernel's own" in shown.stderr
        pinned = daemon.containers / "ordinary/proc/sys/vm/swappiness"
        with pytest.raises(PermissionError):
            pinned.write_text("1")


def test_writers_and_readers_never_see_half_a_value(box: Container) -> None:
    torn = inside(
        box,
        """
path, values = sys.argv[1], [b"1\\t1\\t1\\t1\\n", b"15\\t15\\t15\\t15\\n", b"7\\t7\\t7\\t7\\n"]
with open(path, "wb", buffering=0) as file:
    file.write(values[0])
children = []
for number in range(6):
    child = os.fork()
    if child == 0:
        bad = 0
        for turn in range(400):
            if number < 2:
                with open(path, "wb", buffering=0) as file:
                    file.write(values[(turn + number) % 3])
            else:
                with open(path, "rb", buffering=0) as file:
                    bad |= file.read(100) not in values
        os._exit(bad)
    children.append(child)
print(json.dumps([os.waitpid(child, 0)[1] for child in children]))
""",
        PRINTK,
    )
    assert torn == [0] * 6


def test_containers_do_not_get_into_each_others_way(daemon: Serving) -> None:
    loop = """
path, base = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_RDWR)
wrong = 0
for number in range(1000):
    value = base + number % 7
    os.pwrite(fd, b"%d\\n" % value, 0)
    wrong += os.pread(fd, 100, 0) != b"%d\\n" % value
print(json.dumps(wrong))
"""
    names = [f"loop{number}" for number in range(5)]
    with ExitStack() as stack:
        boxes = [stack.enter_context(system_container(daemon, name)) for name in names]
        program = f"import json, os, sys\n{loop}"
        started = [
            subprocess.Popen(
                [
                    *box.enter(),
                    *(sys.executable, "-I", "-S", "-c", program, SWAPPINESS, str(10 * number)),
                ],
                stdout=subprocess.PIPE,
            )
            for number, box in enumerate(boxes)
        ]
        assert [process.communicate()[0] for process in started] == [b"0\n"] * 5
