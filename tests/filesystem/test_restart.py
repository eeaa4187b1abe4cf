"""A container's counters over restarts of the daemon, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.attached import attach
from tests.support.containers import container
from tests.support.daemon import serving, sysfsd
from tests.support.wait import patient, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.containers import Container
    from tests.support.daemon import Serving
    from tests.support.tidy import ExpectedLog

PERIOD = 100_000
QUOTAS = (0.5, 2, 1, 2, 0.5, 1)
ONLINE = sorted(os.sched_getaffinity(0))
CPUSETS = (ONLINE[:2], ONLINE[:2], ONLINE[-1:], ONLINE[:1], ONLINE[:2], ONLINE[:2])


class Counters:
    """The largest of each counter that was ever read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._largest: dict[str, float] = {}
        self._lock = threading.Lock()
        self.backwards: list[str] = []
        self.reads = 0
        self._readers: list[threading.Thread] = []

    def read(self) -> dict[str, float]:
        """Read all files once, compare, and return what they say now.

        With what any read had ended with before this one began: two at a time, one of which may
        have waited for a daemon, are in no order.
        """
        with self._lock:
            largest = dict(self._largest)
        now: dict[str, float] = {}
        for line in (self._directory / "proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") or name == "processes":
                now |= {f"{name}.{index}": float(field) for index, field in enumerate(fields)}
        uptime = (self._directory / "proc/uptime").read_text().split()
        now |= {"uptime": float(uptime[0]), "idle": float(uptime[1])}
        now["last pid"] = float((self._directory / "proc/loadavg").read_text().split()[4])
        with self._lock:
            for name, value in now.items():
                if value < largest.get(name, 0):
                    self.backwards.append(f"{name}: {value} after {largest[name]}")
                self._largest[name] = max(value, self._largest.get(name, 0))
            self.reads += 1
        return now

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read all the time meanwhile, up to the moment the daemon goes, and over it."""
        first, stop = self.reads, threading.Event()

        def loop() -> None:
            try:
                while not stop.is_set():
                    self.read()
            except OSError:  # unmounted
                return

        reader = threading.Thread(target=loop)
        reader.start()
        until(lambda: self.reads > first + 20 or not reader.is_alive(), "some reads")
        yield
        stop.set()
        # What it reads just now may be for the next daemon to answer.
        self._readers.append(reader)

    def finish(self) -> None:
        """Wait for the last of those reads."""
        while self._readers:
            self._readers.pop().join(patient(20))


@contextmanager
def busy(box: Container) -> Iterator[None]:
    """Use all that a container's quota allows."""
    spin = subprocess.Popen(["sh", "-c", "read go; while :; do :; done"], stdin=subprocess.PIPE)
    try:
        for cgroup in box.cgroups:
            (cgroup / "cgroup.procs").write_text(str(spin.pid))
        assert spin.stdin is not None
        spin.stdin.write(b"go\n")
        spin.stdin.close()
        yield
    finally:
        spin.kill()
        spin.wait()


def set_quota(box: Container, cpus: float) -> None:
    v2 = any((cgroup / "cpu.max").exists() for cgroup in box.cgroups)
    quota = f"{int(cpus * PERIOD)}"
    box.set("cpu.max" if v2 else "cpu.cfs_quota_us", f"{quota} {PERIOD}" if v2 else quota)


def end(daemon: Serving, number: int) -> None:
    daemon.process.send_signal(number)
    assert daemon.process.wait(60) in {0, -number}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_counter_runs_backwards(tmp_path: Path, number: int) -> None:
    counters = Counters(tmp_path / "mount/containers/web")
    first = ",".join(str(cpu) for cpu in CPUSETS[0])
    with container(memory=96 << 20, cpus=0.5, cpuset=first) as box, busy(box):
        for cpus, cpuset in zip(QUOTAS, CPUSETS, strict=True):
            with serving(tmp_path) as daemon:
                daemon.register("web", box.pid)
                set_quota(box, cpus)
                box.set("cpuset.cpus", ",".join(str(cpu) for cpu in cpuset))
                if not counters.reads:
                    # The newest process, seen once and never again.
                    with box.background("sleep", "100"):
                        until(lambda: counters.read()["last pid"] > 1, "a sample of it")
                with counters.reading():
                    end(daemon, number)
        with serving(tmp_path) as daemon:
            daemon.register("web", box.pid)
            counters.finish()
            # A CPU that it always saw has counted for as long as the container runs. Two files may
            # be of two refreshes, up to a second apart; in those of one, user, system and idle
            # each lack less than the tick that they are cut to.
            until(lambda: -2 <= _ahead_of_uptime(counters.read()) <= 0, "both of one refresh")
            last = counters.read()
    assert not counters.backwards
    assert counters.reads > 20 * len(QUOTAS)
    assert last["last pid"] > 1
    assert last["cpu.3"] > last["cpu0.3"]


def _ahead_of_uptime(counters: dict[str, float]) -> int:
    """Return by how many ticks a CPU's counters are more than the uptime."""
    busy_and_idle = sum(counters[f"cpu0.{index}"] for index in range(10))
    return round(busy_and_idle - 100 * counters["uptime"])


def test_what_was_used_meanwhile_is_counted(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "mount/containers/web")
    with container(memory=96 << 20, cpus=1) as box:
        used = CpuTime(box)
        with serving(tmp_path) as daemon:
            daemon.register("web", box.pid)
            before = counters.read()
            end(daemon, signal.SIGKILL)
        meanwhile = CpuTime(box)
        with busy(box):
            until(lambda: meanwhile.seconds() > 0.3, "some work")
        with serving(tmp_path) as daemon:
            daemon.register("web", box.pid)
            after = counters.read()
        work = sum(after[name] - before[name] for name in ("cpu.0", "cpu.2")) / 100
        assert 0.25 < work <= used.seconds() + 0.05


class CpuTime:
    """What a container's cgroup has used since."""

    def __init__(self, box: Container) -> None:
        self._box = box
        self._start = self._total()

    def _total(self) -> float:
        for cgroup in self._box.cgroups:
            if (cgroup / "cpuacct.usage").exists():
                return int((cgroup / "cpuacct.usage").read_text()) / 1e9
        (stat,) = {cgroup / "cpu.stat" for cgroup in self._box.cgroups}
        return int(stat.read_text().split()[1]) / 1e6

    def seconds(self) -> float:
        return self._total() - self._start


def test_detached_and_attached_again(own_daemon: Serving) -> None:
    counters = Counters(own_daemon.containers / "web")
    with container(cpus=0.5) as box, busy(box):
        for _ in range(3):
            attach(own_daemon, "web", box)
            for _ in range(20):
                counters.read()
            done = sysfsd("detach", str(box.pid), control=own_daemon.control)
            assert done.returncode == 0, done.stderr
    assert not counters.backwards
    clocks = own_daemon.state_dir / "clocks"
    with container() as other:
        own_daemon.register("other", other.pid)
    until(lambda: not os.listdir(clocks), "no file of containers that are gone")
    assert clocks.stat().st_mode & 0o777 == 0o700


def test_a_damaged_file_is_said_and_begun_anew(tmp_path: Path, expected_log: ExpectedLog) -> None:
    with container(cpus=0.5) as box:
        with serving(tmp_path) as daemon:
            daemon.register("web", box.pid)
            assert (daemon.containers / "web/proc/stat").read_text()
            (path,) = (daemon.state_dir / "clocks").iterdir()
            end(daemon, signal.SIGKILL)
        path.write_bytes(os.urandom(1 << 16))
        with serving(tmp_path) as daemon:
            daemon.register("web", box.pid)
            assert (daemon.containers / "web/proc/stat").read_text()
            warning = "counters are not kept over a restart"
            assert [each["event"] for each in daemon.events()].count(warning) == 1
            expected_log.allow(warning)
            assert daemon.stop() == 0
