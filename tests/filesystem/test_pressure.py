"""Pressure files: of a real cgroup under real pressure, triggers included."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from sysfsd.facts.pressure import resources_of_kernel
from sysfsd.kernel.cgroups import CgroupTree, read_cgroup_paths
from sysfsd.runtime import delegation
from tests.support.attached import attach
from tests.support.containers import UID_BASE, Container, container
from tests.support.daemon import serving, started, sysfsd
from tests.support.tidy import count_fds
from tests.support.views import bare
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Serving
    from tests.support.tidy import ExpectedLog

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/pressure/cpu"), reason="this kernel counts no pressure (psi=1)"
)

SOURCES = Path(__file__).parent.parent.parent
CPU = "/proc/pressure/cpu"
TRIGGER = "some 100000 2000000"
"""100 ms in 2 s, a window that needs no privilege (kernel/sched/psi.c)."""

# Prints the errno of opening and writing, and then, once there was an event, "fired".
_WAIT = """
import os, select, sys
path, trigger = sys.argv[1], sys.argv[2].encode().decode("unicode_escape").encode()
try:
    fd = os.open(path, os.O_RDWR)
    os.write(fd, trigger)
except OSError as error:
    print(error.errno, flush=True)
    sys.exit()
print("armed", flush=True)
poller = select.poll()
poller.register(fd, select.POLLPRI)
events = dict(poller.poll(30000))
print({select.POLLPRI: "fired", select.POLLPRI | select.POLLERR: "gone"}.get(events.get(fd)))
"""


@pytest.fixture
def own() -> Iterator[Container]:
    """A container with a cgroup of its own in the v2 hierarchy, not registered."""
    with container(unified=True) as running:
        yield running


def directory(box: Container) -> Path:
    """The v2 cgroup of a container."""
    cgroup = CgroupTree.of_host().unified(read_cgroup_paths(box.pid))
    assert cgroup is not None
    assert not cgroup.is_root
    return Path(f"{cgroup.mountpoint}{cgroup.path}")


def v2_root() -> Path:
    """The root of the v2 hierarchy, where the kernel counts for the whole machine."""
    cgroup = CgroupTree.of_host().unified(read_cgroup_paths(os.getpid()))
    assert cgroup is not None
    return Path(cgroup.mountpoint)


def total(text: str) -> int:
    """Microseconds of some task waiting."""
    assert text.startswith("some ")
    return int(text.split()[4].removeprefix("total="))


@contextmanager
def busy(cgroup: Path) -> Iterator[None]:
    """Have more tasks in a cgroup that want a CPU than there are."""
    script = f"echo $$ > {cgroup}/cgroup.procs && exec sh -c 'while :; do :; done'"
    count = len(os.sched_getaffinity(0)) + 2
    processes = [subprocess.Popen(["sh", "-c", script]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def waiting(*prefix: str, path: str | Path, trigger: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that sets a trigger and waits for it."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", _WAIT, str(path), trigger],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def inside(box: Container) -> list[str]:
    """Run what follows as the container's root."""
    return ["nsenter", "--target", str(box.pid), "--mount", "--pid", "--user"]


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def covering(box: Container) -> list[str]:
    """File system types of what is mounted over /proc/pressure."""
    table = box.run("cat", "/proc/self/mounts").splitlines()
    return [line.split()[2] for line in table if line.split()[1].startswith("/proc/pressure/")]


def everywhere(kind: str) -> list[str]:
    """What `covering` gives if all are of one kind."""
    return [kind] * len(resources_of_kernel())


def test_the_view_is_the_cgroups_pressure_and_grows(daemon: Serving, own: Container) -> None:
    view = daemon.mountpoint / daemon.register("own", own.pid)["directory"] / "proc/pressure/cpu"
    before = total(view.read_text())
    with busy(directory(own)):
        until(lambda: total(view.read_text()) > before + 100_000, "pressure")
        shown = sysfsd("show", "own", CPU, "--explain", control=daemon.control).stdout
    assert f"{directory(own)}/cpu.pressure" in shown
    until(
        lambda: bare(view.read_bytes()) == (directory(own) / "cpu.pressure").read_bytes(),
        "the view to say what the kernel's file says",
    )
    daemon.call("release", id="own")


def test_a_container_in_the_root_of_v2_sees_zeros(daemon: Serving) -> None:
    with container() as box:
        (v2_root() / "cgroup.procs").write_text(str(box.pid))
        attach(daemon, "own", box)
        assert covering(box) == everywhere("fuse.sysfsd")
        for resource in resources_of_kernel():
            for shown in box.run("cat", f"/proc/pressure/{resource}").splitlines():
                assert shown.rstrip()[5:] == "avg10=0.00 avg60=0.00 avg300=0.00 total=0"
        with waiting(*inside(box), path=CPU, trigger=TRIGGER) as process:
            assert line(process) == str(errno.EROFS)


def test_the_kernels_own_file_is_attached_and_taken_away(daemon: Serving, own: Container) -> None:
    host = own.run("cat", CPU)
    attach(daemon, "own", own)
    assert covering(own) == everywhere("cgroup2")
    assert own.run("cat", CPU) == (directory(own) / "cpu.pressure").read_text()
    attach(daemon, "own", own)  # changes nothing
    assert covering(own) == everywhere("cgroup2")

    detached = sysfsd("detach", str(own.pid), control=daemon.control)
    assert detached.returncode == 0, detached.stderr
    assert covering(own) == []
    assert total(own.run("cat", CPU)) >= total(host) > 0


def test_detaching_leaves_other_cgroups_files_alone(daemon: Serving, own: Container) -> None:
    attach(daemon, "own", own)
    with container(unified=True) as other:
        foreign = str(directory(other) / "cpu.pressure")
        own.run("mount", "--bind", foreign, CPU, user=False)
        assert sysfsd("detach", str(own.pid), control=daemon.control).returncode == 0
        # What lay below it is still covered by it, and nobody can get at that.
        assert covering(own) == ["cgroup2", "cgroup2"]
        own.run("umount", CPU, user=False)
        own.run("umount", CPU, user=False)


def test_attaching_replaces_a_former_cgroups_file(daemon: Serving, own: Container) -> None:
    with container(unified=True) as other:
        own.run("mount", "--bind", str(directory(other) / "cpu.pressure"), CPU, user=False)
        attach(daemon, "own", own)
        assert covering(own) == everywhere("cgroup2")
        assert own.run("stat", "-c", "%i", CPU).strip() == str(
            (directory(own) / "cpu.pressure").stat().st_ino
        )


def test_it_goes_on_when_the_daemon_is_killed(tmp_path: Path, own: Container) -> None:
    with serving(tmp_path) as first:
        attach(first, "own", own)
        first.process.kill()
        first.process.wait()
    assert own.run("cat", CPU) == (directory(own) / "cpu.pressure").read_text()
    with serving(tmp_path) as second:
        attach(second, "own", own)
        assert covering(own) == everywhere("cgroup2")


def test_where_counting_is_switched_off_the_view_is_attached(
    daemon: Serving, own: Container
) -> None:
    (directory(own) / "cgroup.pressure").write_text("0")
    attach(daemon, "own", own)
    assert covering(own) == everywhere("fuse.sysfsd")
    assert total(own.run("cat", CPU)) == 0
    (directory(own) / "cgroup.pressure").write_text("1")
    attach(daemon, "own", own)  # again: what is there stays
    assert covering(own) == everywhere("fuse.sysfsd")


def test_a_trigger_of_the_containers_root(daemon: Serving, own: Container) -> None:
    given(own)
    attach(daemon, "own", own)
    with waiting(*inside(own), path=CPU, trigger=TRIGGER) as process:
        assert line(process) == "armed"
        with busy(directory(own)):
            assert line(process) == "fired"


def given(box: Container) -> None:
    """Delegate the container's cgroups, as the hook does."""
    pidfd = os.pidfd_open(box.pid)
    try:
        assert str(directory(box)) in delegation.delegate(box.pid, pidfd)
    finally:
        os.close(pidfd)


def test_delegation_gives_the_pressure_files_and_no_limit(own: Container) -> None:
    given(own)
    owners = {path.name: path.stat().st_uid for path in directory(own).iterdir()}
    for resource in ("cpu", "memory", "io"):
        assert owners[f"{resource}.pressure"] == UID_BASE
    for name in ("cgroup.max.descendants", "cgroup.pressure", "cgroup.freeze"):
        assert owners[name] == 0


def test_a_trigger_needs_the_file_to_be_given(daemon: Serving, own: Container) -> None:
    attach(daemon, "own", own)
    with waiting(*inside(own), path=CPU, trigger=TRIGGER) as process:
        assert line(process) == str(errno.EACCES)


def test_a_trigger_of_an_ordinary_containers_root(daemon: Serving) -> None:
    with container(unified=True, user_namespace=False) as box:
        attach(daemon, "own", box)
        enter = ["nsenter", "--target", str(box.pid), "--mount", "--pid"]
        with waiting(*enter, path=CPU, trigger=TRIGGER) as process:
            assert line(process) == "armed"
            with busy(directory(box)):
                assert line(process) == "fired"


def in_cgroup(cgroup: Path) -> list[str]:
    """Run what follows in a v2 cgroup, in our namespaces and without more privilege than most."""
    join = f'echo $$ > {cgroup}/cgroup.procs && exec setpriv --bounding-set=-sys_resource "$@"'
    return ["sh", "-c", join, "sh"]


def run_in(cgroup: Path, *command: str) -> str:
    """Run a command in a v2 cgroup and return what it prints."""
    done = subprocess.run(
        [*in_cgroup(cgroup), *command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_trigger_from_within_a_cgroup_namespace(tmp_path: Path) -> None:
    """Where that is a boundary (nsdelegate), the kernel's own file can't be written from there."""
    with (
        serving(tmp_path) as daemon,
        container(unified=True, cgroup_namespace=True) as box,
    ):
        given(box)
        attach(daemon, "own", box)
        boundary = CgroupTree.of_host().nsdelegate
        assert covering(box) == everywhere("fuse.sysfsd" if boundary else "cgroup2")
        with waiting(*inside(box), "--cgroup", path=CPU, trigger=TRIGGER) as process:
            assert line(process) == "armed"
            with busy(directory(box)):
                assert line(process) == "fired"
        assert sysfsd("detach", str(box.pid), control=daemon.control).returncode == 0
        assert covering(box) == []


# ``sysfsd mount``


@pytest.fixture(scope="module")
def mounted(daemon: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pressure files of a mount that asks the daemon."""
    base = tmp_path_factory.mktemp("mount")
    target, log = base / "views", base / "log"
    target.mkdir()
    with started(["mount", str(target), "--control", daemon.control], log):
        until((target / "proc/pressure").is_mount, "the mount")
        yield target / "proc/pressure"
    assert not (target / "proc/pressure").is_mount()
    assert not target.is_mount()


def test_callers_read_their_own_cgroups_pressure(mounted: Path, own: Container) -> None:
    with busy(directory(own)):
        until(lambda: total((directory(own) / "cpu.pressure").read_text()) > 100_000, "pressure")
    known = total((directory(own) / "cpu.pressure").read_text())
    assert total(run_in(directory(own), "cat", str(mounted / "cpu"))) >= known
    assert total(run_in(v2_root(), "cat", str(mounted / "cpu"))) == 0
    assert sorted(os.listdir(mounted)) == sorted(os.listdir("/proc/pressure"))


def test_a_registered_caller_reads_its_containers(
    daemon: Serving, mounted: Path, own: Container
) -> None:
    daemon.register("own", own.pid)
    with busy(directory(own)):
        until(lambda: total((directory(own) / "cpu.pressure").read_text()) > 100_000, "pressure")
    known = total((directory(own) / "cpu.pressure").read_text())
    # In the test's cgroup: its user namespace is what decides.
    enter = ["nsenter", f"--user=/proc/{own.pid}/ns/user"]
    fd = os.open(mounted / "cpu", os.O_PATH)  # pytest's directories are 0700
    try:
        done = subprocess.run(
            [*enter, "cat", f"/proc/self/fd/{fd}"],
            capture_output=True,
            text=True,
            pass_fds=[fd],
            check=True,
        )
    finally:
        os.close(fd)
        daemon.call("release", id="own")
    assert total(done.stdout) >= known


def test_a_trigger_through_the_mount(mounted: Path, own: Container) -> None:
    with waiting(*in_cgroup(directory(own)), path=mounted / "cpu", trigger=TRIGGER) as process:
        assert line(process) == "armed"
        with busy(directory(own)):
            assert line(process) == "fired"


_EPOLL = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.write(fd, sys.argv[2].encode())
epoll = select.epoll()
epoll.register(fd, select.EPOLLPRI | select.EPOLLET)
print("armed", flush=True)
for _ in range(2):
    print("fired" if epoll.poll(30) == [(fd, select.EPOLLPRI)] else "not", flush=True)
"""


def test_epoll_is_told_each_time(mounted: Path, own: Container) -> None:
    process = subprocess.Popen(
        [*in_cgroup(directory(own)), sys.executable, "-c", _EPOLL, str(mounted / "cpu"), TRIGGER],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert line(process) == "armed"
        with busy(directory(own)):
            assert line(process) == "fired"
            assert line(process) == "fired"
    finally:
        process.kill()
        process.communicate()


def test_without_an_event_nobody_is_woken(mounted: Path, own: Container) -> None:
    script = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDWR)
poller = select.poll()
poller.register(fd, select.POLLPRI)
print(poller.poll(0) == [(fd, select.POLLPRI | select.POLLERR)])  # no trigger
os.write(fd, b"full 1999999 2000000\\0")
print(poller.poll(2500))
print(os.pread(fd, 4, 0))
try:
    os.write(fd, b"some 100000 2000000")
except OSError as error:
    print(error.strerror)
"""
    printed = run_in(directory(own), sys.executable, "-c", script, str(mounted / "io"))
    assert printed.splitlines() == ["True", "[]", "b'some'", "Device or resource busy"]


HOSTILE = [
    "",
    "some",
    "most 100000 2000000",
    "some -1 2000000",
    "some 0 2000000",
    "some 3000000 2000000",
    "some 100000 0",
    "some 100000 -2000000",
    "some 100000 100000000000",
    "some 100000 1000000",
    "some\\0 100000 2000000",
    "\\0" * 100,
    "some 100000",
    "some 1" + "0" * 5000,
    " " * 100000 + "some 100000 2000000",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:20]))
def test_hostile_writes_give_what_the_kernel_gives(
    mounted: Path, own: Container, text: str
) -> None:
    """The same program, at the kernel's own file and at ours."""
    answers = []
    for path in (directory(own) / "cpu.pressure", mounted / "cpu"):
        with waiting(*in_cgroup(directory(own)), path=path, trigger=text) as process:
            answers.append(line(process))
    assert answers[0] == answers[1]


def test_a_containers_root_gets_no_real_time_thread_of_us(
    daemon: Serving, mounted: Path, own: Container
) -> None:
    """The kernel looks for a capability bit and not for whose: our own open file has none."""
    short = "some 100000 1000000"
    given(own)
    attach(daemon, "own", own)
    with waiting(*inside(own), path=CPU, trigger=short) as process:
        assert line(process) == "armed"
    own.run("mount", "--bind", str(mounted / "cpu"), CPU, user=False)
    with waiting(*inside(own), path=CPU, trigger=short) as process:
        assert line(process) == str(errno.EINVAL)
    with waiting(*inside(own), path=CPU, trigger=TRIGGER) as process:
        assert line(process) == "armed"


def test_a_shells_redirection(mounted: Path, own: Container) -> None:
    command = f"echo '{TRIGGER}' > {mounted}/cpu"
    assert run_in(directory(own), "sh", "-c", command) == ""
    for change in ("chmod 600", "chown 1", "touch"):
        assert subprocess.run([*change.split(), mounted / "cpu"], check=False).returncode == 1


def test_where_no_pressure_is_counted_a_trigger_is_not_supported(mounted: Path) -> None:
    with waiting(*in_cgroup(v2_root()), path=mounted / "cpu", trigger=TRIGGER) as process:
        assert line(process) == str(errno.EOPNOTSUPP)


def test_a_cgroup_that_goes_away_wakes_who_waits(mounted: Path) -> None:
    with container(unified=True) as box:
        cgroup = directory(box)
        with waiting(*in_cgroup(directory(box)), path=mounted / "cpu", trigger=TRIGGER) as process:
            assert line(process) == "armed"
            (v2_root() / "cgroup.procs").write_text(str(process.pid))
            box.kill()
            until(lambda: not (cgroup / "cgroup.procs").read_text(), "an empty cgroup")
            cgroup.rmdir()
            assert line(process) == "gone"
            cgroup.mkdir()  # which the container's context will remove


def server_of(mounted: Path) -> int:
    """The process behind a mount."""
    for child in psutil.Process().children(recursive=True):
        # Others come and go, and some have ended and are not waited for yet.
        with suppress(psutil.NoSuchProcess):
            if {"--pressure", str(mounted)} <= set(child.cmdline()):
                return child.pid
    raise AssertionError(f"no process serves {mounted}")


def test_open_files_are_bounded_and_leave_nothing(mounted: Path) -> None:
    server = server_of(mounted)
    before = count_fds(server)
    with container(unified=True) as box:
        script = """
import os, sys
fds = []
try:
    while len(fds) < 1000:
        fds.append(os.open(sys.argv[1], os.O_RDWR))
        os.write(fds[-1], b"some 100000 2000000")
except OSError as error:
    print(len(fds), error.errno)
"""
        printed = run_in(directory(box), sys.executable, "-c", script, str(mounted / "cpu"))
        assert printed.split() == ["32", str(errno.ENFILE)]
        # Others are not kept from theirs.
        (mounted / "cpu").open("rb+", buffering=0).close()
    until(lambda: count_fds(server) == before, "all to be closed")


def test_one_container_with_many_cgroups_leaves_open_files_to_others(
    mounted: Path, own: Container
) -> None:
    # By name they are containers of their own, as an inner engine's are.
    outer = directory(own) / ("a" * 64)
    inner = [outer, outer / ("b" * 64), outer / ("c" * 64)]
    script = """
import os, sys
fds = []
try:
    while True:
        fds.append(os.open(sys.argv[1], os.O_RDONLY))
        if len(fds) == 700:
            open(sys.argv[2], "w").write(str(os.getpid()))
except OSError as error:
    print(len(fds), error.errno, flush=True)
sys.stdin.read()
"""
    for each in inner:
        each.mkdir()
    command = [sys.executable, "-c", script, str(mounted / "cpu"), str(inner[1] / "cgroup.procs")]
    enter = f'echo $$ > {inner[2]}/cgroup.procs && ulimit -n 5000 && exec "$@"'
    with subprocess.Popen(
        ["sh", "-c", enter, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["1024", str(errno.ENFILE)]
        assert (mounted / "cpu").read_text()
        process.kill()
    for each in reversed(inner):
        until(lambda each=each: not (each / "cgroup.procs").read_text(), "an empty cgroup")  # type: ignore[misc]
        each.rmdir()


def test_other_files_are_polled_in_the_kernel(mounted: Path) -> None:
    """One that asked us while the host goes to sleep would keep it awake."""
    stat = mounted.parent / "stat"
    with stat.open("rb") as file:
        poller = select.poll()
        poller.register(file, select.POLLIN | select.POLLPRI)
        assert poller.poll(0) == [(file.fileno(), select.POLLIN)]


def test_it_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    target = tmp_path / "views"
    target.mkdir()
    with started(["mount", str(target), "--control", "/nowhere"], tmp_path / "log") as process:
        until(lambda: os.path.ismount(target / "proc/pressure"), "the mount")
        server = psutil.Process(server_of(target / "proc/pressure"))
        process.kill()
        process.wait()
        until(lambda: not server.is_running(), "the other process to end")
    assert "crashed" not in (tmp_path / "log").read_text()
    # What is left of both is out of the way of the next.
    with started(["mount", str(target), "--control", "/nowhere"], tmp_path / "log"):
        until(lambda: os.path.ismount(target / "proc/pressure"), "the mount")
        assert (target / "proc/pressure/cpu").read_text()
    assert not target.is_mount()


def test_without_that_process_the_view_is_attached(
    tmp_path: Path, expected_log: ExpectedLog
) -> None:
    """Where cgroup namespaces are boundaries; an attached file of its that is dead is replaced."""
    if not CgroupTree.of_host().nsdelegate:
        pytest.skip("this host mounts cgroup v2 without nsdelegate")
    expected_log.allow("their process ended")
    with (
        serving(tmp_path) as daemon,
        container(unified=True, cgroup_namespace=True) as box,
    ):
        attach(daemon, "own", box)
        psutil.Process(server_of(tmp_path / "state/pressure")).kill()

        def dead() -> bool:
            with pytest.raises(AssertionError) as raised:
                box.run("cat", CPU)
            return "not connected" in str(raised.value)

        until(dead, "its end")
        attach(daemon, "own", box)
        assert total(box.run("cat", CPU)) == total((directory(box) / "cpu.pressure").read_text())
        assert sysfsd("detach", str(box.pid), control=daemon.control).returncode == 0
        assert covering(box) == []


def test_a_stop_gives_the_kernels_files_back(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as daemon,
        container(unified=True, cgroup_namespace=True) as box,
    ):
        attach(daemon, "own", box)
        # As systemd does, which tells every process of a service.
        served = psutil.Process(daemon.process.pid)
        for process in (*served.children(recursive=True), served):
            process.terminate()
        assert daemon.process.wait(20) == 0
        assert covering(box) == []
        assert total(box.run("cat", CPU)) > 0


def test_a_capability_is_given_up_for_good() -> None:
    script = """
from sysfsd.kernel import capabilities
from sysfsd.kernel.syscalls import CLONE_NEWUSER, unshare
unshare(CLONE_NEWUSER)  # which gives all of them
def held():
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(("CapEff", "CapPrm")):
                yield int(line.split()[1], 16) >> capabilities.CAP_SYS_RESOURCE & 1
print(*held())
capabilities.give_up(capabilities.CAP_SYS_RESOURCE)
print(*held())
capabilities.give_up(capabilities.CAP_SYS_RESOURCE)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=SOURCES
    )
    assert done.stdout.splitlines() == ["1 1", "0 0"]
