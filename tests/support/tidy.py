"""After each test: nothing left behind, and no daemon complained that was not expected to.

``watched.watched`` makes a running daemon known; ``expected_log`` is for tests that make one
complain.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.wait import until
from tests.support.watched import daemons

if TYPE_CHECKING:
    from collections.abc import Iterator


class ExpectedLog:
    """What daemons may complain about in this test."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def allow(self, text: str) -> None:
        """Accept complaints that contain a text."""
        self._texts.append(text)

    def covers(self, line: str) -> bool:
        """Whether a line was expected."""
        return any(text in line for text in self._texts)


@pytest.fixture
def expected_log() -> ExpectedLog:
    """To be told what this test makes daemons complain about."""
    return ExpectedLog()


@dataclass(frozen=True)
class Belongings:
    """What may be left behind."""

    mounts: Counter[str]
    """Below our directories: other tests and engines may run on this machine."""
    fds: frozenset[tuple[str, str]]
    processes: frozenset[int]
    daemons: dict[int, int]
    """How many descriptors each daemon has open."""

    @classmethod
    def now(cls, directories: tuple[str, ...]) -> Belongings:
        table = Path("/proc/self/mountinfo").read_text().splitlines()
        points = (line.split(" ")[4] for line in table)
        return cls(
            Counter(point for point in points if point.startswith(directories)),
            frozenset(_open_files()),
            frozenset(_children()),
            {pid: count_fds(pid) for pid in daemons},
        )

    def new_since(self, before: Belongings) -> list[str]:
        """What is here that was not."""
        return [
            *(f"mount {point}" for point in self.mounts - before.mounts),
            *(f"fd {number} -> {target}" for number, target in self.fds - before.fds),
            *(f"process {_describe(pid)}" for pid in self.processes - before.processes),
            *(
                f"daemon {pid} has {count} descriptors, {before.daemons[pid]} before"
                for pid, count in self.daemons.items()
                if count > before.daemons.get(pid, count)
            ),
        ]


def count_fds(pid: int) -> int:
    """How many descriptors a process has open."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        return 0


def complaints(text: str) -> list[str]:
    """Lines of a daemon's log at warning or above, and whatever is not a line of the log."""
    found = []
    for line in text.splitlines():
        try:
            level = json.loads(line)["level"]
        except (ValueError, KeyError, TypeError):
            level = "error"
        if level not in {"debug", "info"}:
            found.append(line)
    return found


@pytest.fixture(autouse=True)
def _tidy(expected_log: ExpectedLog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    logs = {log: log.stat().st_size for log in daemons.values()}
    ours = (str(tmp_path_factory.getbasetemp()), *(str(log.parent) for log in logs))
    before = Belongings.now(ours)
    yield
    left: list[str] = []

    def clean() -> bool:
        left[:] = Belongings.now(ours).new_since(before)
        return not left

    try:
        until(clean, "the test's things to be gone")
    except AssertionError:
        # Said, and put right: pytest could not remove a directory with a dead mount in it, and
        # would fail the next run for that.
        for point in (Belongings.now(ours).mounts - before.mounts).elements():
            subprocess.run(["umount", "--lazy", point], check=False)
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)
    unexpected = [
        line
        for log, size in logs.items()
        if log.exists()
        for line in complaints(log.read_bytes()[size:].decode())
        if not expected_log.covers(line)
    ]
    if unexpected:
        pytest.fail("the daemon complained:\n" + "\n".join(unexpected), pytrace=False)


def _open_files() -> Iterator[tuple[str, str]]:
    for number in os.listdir("/proc/self/fd"):
        try:
            yield number, os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the one that lists them
            continue


def _children() -> Iterator[int]:
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                yield child.pid
        except psutil.NoSuchProcess:
            continue


def _describe(pid: int) -> str:
    try:
        return f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}"
    except FileNotFoundError:
        return str(pid)
