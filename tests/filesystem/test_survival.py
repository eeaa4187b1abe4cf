"""No restart, crash or upgrade that a container notices; and what it gets when we stay away."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from sysfsd import app, state
from sysfsd.channel.device import mount_there
from sysfsd.handover import holder
from tests.support.attached import attach, mounted_in
from tests.support.containers import container
from tests.support.daemon import serving, sysfsd
from tests.support.wait import patient, until
from tests.support.workers import reader, stop, writer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.containers import Container
    from tests.support.daemon import Serving
    from tests.support.tidy import ExpectedLog

SECONDS = float(os.environ.get("SYSFSD_SURVIVAL_SECONDS", "8"))
"""For how long the daemon is killed again and again; 60 on request."""

CONTAINERS = int(os.environ.get("SYSFSD_SURVIVAL_CONTAINERS", "3"))

_SYS_PIDFD_GETFD = 438  # asm-generic/unistd.h

_SOURCES = Path(__file__).parent.parent.parent


def covered(box: Container) -> list[str]:
    """Paths in a container that files of ours cover."""
    return [point for point in mounted_in(box) if point.startswith(("/proc", "/sys"))]


@contextmanager
def boxes(count: int) -> Iterator[list[Container]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(container(memory=(64 + at) << 20, cpus=0.5, isolated=True))
            for at in range(count)
        ]


def test_killed_again_and_again(tmp_path: Path) -> None:
    """Readers of every file and writers of sysctls notice nothing; nor do those that attach."""
    ends = 0
    with boxes(CONTAINERS) as running, ExitStack() as stack:
        with serving(tmp_path) as daemon:
            for at, box in enumerate(running):
                attach(daemon, f"web{at}", box)
            files = [path for path in covered(running[0]) if readable(running[0], path)]
            assert len(files) > 100
            workers = [stack.enter_context(reader(box.pid, files)) for box in running]
            workers += [stack.enter_context(writer(box.pid)) for box in running]
            end = time.monotonic() + SECONDS
            pause = random.uniform(0.2, 1.5)
            kill_after(daemon, pause)
        while time.monotonic() < end and all(worker.alive() for worker in workers):
            with serving(tmp_path) as daemon:
                assert daemon.ids() == [f"web{at}" for at in range(len(running))]
                kill_after(daemon, random.uniform(0, 1.5))
                ends += 1
        last = stack.enter_context(serving(tmp_path))
        done, longest = stop(workers)
        for at, box in enumerate(running):
            assert box.run("head", "-1", "/proc/meminfo").split()[1] == f"{(64 + at) << 10}"
        assert last.call("stats")["life"]["resumed"]
        assert last.stop() == 0
    print(f"{ends + 1} kills, {done} reads and writes, the longest took {longest:.3f} s")
    assert ends > 0


def kill_after(daemon: Serving, seconds: float) -> None:
    """Kill a daemon at a random moment; a wait, and not for anything to happen."""
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(seconds)
    daemon.kill()


def readable(box: Container, path: str) -> bool:
    done = subprocess.run([*box.enter(), "cat", path], capture_output=True, check=False)
    return done.returncode == 0 and done.stdout.endswith(b"\n")


def test_a_request_that_was_being_answered_is_answered_by_the_next(tmp_path: Path) -> None:
    """The kernel sends again what the dead one had read."""
    with container(memory=64 << 20, isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            os.kill(daemon.process.pid, signal.SIGSTOP)
            reader = subprocess.Popen(
                [*box.enter(), "cat", "/proc/sys/vm/swappiness", "/proc/meminfo"],
                stdout=subprocess.PIPE,
                text=True,
            )
            until(lambda: "fuse" in wchan(box, reader.pid), "a caller that waits")
            daemon.kill()
        with serving(tmp_path) as daemon:
            out, _ = reader.communicate(timeout=patient(20))
            assert reader.returncode == 0
            assert out.splitlines()[1].split() == ["MemTotal:", str(64 << 10), "kB"]
            assert daemon.stop() == 0


def wchan(box: Container, pid: int) -> str:
    """What a process that was started with nsenter, or its child, waits for in the kernel."""
    found = ""
    for each in [pid, *(int(one) for one in children(pid))]:
        try:
            found += Path(f"/proc/{each}/wchan").read_text()
            found += Path(f"/proc/{each}/stack").read_text()
        except OSError:
            continue
    return found


def open_files(pid: int) -> list[str]:
    """What a process has open just now; it may close some meanwhile."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(path))
    return found


def children(pid: int) -> list[str]:
    try:
        first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [*first, *(one for each in first for one in children(int(each)))]


def test_clients_wait_for_a_daemon_that_starts_again(tmp_path: Path) -> None:
    with container(isolated=True) as box:
        with serving(tmp_path) as daemon:
            daemon.register("web", box.pid)
            daemon.kill()
        waiting = subprocess.Popen(
            [sys.executable, "-m", "sysfsd.cli", "attach", str(box.pid), "--id", "web"],
            env=os.environ | {"SYSFSD_CONTROL": daemon.control},
            cwd=_SOURCES,
        )
        with serving(tmp_path) as daemon:
            assert waiting.wait(patient(20)) == 0
            assert "/proc/uptime" in covered(box)
            assert daemon.stop() == 0


def test_handed_over_on_sighup(tmp_path: Path) -> None:
    with container(memory=64 << 20, isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            box.run("sh", "-c", "echo 77 >/proc/sys/vm/swappiness")
            assert daemon.stop(signal.SIGHUP) == 0
        assert daemon.mountpoint.name == "mount"
        with serving(tmp_path) as daemon:
            assert daemon.call("stats")["life"]["resumed"]
            assert box.run("cat", "/proc/sys/vm/swappiness") == "77\n"
            assert daemon.stop() == 0
        assert covered(box) == []


def test_a_stop_takes_the_views_and_a_start_gives_them_again(tmp_path: Path) -> None:
    with container(memory=64 << 20, isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            before = covered(box)
            assert daemon.stop() == 0
        assert covered(box) == []
        assert box.run("head", "-1", "/proc/meminfo").split()[1] != str(64 << 10)
        with serving(tmp_path) as daemon:
            until(lambda: sorted(covered(box)) == sorted(before), "its views")
            assert box.run("head", "-1", "/proc/meminfo").split()[1] == str(64 << 10)
            assert daemon.stop() == 0


def test_a_policy_outlives_the_daemon(tmp_path: Path) -> None:
    with container(cpus=1, isolated=True) as box:
        with serving(tmp_path) as daemon:
            done = sysfsd(
                *("attach", str(box.pid), "--id", "web", "--cpu-policy", "off"),
                control=daemon.control,
            )
            assert done.returncode == 0, done.stderr
            daemon.kill()
        with serving(tmp_path) as daemon:
            (found,) = daemon.call("list")["containers"]
            assert found["policy"]["cpu-policy"] == "off"
            assert daemon.stop() == 0


def test_a_daemon_that_stays_away(tmp_path: Path) -> None:
    """Containers get the kernel's files after a while, and what we have when we are back."""
    with container(memory=64 << 20, isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            before = covered(box)
            daemon.kill()
        # mountinfo is the kernel's own: looking there asks nobody.
        until(lambda: covered(box) == [], "the kernel's files", holder.PATIENCE_SECONDS + 20)
        assert box.run("head", "-1", "/proc/meminfo").split()[1] != str(64 << 10)
        until(lambda: mount_there(str(daemon.mountpoint)) is None, "the mount to be gone, too")
        with serving(tmp_path) as daemon:
            until(lambda: sorted(covered(box)) == sorted(before), "its views")
            assert daemon.stop() == 0


def test_a_daemon_that_is_killed_and_does_not_go(tmp_path: Path) -> None:
    """One that waits in the kernel has its lock and its connections; here, we have."""
    with container(memory=64 << 20, isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            keeping = daemon.holder()
            assert keeping is not None
            os.kill(daemon.process.pid, signal.SIGSTOP)
            assert daemon.process.wait(patient(holder.SILENCE_SECONDS + 20)) == -signal.SIGKILL
        with state.locked(str(daemon.state_dir)), connections_of(keeping):
            (daemon.state_dir / "lock").write_text(f"{daemon.process.pid}\n")
            command = [*box.enter(), "cat", "/proc/meminfo"]
            with waiting_for(command) as waiting:
                seconds = holder.PATIENCE_SECONDS + 20
                until(lambda: covered(box) == [], "the kernel's files", seconds)
                _, said = waiting.communicate(timeout=patient(20))
                assert b"abort" in said
        with serving(tmp_path) as daemon:
            until(lambda: "/proc/meminfo" in covered(box), "its views")
            assert daemon.stop() == 0


@contextmanager
def waiting_for(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command; whatever comes, nobody waits for its end but who asks for that."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def connections_of(process: psutil.Process) -> Iterator[None]:
    """Have open what a process has open of /dev/fuse."""
    libc, ours = ctypes.CDLL(None, use_errno=True), []
    pidfd = os.pidfd_open(process.pid)
    try:
        theirs = Path(f"/proc/{process.pid}/fd").iterdir()
        ours += [
            libc.syscall(_SYS_PIDFD_GETFD, pidfd, int(each.name), 0)
            for each in theirs
            if os.readlink(each) == "/dev/fuse"
        ]
        assert len(ours) > 1
        assert min(ours) >= 0
        yield
    finally:
        for fd in (pidfd, *ours):
            os.close(fd)


def test_the_one_that_keeps_our_connections_ends_first(
    tmp_path: Path, expected_log: ExpectedLog
) -> None:
    with container(memory=64 << 20, isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            former = daemon.holder()
            assert former is not None
            former.kill()

            def kept() -> bool:
                now = daemon.holder()
                if now is None or now.pid == former.pid:
                    return False
                names = open_files(now.pid)
                return names.count("/dev/fuse") >= 2

            until(kept, "another")
            expected_log.allow("keeps descriptors")
            until(lambda: "keeps descriptors" in daemon.log.read_text(), "a word about it")
            daemon.kill()
        with serving(tmp_path) as daemon:
            assert daemon.call("stats")["life"]["resumed"]
            assert box.run("head", "-1", "/proc/meminfo").split()[1] == str(64 << 10)
            assert daemon.stop() == 0


def test_whoever_else_talks_to_that_one_changes_nothing(
    tmp_path: Path, expected_log: ExpectedLog
) -> None:
    """It takes them for the next daemon, and then for one that is gone."""
    with container(memory=64 << 20, isolated=True) as box, serving(tmp_path) as daemon:
        attach(daemon, "web", box)
        former = daemon.holder()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stray:
            stray.connect(str(daemon.state_dir / "private/holder"))
            stray.send(b"5")
        expected_log.allow("keeps descriptors")
        until(lambda: "keeps descriptors" in daemon.log.read_text(), "a word about it")
        assert daemon.holder() == former
        daemon.kill()
        with serving(tmp_path) as successor:
            assert successor.call("stats")["life"]["resumed"]
            assert successor.stop() == 0


def test_a_daemon_that_starts_just_when_that_one_gives_up(tmp_path: Path) -> None:
    with container(memory=64 << 20, isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            former = daemon.holder()
            assert former is not None
            daemon.kill()
        giving_up = holder.PATIENCE_SECONDS + 20
        until(former.children, "its end to begin", giving_up)
        with serving(tmp_path) as daemon:
            until(lambda: "/proc/meminfo" in covered(box), "its views")
            assert box.run("head", "-1", "/proc/meminfo").split()[1] == str(64 << 10)
            assert daemon.stop() == 0


def changed(directory: Path, file: str, function: str, statement: str) -> Path:
    """Make a copy of ours in which a function begins with a statement."""
    directory.mkdir()
    shutil.copytree(_SOURCES / "sysfsd", directory / "sysfsd")
    path = directory / "sysfsd" / file
    lines = path.read_text().splitlines(keepends=True)
    at = next(at for at, line in enumerate(lines) if f"def {function}(" in line)
    body = next(number for number in range(at, len(lines)) if lines[number].endswith('."""\n'))
    lines.insert(body + 1, f"        {statement}\n")
    path.write_text("".join(lines))
    return directory


def broken(directory: Path, handler: str, file: str) -> Path:
    """Make a copy of ours in which a handler never ends."""
    forever = "import trio; await trio.sleep_forever()"
    return changed(directory, f"filesystem/{file}", handler, forever)


def stood_in(daemon: Serving) -> int:
    return int(daemon.call("stats")["channel"]["stood_in"])


def test_a_file_of_the_kernels_that_keeps_us_waiting(
    tmp_path: Path, expected_log: ExpectedLog
) -> None:
    """Nobody waits for that: containers have what was last read, and it is no hang yet."""
    directory, pipe = tmp_path / "daemon", tmp_path / "pipe"
    waits = f"import os; os.path.exists({str(pipe)!r}) and open({str(pipe)!r}).close()"
    sources = changed(tmp_path / "changed", "facts/collector.py", "track", waits)
    directory.mkdir()
    expected_log.allow("takes too long")
    read = "cat /proc/meminfo /proc/cpuinfo && stat -c '%A %U %s %y %i %h %b %o' /proc/cpuinfo"
    with ExitStack() as stack:
        # Many that look, so that requests are at work, wait for their turn and are not read yet.
        running = [
            stack.enter_context(container(memory=(64 + at) << 20, cpus=1, isolated=True))
            for at in range(3)
        ]
        daemon = stack.enter_context(serving(directory, sources=sources))
        for at, box in enumerate(running):
            attach(daemon, f"web{at}", box)
            box.run("sh", "-c", read)
        before = [box.run("sh", "-c", read) for box in running]
        os.mkfifo(pipe)
        try:
            looking = [
                subprocess.Popen([*box.enter(), "sh", "-c", read], stdout=subprocess.PIPE)
                for box in running
                for _ in range(8)
            ]
            for at, process in enumerate(looking):
                with process:
                    out, _ = process.communicate(timeout=patient(20))
                found = out.decode()
                total = f"MemTotal: {(64 + at // 8) << 10} kB"
                assert " ".join(found.splitlines()[0].split()) == total
                assert found.splitlines()[-1] == before[at // 8].splitlines()[-1]
        finally:
            pipe.rename(tmp_path / "other")
            os.close(os.open(tmp_path / "other", os.O_WRONLY | os.O_NONBLOCK))
        assert stood_in(daemon) > 0
        # What was last read is no more once there is something new.
        box = running[0]
        first = box.run("cat", "/proc/uptime")
        until(lambda: box.run("cat", "/proc/uptime") != first, "a refresh")
        assert daemon.stop() == 0


def test_one_that_is_killed_while_it_asks_itself_goes(tmp_path: Path) -> None:
    """A request of its own that is being answered would keep it, and its lock, for ever."""
    sources, directory = broken(tmp_path / "broken", "statfs", "operations.py"), tmp_path / "daemon"
    directory.mkdir()
    with container(memory=64 << 20, isolated=True) as box:
        with serving(directory, sources=sources) as daemon:
            daemon.register("web", box.pid)
            until(lambda: "statfs" in daemon.call("stats")["channel"]["requests"], "a look")
            daemon.process.kill()
            assert daemon.process.wait(patient(10)) == -signal.SIGKILL
        with serving(directory) as daemon:
            assert daemon.call("stats")["life"]["resumed"]
            assert daemon.stop() == 0


def test_one_that_does_not_answer_others_is_killed(tmp_path: Path) -> None:
    sources, directory = broken(tmp_path / "broken", "readlink", "pinned.py"), tmp_path / "daemon"
    directory.mkdir()
    link = "/sys/devices/system/node/node0/cpu0"
    with (
        container(memory=64 << 20, isolated=True) as box,
        serving(directory, sources=sources) as daemon,
    ):
        attach(daemon, "web", box)
        command = [*box.enter(), "readlink", link]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as waiting:
            seconds = app.ANSWER_SECONDS + holder.SILENCE_SECONDS + 20
            assert daemon.process.wait(patient(seconds)) == -signal.SIGKILL
            with serving(directory) as successor:
                out, _ = waiting.communicate(timeout=patient(20))
                assert out.strip()
                assert successor.stop() == 0


def test_daemons_that_come_and_fail_are_no_daemon(tmp_path: Path) -> None:
    """Nobody waits for the next one for ever, however often there is one."""
    with container(memory=64 << 20, isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            daemon.kill()
        options = [
            *("--mountpoint", str(daemon.mountpoint), "--state-dir", str(daemon.state_dir)),
            # A file: it gets as far as its holder, and no farther.
            *("--control", str(daemon.state_dir / "raised.txt")),
        ]
        (daemon.state_dir / "raised.txt").touch()

        def given_up() -> bool:
            done = sysfsd("serve", *options)
            assert done.returncode == 1
            assert "is no socket" in done.stderr or "another sysfsd" in done.stderr, done.stderr
            return covered(box) == []

        until(given_up, "the kernel's files", holder.PATIENCE_SECONDS + 20)
        assert box.run("head", "-1", "/proc/meminfo").split()[1] != str(64 << 10)
        until(lambda: mount_there(str(daemon.mountpoint)) is None, "the mount to be gone, too")
        for child in psutil.process_iter():
            with suppress(psutil.Error):
                if child.cmdline()[-2:] == ["holder", str(daemon.state_dir)]:
                    child.kill()


def test_a_daemon_that_hangs_is_killed(tmp_path: Path) -> None:
    with container(memory=64 << 20, isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            os.kill(daemon.process.pid, signal.SIGSTOP)
            assert daemon.process.wait(patient(holder.SILENCE_SECONDS + 20)) == -signal.SIGKILL
            assert "hangs" in daemon.log.read_text()
        with serving(tmp_path) as daemon:
            assert daemon.call("stats")["life"]["resumed"]
            assert daemon.stop() == 0


@pytest.mark.parametrize("which", ["mount", "state/private/exact"])
def test_one_of_the_mounts_is_gone(tmp_path: Path, which: str) -> None:
    """Whoever unmounted it: the other goes on, and containers get what they lack."""
    with container(memory=64 << 20, isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            box.run("sh", "-c", "echo 77 >/proc/sys/vm/swappiness")
            before = covered(box)
            daemon.kill()
        subprocess.run(["umount", "--lazy", "--no-canonicalize", tmp_path / which], check=True)
        with serving(tmp_path) as daemon:
            until(lambda: readable(box, "/proc/meminfo"), "its views")
            until(lambda: readable(box, "/proc/sys/vm/swappiness"), "its sysctls")
            assert box.run("head", "-1", "/proc/meminfo").split()[1] == str(64 << 10)
            assert box.run("cat", "/proc/sys/vm/swappiness") == "77\n"
            until(lambda: sorted(covered(box)) == sorted(before), "no more and no less")
            assert daemon.stop() == 0


_GOES_INSIDE = """
import os, sys
from sysfsd.kernel import syscalls
syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
for answer in ("made", "inside"):
    print(answer, flush=True)
    sys.stdin.readline()
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.unshare(syscalls.CLONE_NEWUSER)
"""


def test_a_container_whose_init_goes_into_a_user_namespace_inside(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _GOES_INSIDE],
        cwd=_SOURCES,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "made\n"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 1500000000 65536\n")
        with serving(tmp_path) as daemon:
            before = daemon.register("web", process.pid)
            daemon.kill()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "inside\n"
        with serving(tmp_path) as daemon:
            assert daemon.ids() == ["web"]
            assert daemon.register("web", process.pid)["directory"] == before["directory"]
            assert (daemon.containers / "web/proc/uptime").read_text()
            assert daemon.stop() == 0
        process.kill()


def test_a_number_of_ours_that_became_anothers_is_left_alone(tmp_path: Path) -> None:
    """The kernel gives the number of a file system that is gone to the next that is mounted."""
    with container(isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            daemon.kill()
        mount = ["nsenter", f"--mount=/proc/{box.pid}/ns/mnt", "mount", "-t", "tmpfs"]
        subprocess.run([*mount, "its", "/mnt"], check=True)
        (line,) = [
            line
            for line in Path(f"/proc/{box.pid}/mountinfo").read_text().splitlines()
            if " - tmpfs its " in line
        ]
        note = daemon.state_dir / "mounts" / "exact.json"
        noted = json.loads(note.read_text())
        note.write_text(json.dumps(noted | {"device": line.split(" ")[2]}))
        assert sysfsd("detach", "--all", "--offline", "--state-dir", str(daemon.state_dir))
        assert " - tmpfs its " in Path(f"/proc/{box.pid}/mountinfo").read_text()
        assert "/proc/meminfo" not in covered(box)
        # Which also leaves what it cannot know to be ours, for whoever looks after this test.
        subprocess.run(["umount", "--lazy", noted["point"]], check=True)


def test_a_container_that_went_meanwhile(tmp_path: Path) -> None:
    with container(isolated=True) as box, serving(tmp_path) as daemon:
        attach(daemon, "web", box)
        daemon.kill()
    with serving(tmp_path) as daemon:
        assert daemon.ids() == []
        assert os.listdir(daemon.state_dir / "records") == ["last.json"]
        assert daemon.stop() == 0


def test_an_upgrade_whose_tree_grew(tmp_path: Path) -> None:
    """An older version lacks views in the middle of the table: numbers of files must not move."""
    old = tmp_path / "old"
    shutil.copytree(_SOURCES / "sysfsd", old / "sysfsd")
    table = old / "sysfsd/views/__init__.py"
    text = table.read_text()
    lines = text.splitlines(keepends=True)
    lacking = "".join(line for line in lines if not line.lstrip().startswith('View("proc/stat",'))
    assert lacking != text
    table.write_text(lacking)
    directory = tmp_path / "daemon"
    directory.mkdir()
    with container(memory=64 << 20, cpus=0.5, isolated=True) as box:
        with serving(directory, sources=old) as daemon:
            attach(daemon, "web", box)
            before = covered(box)
            assert "/proc/stat" not in before
            held = box.started("sh", "-c", "exec 4</proc/uptime; echo; read go; cat <&4")
            assert held.stdout is not None
            assert held.stdout.readline() == "\n"
            daemon.kill()
        with serving(directory) as daemon:
            until(lambda: "/proc/stat" in covered(box), "the new file")
            assert set(before) < set(covered(box))
            out, _ = held.communicate("go\n", timeout=patient(20))
            assert len(out.split()) == 2
            assert box.run("head", "-1", "/proc/meminfo").split()[1] == str(64 << 10)
            assert box.run("head", "-1", "/proc/swaps").startswith("Filename")
            assert daemon.stop() == 0


def test_held_files_of_sysctls_go_on(tmp_path: Path) -> None:
    script = "exec 4<>/proc/sys/vm/swappiness; echo; read go; echo 33 >&4; cat /proc/self/fd/4"
    with container(isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            held = box.started("sh", "-c", script)
            assert held.stdout is not None
            assert held.stdout.readline() == "\n"
            daemon.kill()
        with serving(tmp_path) as daemon:
            out, _ = held.communicate("go\n", timeout=patient(20))
            assert out == "33\n"
            assert box.run("cat", "/proc/sys/vm/swappiness") == "33\n"
            assert daemon.stop() == 0


def test_registering_at_any_moment(tmp_path: Path) -> None:
    """Killed while containers come: each is there in the end, under a number of its own."""
    with boxes(4) as running, ExitStack() as stack:
        with serving(tmp_path) as daemon:
            daemon.kill()
        failed: list[str] = []

        def attach_all() -> None:
            for turn in range(3):
                for at, box in enumerate(running):
                    done = sysfsd(
                        *("attach", str(box.pid), "--id", f"web{at}"), control=daemon.control
                    )
                    if done.returncode:
                        failed.append(f"{turn}: {done.stderr}")

        attaching = threading.Thread(target=attach_all)
        attaching.start()
        while attaching.is_alive():
            with serving(tmp_path) as daemon:
                attaching.join(random.uniform(0, 1))
                daemon.kill()
        attaching.join()
        daemon = stack.enter_context(serving(tmp_path))
        assert failed == []
        assert sorted(daemon.ids()) == [f"web{at}" for at in range(len(running))]
        serials = [
            json.loads(path.read_text())["serial"]
            for path in (daemon.state_dir / "records").iterdir()
            if path.stem != "last"
        ]
        assert len(set(serials)) == len(running)
        for at, box in enumerate(running):
            assert box.run("head", "-1", "/proc/meminfo").split()[1] == f"{(64 + at) << 10}"
        assert daemon.stop() == 0


def test_a_successor_that_does_not_know_the_numbers_begins_anew(tmp_path: Path) -> None:
    """Whatever became of the note: a container never reads one file in place of another."""
    with container(memory=64 << 20, isolated=True) as box:
        with serving(tmp_path) as daemon:
            attach(daemon, "web", box)
            daemon.kill()
        (tmp_path / "state/notes/tree.json").write_text("{")
        with serving(tmp_path) as daemon:
            assert not daemon.call("stats")["life"]["resumed"]

            def total() -> str:
                done = subprocess.run(
                    [*box.enter(), "head", "-1", "/proc/meminfo"], capture_output=True, check=False
                )
                return done.stdout.decode()

            until(lambda: total().split()[1:2] == [str(64 << 10)], "its views")
            assert daemon.stop() == 0
