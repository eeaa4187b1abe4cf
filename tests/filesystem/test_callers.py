"""``sysfsd mount``: everybody sees their own numbers in the same files."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.cgroups import TestCgroup, cgroup
from tests.support.containers import Container, container
from tests.support.daemon import started
from tests.support.views import of_this_host
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
        if os.path.exists("/proc/pressure"):
            until((directory / "proc/pressure").is_mount, "the mount within")
        assert (directory / "proc/uptime").read_text()
        yield directory
    assert not directory.is_mount()


def total(text: str) -> int:
    """MemTotal in kB."""
    return int(text.split("MemTotal:")[1].split(maxsplit=1)[0])


def free_kb(text: str) -> int:
    """MemFree in kB."""
    return int(text.split("MemFree:")[1].split(maxsplit=1)[0])


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
            assert data or path == "proc/diskstats"
            assert status.st_size >= max(1, len(data))
            modes = {"proc/slabinfo": 0o400, "proc/pressure": 0o666}  # those of the kernel's own
            mode = modes.get(path, modes.get(os.path.dirname(path), 0o444))
            assert stat.S_IMODE(status.st_mode) == mode
    assert sorted(os.listdir(views)) == ["proc", "sys"]


@pytest.mark.usefixtures("web")
def test_a_read_asks_the_daemon_as_little_as_it_can(
    daemon: Serving, box: Container, readable: Path
) -> None:
    """The name and the size once for all, then who opens, with what they see."""

    def asked() -> tuple[int, int]:
        methods = daemon.call("stats")["control"]["methods"]
        resolve, show = (methods.get(name, {"requests": 0}) for name in ("resolve", "show"))
        return resolve["requests"], show["requests"]

    path = readable / "proc/meminfo"
    assert total(seen_by(box, path)) == 96 << 10
    before = asked()
    assert total(seen_by(box, path)) == 96 << 10

    resolved, shown = asked()
    # A moment ago is still known.
    assert resolved - before[0] <= 1
    assert shown == before[1]


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
        assert size % 4096 == 0
        copied = os.sendfile(target.fileno(), source.fileno(), 0, size)
        assert (tmp_path / "copy").read_bytes() == source.read()
    assert 0 < copied < size


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
        node = readable / "sys/devices/system/node/node0"
        if Path("/sys/devices/system/node/node0/cpu1").exists():
            for box, there in ((two, {"cpu0", "cpu1"}), (one, {"cpu0"})):
                assert set(seen_by(box, node, "ls").split()) & {"cpu0", "cpu1"} == there
            assert seen_by(two, node / "cpu1/topology/core_id") == "1\n"
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
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
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


@contextmanager
def reader(*prefix: str, within: TestCgroup, below: str = "") -> Iterator[Callable[[Path], str]]:
    """A process in a cgroup that then goes through ``prefix``, and reads files for us."""
    command = ["sh", "-c", 'read go && exec "$@"', "sh", *prefix, sys.executable, "-uc", _READS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(question: object) -> str:
            stdin.write(f"{question}\n")
            stdin.flush()
            answer: str = json.loads(stdout.readline())
            return answer

        try:
            within.put(process.pid, below)
            stdin.write("go\n")
            assert ask("/dev/null") == ""
            yield ask
        finally:
            stdin.close()
            process.wait(20)


def only_process(group: TestCgroup, below: str = "") -> int:
    """The one process in a cgroup."""
    (pid,) = (group.directory / below / "cgroup.procs").read_text().split()
    return int(pid)


_READS = "import json, sys\nfor line in sys.stdin: print(json.dumps(open(line[:-1]).read()))"
_PIDS = ("unshare", "--pid", "--fork", "--kill-child")


def uptime(text: str) -> float:
    """The first field of /proc/uptime, in seconds."""
    return float(text.split(maxsplit=1)[0])


def test_an_ordinary_container_is_known_by_its_cgroup(daemon: Serving, views: Path) -> None:
    """It shares the host's user namespace, like everything else here."""
    with (
        cgroup("leaf", memory=56 << 20) as group,
        reader(within=group) as init,
        reader(within=group, below="leaf") as other,
    ):
        boot = uptime(Path("/proc/uptime").read_text())
        # So far, what it sits in is no container's, and as old as the host. What such a one was
        # told last may be a refresh old.
        until(lambda: uptime(other(views / "proc/uptime")) >= boot, "the host's uptime")
        daemon.register("ordinary", only_process(group))
        until(lambda: uptime(other(views / "proc/uptime")) < boot, "the container's uptime")
        assert uptime(init(views / "proc/uptime")) < boot
        assert total(other(views / "proc/meminfo")) == 56 << 10
        until(lambda: uptime((views / "proc/uptime").read_text()) >= boot, "the host's uptime")
    until(lambda: "ordinary" not in daemon.ids(), "the record to go")


def test_an_inner_container_is_its_own(daemon: Serving, views: Path) -> None:
    """Nobody registered it, but it has a cgroup namespace, with a limit of its own."""
    with (
        cgroup("init", "inner", "inner/leaf", memory=56 << 20) as group,
        reader(within=group, below="init"),
    ):
        daemon.register("outer", only_process(group, "init"))
        group.divide()
        group.limit(48 << 20, "inner")
        with reader("unshare", "--cgroup", within=group, below="inner") as inner:
            group.put(only_process(group, "inner"), "inner/leaf")
            assert total(inner(views / "proc/meminfo")) == 48 << 10
        with reader(within=group, below="inner") as leaf:
            assert total(leaf(views / "proc/meminfo")) == 56 << 10
    until(lambda: "outer" not in daemon.ids(), "the record to go")


def test_usage_is_the_containers_and_not_its_inits(views: Path) -> None:
    with cgroup("init", "work", memory=96 << 20) as group:
        ballast = [sys.executable, "-c", "b = bytearray(40 << 20); print(); input()"]
        hog = ["sh", "-c", 'read go && exec "$@"', "sh", *ballast]
        with (
            reader("unshare", "--cgroup", within=group, below="init") as outside,
            reader("unshare", "--cgroup", within=group) as inside,
            subprocess.Popen(hog, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        ):
            group.put(only_process(group), "init")
            group.put(process.pid, "work")
            group.divide()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"\n"
            # Both sit in the same leaf; one has its namespace's root there, the other above it.
            free = [free_kb(each(views / "proc/meminfo")) for each in (inside, outside)]
            assert free[0] < 56 << 10 < free[1]
            process.kill()


def test_a_size_asked_for_keeps_nothing_from_being_read_anew(views: Path) -> None:
    """A container's runtime looks at the files, then sets limits, then becomes its program."""
    script = (
        "import os, sys; view, limit = sys.argv[1:]; input(); os.stat(view); "
        "open(limit, 'w').write(str(48 << 20)); print(open(view).read())"
    )
    with cgroup(memory=56 << 20) as group:
        limit = group.limit_file()
        for _ in range(5):
            group.limit(56 << 20)
            with subprocess.Popen(
                [sys.executable, "-c", script, str(views / "proc/meminfo"), str(limit)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as process:
                group.put(process.pid)
                assert total(process.communicate("\n", timeout=30)[0]) == 48 << 10


def test_no_caller_gets_what_another_read(views: Path) -> None:
    """In one cgroup, at the same moment, but in pid namespaces of different ages."""
    with cgroup() as group, reader(within=group) as old, reader(*_PIDS, within=group) as young:
        boot = uptime(Path("/proc/uptime").read_text())
        for _ in range(20):
            assert uptime(old(views / "proc/uptime")) >= boot
            assert uptime(young(views / "proc/uptime")) < boot


def test_a_caller_that_moves_is_told_apart_at_once(views: Path) -> None:
    """Who it is, is remembered for a moment, but not by its number."""
    with cgroup("a", "b") as group:
        group.divide()
        sizes = {"a": 48, "b": 56}
        for name, size in sizes.items():
            group.limit(size << 20, name)
        with reader(within=group, below="a") as read:
            pid = only_process(group, "a")
            for name in "abababab":
                group.put(pid, name)
                assert total(read(views / "proc/meminfo")) == sizes[name] << 10


def test_many_callers_at_the_same_time(views: Path) -> None:
    """In containers of three kinds, in leaves of those, and on the host."""
    wrong: list[tuple[int, int]] = []
    with ExitStack() as stack:
        ask: list[tuple[int, Callable[[Path], str]]] = []
        for size, prefix in ((48, ()), (56, ("unshare", "--cgroup")), (64, _PIDS)):
            group = stack.enter_context(cgroup("leaf", memory=size << 20))
            ask.append((size, stack.enter_context(reader(*prefix, within=group))))
            ask.append((size, stack.enter_context(reader(*prefix, within=group, below="leaf"))))
        host = total((views / "proc/meminfo").read_text()) >> 10
        ask.append((host, lambda path: path.read_text()))

        def hammer(size: int, read: Callable[[Path], str]) -> None:
            for _ in range(40):
                found = total(read(views / "proc/meminfo")) >> 10
                if found != size:
                    wrong.append((size, found))

        threads = [threading.Thread(target=hammer, args=each) for each in ask]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


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
