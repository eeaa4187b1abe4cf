"""What a container's root does out of spite: the host and its neighbours notice nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support import workers
from tests.support.attached import attach, mounted_in
from tests.support.containers import container
from tests.support.daemon import sysfsd
from tests.support.tidy import count_fds
from tests.support.wait import patient, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.containers import Container
    from tests.support.daemon import Serving
    from tests.support.workers import Worker

PYTHON = ["/usr/bin/env", "python3", "-I", "-S", "-c"]
MEMORY = 64 << 20
SLACK_BYTES = 32 << 20
"""By so much the daemon may be larger afterwards: allocators don't give all back."""

MAX_LINES = 100
"""Of the log, over one attack."""

# Its own numbers, each time, of a file that has to be made anew (they are current for 50 ms) and of
# one that is never kept. Says how long the slowest in a hundred took.
_NEIGHBOUR = """
import signal
latencies = []
print("ready", flush=True)
while not stop:
    began = time.monotonic()
    with open("/proc/meminfo", "rb", buffering=0) as file:
        data = file.read(1 << 16)
    latencies.append(time.monotonic() - began)
    assert data.startswith(b"MemTotal:%15d kB" % int(paths[0])) and data.endswith(b"\\n"), data
    with open("/proc/sys/vm/max_map_count", "wb", buffering=0) as file:
        file.write(b"%d" % (100000 + number))
    with open("/proc/sys/vm/max_map_count", "rb", buffering=0) as file:
        data = file.read()
    assert data == b"%d\\n" % (100000 + number), (data, number)
    number += 1
    time.sleep(0.06)
latencies.sort()
print(number, latencies[len(latencies) * 99 // 100], flush=True)
"""


@pytest.fixture
def attacker(daemon: Serving) -> Iterator[Container]:
    """A container with its views."""
    with container(memory=256 << 20, cpus=2, isolated=True) as box:
        attach(daemon, "attacker", box)
        yield box


@pytest.fixture(autouse=True)
def unnoticed(daemon: Serving, request: pytest.FixtureRequest) -> Iterator[Worker]:
    """A neighbour reads and writes all the time; then the daemon is as it was before."""
    lines = len(daemon.log.read_text().splitlines())
    mounts = host_mounts(daemon)
    process = psutil.Process(daemon.process.pid)
    before = count_fds(process.pid), process.memory_info().rss
    tasks = stats(daemon)["tasks"]
    with container(memory=MEMORY, cpus=0.5, isolated=True) as box:
        attach(daemon, "neighbour", box)
        with workers.worker(box.pid, _NEIGHBOUR, [str(MEMORY >> 10)]) as neighbour:
            yield neighbour
            count, slowest = workers.stop([neighbour])
        load = os.getloadavg()[0]
        print(
            f"\n{request.node.name}: {count} reads of a neighbour's, p99 {slowest * 1000:.1f} ms, "
            f"load {load:.1f} on {os.cpu_count()} CPUs"
        )
        assert count > 0
        assert box.run("head", "-1", "/proc/meminfo").split()[1] == str(MEMORY >> 10)
    until(lambda: daemon.ids() == [], "containers that are gone")
    until(lambda: stats(daemon)["channel"]["in_flight"] == 0, "an end of all requests")
    until(lambda: stats(daemon)["tasks"] <= tasks, "tasks as before")
    until(lambda: count_fds(process.pid) <= before[0], "descriptors as before")
    grown = process.memory_info().rss - before[1]
    assert grown < SLACK_BYTES, f"{grown >> 20} MiB more"
    assert stats(daemon)["failures"] == 0
    assert stats(daemon)["views"]["fallbacks"] == {}
    said = daemon.log.read_text().splitlines()[lines:]
    assert len(said) < MAX_LINES, "\n".join(said[:MAX_LINES])
    assert host_mounts(daemon) == mounts


def stats(daemon: Serving) -> dict[str, Any]:
    return daemon.call("stats")


def host_mounts(daemon: Serving) -> list[str]:
    """Those of the daemon, and on top of the host's own files; others come and go."""
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    ours = ("/proc", "/sys", "/etc", str(daemon.state_dir.parent))
    return [line for line in table if line.split(" ")[4].startswith(ours)]


def files(box: Container) -> list[str]:
    """Paths that files of ours cover in a container."""
    return [point for point in mounted_in(box) if point.startswith("/proc/")]


def asked(daemon: Serving, kind: str) -> int:
    """How many requests of a kind there were."""
    counted = stats(daemon)["channel"]["requests"]
    return int(counted[kind]["count"]) if kind in counted else 0


_BOMB = """
import os, resource
resource.setrlimit(resource.RLIMIT_NPROC, (300, 300))
while True:
    try:
        os.fork()
    except BlockingIOError:
        pass
    for path in ("/proc/meminfo", "/proc/stat", "/proc/sys/vm/swappiness"):
        try:
            fd = os.open(path, os.O_RDONLY)
            os.read(fd, 1 << 16)
            os.close(fd)
        except OSError:
            pass
"""


def test_a_fork_bomb_that_reads(daemon: Serving, attacker: Container) -> None:
    before = asked(daemon, "open")
    with attacker.background(*PYTHON, _BOMB):
        until(lambda: asked(daemon, "open") > before + 3000, "reads")
        attacker.kill()
        until(lambda: "attacker" not in daemon.ids(), "its end")


_MANY_OPEN = """
import os, resource, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
sysctl, refused = [], 0
for _ in range(4000):
    try:
        sysctl.append(os.open("/proc/sys/vm/swappiness", os.O_RDONLY))
    except OSError as error:
        refused += error.errno == 24
views = [os.open(path, os.O_RDONLY) for _ in range(2000) for path in sys.argv[1:]]
failed = []
def read(fds):
    for fd in fds:
        try:
            assert os.pread(fd, 1 << 16, 0)
        except OSError as error:
            failed.append(error)
threads = [threading.Thread(target=read, args=((views + sysctl)[n::16],)) for n in range(16)]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(len(views), len(sysctl), refused, failed, flush=True)
"""


def test_ten_thousand_open_files(attacker: Container) -> None:
    """As many as it likes of those that the kernel opens, and its share of the others."""
    views = ["/proc/meminfo", "/proc/stat", "/proc/uptime", "/proc/loadavg", "/proc/cpuinfo"]
    done = attacker.run(*PYTHON, _MANY_OPEN, *views)
    assert done.split() == ["10000", "1024", str(4000 - 1024), "[]"]


_OPEN_AT_ONCE = """
import os, threading
threading.stack_size(1 << 16)
go, failed, opened = threading.Event(), [], []
def read():
    go.wait()
    try:
        fd = os.open("/proc/sys/vm/swappiness", os.O_RDONLY)
        os.read(fd, 100)
        opened.append(fd)
    except OSError as error:
        if error.errno != 24:
            failed.append(error)
threads = []
try:
    for _ in range(3000):
        each = threading.Thread(target=read)
        each.start()
        threads.append(each)
except RuntimeError:
    pass
go.set()
for each in threads:
    each.join()
print(len(threads), len(opened), failed)
"""


def test_thousands_open_at_once(attacker: Container) -> None:
    started, opened, *failed = attacker.run(*PYTHON, _OPEN_AT_ONCE).split()
    assert int(started) > 1000
    assert int(opened) == min(int(started), 1024)
    assert failed == ["[]"]


_SIGNALLED = """
import os, signal, threading
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, False)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
errors, rounds = {}, [0]
buffer_size = 1 << 16
def read():
    buffer = ctypes.create_string_buffer(buffer_size)
    while rounds[0] < 4000:
        fd = libc.open(b"/proc/sys/vm/swappiness", 0)
        number = ctypes.get_errno()
        if fd >= 0:
            if libc.read(fd, buffer, 100) < 0:
                number = ctypes.get_errno()
                errors[number] = errors.get(number, 0) + 1
            libc.close(fd)
        else:
            errors[number] = errors.get(number, 0) + 1
        rounds[0] += 1
threads = [threading.Thread(target=read) for _ in range(64)]
for each in threads:
    each.start()
while rounds[0] < 4000:
    for each in threads:
        if each.is_alive():
            try:
                signal.pthread_kill(each.ident, signal.SIGUSR1)
            except ProcessLookupError:
                pass
print(rounds[0] >= 4000, errors)
"""


def test_a_signal_that_kills_nobody_fails_no_read(attacker: Container) -> None:
    """Reading procfs is not interrupted (signal(7)): programs don't expect it."""
    assert attacker.run(*PYTHON, _SIGNALLED) == "True {}\n"


_STOPPED = """
import os, random, signal, sys, time
children = []
for _ in range(60):
    child = os.fork()
    if child == 0:
        while True:
            for path in ("/proc/meminfo", "/proc/sys/vm/swappiness", "/proc/stat"):
                try:
                    fd = os.open(path, os.O_RDONLY)
                    os.read(fd, 1 << 16)
                    os.close(fd)
                except OSError:
                    pass
    children.append(child)
print("reading", flush=True)
sys.stdin.readline()
for child in children:
    os.kill(child, signal.SIGSTOP)
print("stopped", flush=True)
sys.stdin.readline()
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_readers_that_are_stopped_in_the_middle(daemon: Serving, attacker: Container) -> None:
    before = asked(daemon, "open")
    with subprocess.Popen(
        [*attacker.enter(), *PYTHON, _STOPPED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        until(lambda: asked(daemon, "open") > before + 1000, "reads")
        process.stdin.write("stop\n")
        process.stdin.flush()
        assert process.stdout.readline() == "stopped\n"
        # Nothing of theirs is kept, and others go on.
        until(lambda: stats(daemon)["channel"]["in_flight"] == 0, "an end of all requests")
        process.communicate("kill\n", timeout=patient(30))
        assert process.returncode == 0


# 128 KiB at once is what the kernel hands on in one piece.
_WRITERS = """
import os, threading, sys
fd = os.open("/proc/sys/vm/swappiness", os.O_RDWR)
data, errors, done = b"1" * (128 << 10), {}, [0]
threading.stack_size(1 << 16)
def write():
    while done[0] < 4000:
        try:
            os.pwrite(fd, data, 0)
        except OSError as error:
            errors[error.errno] = errors.get(error.errno, 0) + 1
        done[0] += 1
threads = []
try:
    for _ in range(600):
        each = threading.Thread(target=write)
        each.start()
        threads.append(each)
except RuntimeError:
    pass
for each in threads:
    each.join()
print(len(threads), set(errors))
"""


def test_huge_writes_from_a_thousand_threads(attacker: Container) -> None:
    """More than the daemon would keep waiting of everybody's together."""
    started, errors = attacker.run(*PYTHON, _WRITERS).split(maxsplit=1)
    assert int(started) > 300
    # Not a number, or more than is let wait.
    assert errors in {"{22}\n", "{12, 22}\n"}
    assert (
        attacker.run("cat", "/proc/sys/vm/swappiness")
        == Path("/proc/sys/vm/swappiness").read_text()
    )


_FLOOD = """
import os, threading, time
end = time.monotonic() + 3
def list_all():
    while time.monotonic() < end:
        for directory, _, names in os.walk("/sys/devices/system/cpu"):
            for name in names:
                try:
                    fd = os.open(os.path.join(directory, name), os.O_RDONLY)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.read(fd, 4096)
                    os.close(fd)
                except OSError:
                    pass
def drop():
    fds = [os.open(path, os.O_RDONLY) for path in PATHS]
    while time.monotonic() < end:
        for fd in fds:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                os.pread(fd, 1 << 16, 0)
            except OSError:
                pass
threads = [threading.Thread(target=work) for work in [list_all] * 8 + [drop] * 40]
for each in threads:
    each.start()
for each in threads:
    each.join()
"""


def test_listings_and_reads_without_the_page_cache(attacker: Container) -> None:
    attacker.run(*PYTHON, f"PATHS = {files(attacker)!r}\n{_FLOOD}")


_PASSED_ON = """
import os, subprocess, threading, time
end = time.monotonic() + 4
neigh = "/proc/sys/net/ipv4/neigh"
counts = [0, 0]
def tolerant(work):
    while time.monotonic() < end:
        try:
            work()
            counts[0] += 1
        except OSError:  # an interface is gone
            counts[1] += 1
def look():
    for name in os.listdir(neigh):
        for file in os.listdir(f"{neigh}/{name}"):
            with open(f"{neigh}/{name}/{file}", "r+") as opened:
                opened.write(opened.read())
def miss():
    assert not os.path.exists(f"{neigh}/{time.monotonic_ns() % 10 ** 15}")
def change():
    subprocess.run(["ip", "link", "del", "a"], stderr=subprocess.DEVNULL)
    subprocess.run("ip link add a type veth peer name b".split())
    subprocess.run("ip link set b name c".split())
works = [look] * 8 + [miss] * 8 + [change]
threads = [threading.Thread(target=tolerant, args=[work]) for work in works]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(*counts)
"""


def test_interfaces_that_come_and_go(attacker: Container) -> None:
    """While what the kernel has of each is read and written."""
    done, _failed = attacker.run(*PYTHON, _PASSED_ON).split()
    assert int(done) > 100


_NAMES = r"""
import os
directories = ["/proc/sys/vm", "/sys/devices/system/cpu", "/proc", "/sys/devices/system/cpu/cpu0",
               "/proc/sys/net/ipv4/neigh", "/proc/sys/net/ipv4/neigh/lo"]
names = [b"a" * 255, b"a" * 256, b"a" * 1024, b"a" * 4095, b"\xff\xfe", b"\x80" * 200, b"..",
         b"../../..", b"%s", b"\n", b"\\", b"cpu\xd9\xa1", b"cpu1_0", b"cpu99999999999999999999",
         b"cpu-1", b"cpu+0", b"cpu 0", b"cpu00", b"./.", b"//", b"/" * 4000]
found = {}
for directory in directories:
    for name in names:
        try:
            os.stat(directory.encode() + b"/" + name)
            found[name] = found.get(name, 0) + 1
        except OSError as error:
            assert error.errno in (2, 36, 20), (directory, name, error)
print(sorted(found))
"""


def test_names_that_are_none(daemon: Serving, attacker: Container) -> None:
    assert (
        attacker.run(*PYTHON, _NAMES)
        == str(sorted([b"..", b"../../..", b"./.", b"//", b"/" * 4000])) + "\n"
    )
    for name in (b"a" * 255, b"\xff", b"..\xff", b"attacker\xff", b"\n", b"%s"):
        assert not os.path.exists(os.fsencode(daemon.containers) + b"/" + name)
    assert sorted(os.listdir(daemon.containers)) == ["attacker", "neighbour"]


def test_ids_that_would_lead_elsewhere(daemon: Serving, attacker: Container) -> None:
    before = daemon.ids()
    pidfd = os.pidfd_open(attacker.pid)
    try:
        for name in ("..", ".", "", "a/b", "a" * 4096, "\udcff", "\n", "a\0b"):
            with pytest.raises(Exception, match="id"):
                daemon.call("register", pidfd, id=name)
    finally:
        os.close(pidfd)
    assert daemon.ids() == before


_UNMOUNTER = """
import ctypes, time
libc = ctypes.CDLL(None)
end = time.monotonic() + float(SECONDS)
while time.monotonic() < end:
    for path in PATHS:
        libc.umount2(path.encode(), 2)
"""


def test_unmounting_views_while_they_are_given(daemon: Serving, attacker: Container) -> None:
    paths = files(attacker)
    script = f"PATHS, SECONDS = {paths!r}, 3\n{_UNMOUNTER}"
    with subprocess.Popen([*attacker.enter(), *PYTHON, script]) as process:
        while process.poll() is None:
            done = sysfsd("attach", str(attacker.pid), control=daemon.control)
            assert done.returncode in {0, 1}
            assert "Traceback" not in done.stderr
            assert len(done.stderr.splitlines()) <= 1
        assert process.returncode == 0
    attach(daemon, "attacker", attacker)
    assert sorted(files(attacker)) == sorted(paths)


# What is at /proc changes all the time: a procfs, files of its own, links that lead elsewhere.
_SWAPPER = """
import ctypes, os, time
libc = ctypes.CDLL(None)
end = time.monotonic() + float(SECONDS)
libc.mount(b"x", b"/mnt", b"tmpfs", 0, None)
os.makedirs("/mnt/a/sys/vm")
for name in ("a/meminfo", "a/stat", "a/sys/vm/swappiness"):
    open("/mnt/" + name, "w").write("mine")
os.mkdir("/mnt/b")
for name, target in (("meminfo", "/etc/passwd"), ("stat", "../../etc/hostname"), ("sys", "/etc"),
                     ("uptime", "/proc/1/root/etc/hosts"), ("loadavg", "loadavg")):
    os.symlink(target, "/mnt/b/" + name)
os.rename("/mnt/b", "/mnt/c")
while time.monotonic() < end:
    libc.mount(b"/mnt", b"/proc", None, 4096, None)
    for name in ("a", "c"):
        libc.mount(b"/mnt/" + name.encode(), b"/proc", None, 4096, None)
        for _ in range(50):
            for one in ("meminfo", "stat", "sys"):
                path = "/mnt/%s/%s" % (name, one)
                os.rename(path, path + "~")
                os.symlink("/etc/passwd", path)
                os.unlink(path)
                os.rename(path + "~", path)
        libc.umount2(b"/proc", 2)
    libc.umount2(b"/proc", 2)
libc.umount2(b"/mnt", 2)
"""


def test_links_swapped_while_views_are_attached(daemon: Serving, attacker: Container) -> None:
    def elsewhere() -> list[str]:
        return [p for p in mounted_in(attacker) if not p.startswith(("/proc/", "/sys/"))]

    script = f"SECONDS = 4\n{_SWAPPER}"
    statuses = set()
    hosts = elsewhere()  # it has the host's mounts as well
    with subprocess.Popen([*attacker.enter(), *PYTHON, script]) as process:
        while process.poll() is None:
            for command in ("attach", "detach"):
                done = sysfsd(command, str(attacker.pid), control=daemon.control)
                statuses.add(done.returncode)
                assert "Traceback" not in done.stderr
        assert process.returncode == 0
    assert statuses <= {0, 1, 3}
    attach(daemon, "attacker", attacker)
    assert elsewhere() == hosts
    assert attacker.run("head", "-1", "/proc/meminfo").split()[1] == str(256 << 10)


# A file system of its own whose root is a file (or a directory) and which never answers a READ (or
# anything but INIT). /dev/fuse is opened while we still are root, in its user namespace already: a
# container that has the device can do that.
_BEFORE = """
import ctypes, struct
with open("/proc/self/stat") as stat:
    begin = int(stat.read().rpartition(")")[2].split()[45])
""" + workers.ENTER.replace(
    "os.setgroups", 'fuse = os.open("/dev/fuse", os.O_RDWR)\nos.setgroups', 1
)

_STALLED = """
libc = ctypes.CDLL(None, use_errno=True)
point, kind = sys.argv[2], sys.argv[3]
mode = "100000" if kind == "file" else "40000"
if kind == "file":
    libc.mount(b"x", b"/mnt", b"tmpfs", 0, None)
    open(point, "w").close()
options = "fd=%d,rootmode=%s,user_id=0,group_id=0" % (fuse, mode)
if libc.mount(b"x", point.encode(), b"fuse", 0, options.encode()):
    raise OSError(ctypes.get_errno(), "mount")
def answer(unique, body=b"", error=0):
    os.write(fuse, struct.pack("=IiQ", 16 + len(body), error, unique) + body)
def serve():
    while True:
        try:
            packet = os.read(fuse, 1 << 18)
        except OSError:
            return
        _, opcode, unique = struct.unpack_from("=IIQ", packet)
        if opcode == 26:
            answer(unique, struct.pack("=IIIIHHII36x", 7, 31, 1 << 16, 0, 9, 9, 4096, 1))
        elif opcode == 3 and kind == "file":
            attr = struct.pack("=QQQQQQIIIIIIIIII", 1, 4096, 8, 0, 0, 0, 0, 0, 0, 0o100644, 1, 0,
                               0, 0, 4096, 0)
            answer(unique, struct.pack("=QII", 1000, 0, 0) + attr)
        elif opcode == 14 and kind == "file":
            answer(unique, struct.pack("=QII", 1, 0, 0))
        elif opcode == 25:
            answer(unique, error=-38)
# A process of its own, or we would wait for ourselves at our end (fuse_flush).
if os.fork() == 0:
    serve()
    os._exit(0)
os.close(fuse)
"""

# The first page that has nothing but arguments, of which there are more: on the one before is what
# main() has on its stack.
_STALLED_ARGV = (
    f"# {'-' * 8192}\n"
    + _STALLED
    + """
file = os.open(point, os.O_RDONLY)
page = (begin + 4095) & ~4095
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
print("ready", flush=True)
assert libc.mmap(page, 4096, 1, 0x12, file, 0) == page
while True:
    time.sleep(1)
"""
)

_STALLED_PROC = (
    _STALLED
    + """
print("ready", flush=True)
while True:
    time.sleep(1)
"""
)


@contextlib.contextmanager
def stalled(box: Container, source: str, point: str, kind: str) -> Iterator[int]:
    command = [sys.executable, "-c", _BEFORE + source, str(box.pid), point, kind]
    with subprocess.Popen(
        command,
        env=os.environ | {"STOP": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent.parent,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for cgroup in box.cgroups:
                (cgroup / "cgroup.procs").write_text(str(process.pid))
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_arguments_on_a_file_system_that_never_answers(
    daemon: Serving, attacker: Container
) -> None:
    """Whoever read its command line waited for ever (before Linux 4.17); we never look there."""
    with stalled(attacker, _STALLED_ARGV, "/mnt/file", "file") as pid:
        until(lambda: "/mnt/file" in Path(f"/proc/{pid}/maps").read_text(), "its arguments there")
        done = sysfsd("attach", str(pid), "--id", "stalled", control=daemon.control)
        assert done.returncode == 0, done.stderr
        sampled = {"containers": 3, "vanished": 0}
        until(lambda: sampled.items() <= stats(daemon)["load_sampler"].items(), "its load")
        assert attacker.run("cat", "/proc/loadavg")
        done = sysfsd("detach", str(pid), control=daemon.control)
        assert done.returncode == 0, done.stderr


def test_a_file_system_over_proc_that_never_answers(daemon: Serving, attacker: Container) -> None:
    """Who wants something of that container waits, or is refused by the kernel; nobody else."""
    with stalled(attacker, _STALLED_PROC, "/proc", "directory"):
        done = sysfsd("attach", "--all", "--control", daemon.control)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "sysfsd: without all of their views: attacker"
