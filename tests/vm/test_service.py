"""systemd and the units that we come with: restarts that nobody notices, and staying away."""

from __future__ import annotations

import json
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.wait import until
from tests.vm.conftest import command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.docker import Docker
    from tests.vm.box import Box
    from tests.vm.conftest import Start

UNITS = ("sysfsd.socket", "sysfsd.service")
MEMORY = ("--memory=100m", "--memory-swap=100m")
TOTAL = 100 << 10


def host_total() -> int:
    return int(command("awk", "/^MemTotal/ { print $2 }", "/proc/meminfo"))


def shown(unit: str, name: str) -> str:
    return command("systemctl", "show", f"--property={name}", "--value", unit)


def main_pid() -> str:
    return shown("sysfsd.service", "MainPID")


def serves_anew(pid: str) -> bool:
    """Whether another process than that is up."""
    state = shown("sysfsd.service", "ActiveState")
    return state == "active" and main_pid() not in {pid, "0"}


def life() -> dict[str, object]:
    found: dict[str, object] = json.loads(command("sysfsd", "stats", "--json"))["life"]
    return found


@contextmanager
def read_meanwhile(box: Box) -> Iterator[None]:
    """Read in a container all the time; each time it must be the container's own."""
    wrong: list[object] = []
    reads = 0
    stop = threading.Event()

    def read() -> None:
        nonlocal reads
        while not stop.is_set():
            try:
                total = box.meminfo()["MemTotal"]
            except (OSError, LookupError, AssertionError, subprocess.SubprocessError) as error:
                wrong.append(error)
                return
            if total != TOTAL:
                wrong.append(total)
            reads += 1

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until(lambda: reads > 0 or wrong, "a first read")
        before = reads
        yield
        until(lambda: reads > before or wrong, "a read afterwards")
    finally:
        stop.set()
        reader.join()
    assert wrong == []


def test_a_restart_is_not_noticed(docker: Docker, start: Start) -> None:
    box = start(*MEMORY)
    pid = main_pid()
    with read_meanwhile(box):
        command("systemctl", "restart", "sysfsd.service")
    assert main_pid() != pid
    assert life()["resumed"]
    assert start(*MEMORY).meminfo()["MemTotal"] == TOTAL


def test_a_crash_is_not_noticed(docker: Docker, start: Start) -> None:
    box = start(*MEMORY)
    pid = main_pid()
    with read_meanwhile(box):
        command("kill", "-KILL", pid)
        until(lambda: serves_anew(pid), "systemd to start it again")
    assert life()["resumed"]
    # Whoever starts a container in the meantime waits at the socket.
    command("kill", "-KILL", main_pid())
    assert start(*MEMORY).meminfo()["MemTotal"] == TOTAL


def test_a_hang_is_a_crash(docker: Docker, start: Start) -> None:
    box = start(*MEMORY)
    pid = main_pid()
    command("kill", "-STOP", pid)
    until(lambda: serves_anew(pid), "the watchdog")
    assert box.meminfo()["MemTotal"] == TOTAL
    assert life()["resumed"]


def test_the_service_goes_and_comes_back(docker: Docker, start: Start) -> None:
    box = start(*MEMORY)
    assert box.meminfo()["MemTotal"] == TOTAL
    command("systemctl", "stop", *UNITS)
    try:
        # Nothing hangs and nothing is ENOTCONN: the kernel's own file is back.
        assert box.meminfo()["MemTotal"] == host_total()
        assert not Path("/run/sysfsd/control.sock").exists()
        assert not Path("/var/lib/sysfsd").is_mount()
        refused = docker.refused("run", "--rm", "--runtime=sysfsd", "busybox", "true")
        assert "sysfsd" in refused
    finally:
        command("systemctl", "start", *UNITS)
    until(lambda: box.meminfo()["MemTotal"] == TOTAL, "its views")
    assert start(*MEMORY).meminfo()["MemTotal"] == TOTAL


def test_a_container_starts_the_service(docker: Docker, start: Start) -> None:
    command("systemctl", "stop", "sysfsd.service")
    assert shown("sysfsd.service", "ActiveState") == "inactive"
    assert start(*MEMORY).meminfo()["MemTotal"] == TOTAL
    assert shown("sysfsd.service", "ActiveState") == "active"


def test_failing_again_and_again(docker: Docker, start: Start) -> None:
    """Containers get the kernel's files when systemd gives up, and ours when we are mended."""
    box = start(*MEMORY)
    broken = Path("/run/systemd/system/sysfsd.service.d/broken.conf")
    broken.parent.mkdir(parents=True)
    broken.write_text("[Service]\nExecStart=\nExecStart=/bin/false\n")
    try:
        command("systemctl", "daemon-reload")
        command("kill", "-KILL", main_pid())
        until(lambda: shown("sysfsd.service", "ActiveState") == "failed", "systemd to give up")
        until(
            lambda: "/proc/meminfo" not in Path(f"/proc/{box.pid}/mountinfo").read_text(),
            "the kernel's own file",
            60,
        )
        assert box.meminfo()["MemTotal"] == host_total()
    finally:
        broken.unlink()
        broken.parent.rmdir()
        command("systemctl", "daemon-reload")
        command("systemctl", "reset-failed", *UNITS)
        command("systemctl", "start", *UNITS)
    until(lambda: box.meminfo()["MemTotal"] == TOTAL, "its views")
