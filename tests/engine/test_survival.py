"""The daemon is killed again and again under Docker, with engines inside; nobody notices."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.engine.conftest import save
from tests.engine.throwaway import Daemon, Throwaway, serving
from tests.support.wait import until
from tests.support.workers import Worker, reader, stop, writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.conftest import Start
    from tests.engine.docker import Docker

SECONDS = float(os.environ.get("SYSFSD_SURVIVAL_SECONDS", "10"))
"""For how long; 60 on request."""

ENGINES = int(os.environ.get("SYSFSD_SURVIVAL_ENGINES", "2"))
"""System containers with an engine inside; 10 on request."""

FILES = """
proc/meminfo proc/stat proc/cpuinfo proc/uptime proc/loadavg proc/swaps proc/vmstat
sys/devices/system/cpu/online sys/devices/system/cpu/possible
""".split()


class Killed:
    """Daemons in one directory, one after the other."""

    def __init__(self, own: Throwaway) -> None:
        self._directory = own.other
        self._config = own.daemon.config.read_text()
        self.kills = 0

    def while_alive(self, work: Callable[[Daemon], None]) -> None:
        """Run one, do something, and kill it."""
        with serving(self._directory, config=self._config, left=True) as daemon:
            work(daemon)
            daemon.process.kill()
            daemon.process.wait()
        self.kills += 1

    def again_and_again(self, end: Callable[[], bool]) -> None:
        """Kill one after the other at random moments."""

        def linger(daemon: Daemon) -> None:
            with pytest.raises(subprocess.TimeoutExpired):
                daemon.process.wait(random.uniform(0, 1.5))

        while not end():
            self.while_alive(linger)


def test_killed_while_engines_run_inside(
    own: Throwaway, docker: Docker, start: Start, tmp_path: Path
) -> None:
    killed = Killed(own)
    names: list[str] = []
    workers: list[Worker] = []
    stack = ExitStack()

    def begin(daemon: Daemon) -> None:
        for _ in range(ENGINES):
            limits = ("--memory", "512m", "--cpus", "1", "--cpuset-cpus", "0")
            image = "sysfsd-dind:bookworm"
            name = start(*limits, image=image, command=(), runtime="sysfsd-other")
            inner = docker.inside(name)
            inner.wait_for_engine()
            inner("load", stdin=save(docker, "busybox:latest"))
            names.append(name)
        for pid in map(docker.pid, names):
            workers.append(stack.enter_context(reader(pid, [f"/{file}" for file in FILES])))
            workers.append(stack.enter_context(writer(pid)))

    with stack:
        killed.while_alive(begin)
        end = time.monotonic() + SECONDS
        killed.again_and_again(
            lambda: time.monotonic() > end or not all(worker.alive() for worker in workers)
        )
        daemon = stack.enter_context(serving(own.other, config=own.daemon.config.read_text()))
        done, longest = stop(workers)
        print(f"{killed.kills} kills, {done} reads and writes, the longest took {longest:.3f} s")
        (tmp_path / "in").write_text("in")
        for name in names:
            inner = docker.inside(name)
            assert json.loads(inner("info", "--format", "{{json .}}"))["MemTotal"] == 512 << 20
            assert inner("run", "--rm", "busybox", "echo", "hello") == "hello"
            # The engine's overlay and the container's are kept in step again.
            docker.shell(name, "mkdir -p /srv/deep && ls /srv/deep")
            docker("cp", str(tmp_path / "in"), f"{name}:/srv/deep/in")
            until(lambda name=name: docker.shell(name, "ls /srv/deep") == "in", "what was copied")  # type: ignore[misc]
        with daemon.client() as client:
            assert client.call("stats", {})["coherence"]["watched"] == len(names)
        docker("rm", "--force", "--volumes", *names)


def test_killed_while_containers_start_and_stop(own: Throwaway, docker: Docker) -> None:
    killed = Killed(own)
    killed.while_alive(lambda daemon: None)
    failed: list[str] = []
    started = 0

    def start_all() -> None:
        nonlocal started
        for number in range(12):
            memory = 64 + number
            options = ("--rm", "--runtime=sysfsd-other", f"--memory={memory}m")
            done = docker.attempt("run", *options, "busybox", "head", "-1", "/proc/meminfo")
            if done.returncode or done.stdout.split()[1] != str(memory << 10).encode():
                failed.append((done.stdout + done.stderr).decode(errors="replace"))
            started += 1

    starting = [threading.Thread(target=start_all) for _ in range(2)]
    for each in starting:
        each.start()
    killed.again_and_again(lambda: not any(each.is_alive() for each in starting))
    with serving(own.other, config=own.daemon.config.read_text()) as daemon:
        for each in starting:
            each.join()
        print(f"{killed.kills} kills, {started} containers, {len(failed)} did not start")
        assert failed == []
        with daemon.client() as client:
            until(lambda: client.call("stats", {})["ranges_in_use"] == 0, "ranges to be free")
            assert client.call("list", {})["containers"] == []
