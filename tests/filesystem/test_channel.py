"""The channel under load and under callers that go away."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from sysfsd.channel import device, packets
from sysfsd.channel.relay import MAX_IN_FLIGHT
from tests.support.daemon import started
from tests.support.wait import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Serving

_READER = """
import os, sys
while True:
    for path in sys.argv[1:]:
        fd = os.open(path, os.O_RDONLY)
        assert os.read(fd, 1 << 20)
        os.close(fd)
"""


def test_no_reply_finds_the_socket_full() -> None:
    """libfuse drops what it cannot send at once, and a caller would hang."""
    reply = bytes(16 + packets.MAX_WRITE)
    with (
        device.socket_pair(MAX_IN_FLIGHT) as (ours, number),
        socket.socket(fileno=number) as theirs,
    ):
        for _ in range(MAX_IN_FLIGHT):
            assert theirs.send(reply) == len(reply)
        assert len(ours.recv(1 << 20)) == len(reply)


def readers(count: int, *paths: Path) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-I", "-S", "-c", _READER, *map(str, paths)]
    return [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(count)]


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for each in processes:
        each.kill()
    for each in processes:
        each.wait()


def test_callers_that_are_killed(daemon: Serving, web: Path) -> None:
    paths = [web / "proc/stat", web / "proc/uptime", web / "sys/devices/system/cpu/online"]
    running = readers(8, *paths)
    try:
        before = daemon.call("stats")["channel"]["requests"]["getattr"]["count"]
        for _ in range(40):
            victim = random.randrange(len(running))
            end([running.pop(victim)])
            running += readers(1, *paths)
        until(
            lambda: daemon.call("stats")["channel"]["requests"]["getattr"]["count"] > before,
            "reads",
        )
    finally:
        end(running)
    until(lambda: daemon.call("stats")["channel"]["in_flight"] == 0, "an end of all requests")
    assert (web / "proc/uptime").read_text()


def test_more_callers_than_may_be_in_flight(daemon: Serving, tmp_path: Path) -> None:
    """``sysfsd mount`` answers each read itself: all wait their turn, and all get it."""
    directory, log = tmp_path / "views", tmp_path / "log"
    directory.mkdir()
    command = "cat $0/proc/stat $0/proc/cpuinfo $0/proc/stat $0/proc/cpuinfo"
    with started(["mount", str(directory), "--control", daemon.control], log):
        until(directory.is_mount, "the mount")
        running = [
            subprocess.Popen(["sh", "-c", command, str(directory)], stdout=subprocess.DEVNULL)
            for _ in range(MAX_IN_FLIGHT + 16)
        ]
        assert [each.wait(60) for each in running] == [0] * len(running)
    assert os.listdir(directory) == []
