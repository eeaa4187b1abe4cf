"""What the tests do to /etc/subuid and /etc/subgid."""

from __future__ import annotations

import fcntl
import os
from threading import Event, Thread
from typing import TYPE_CHECKING

from tests.engine.throwaway import IDS, subordinate_ids
from tests.support.wait import until

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "\n# people\nbob:100000:65536\nann:2000000000:10\nstrange:line"
"""The last line has no end."""


def test_lines_of_any_shape(tmp_path: Path) -> None:
    subuid, subgid = tmp_path / "subuid", tmp_path / "subgid"
    subuid.write_text(TEXT)
    with subordinate_ids("us", containers=2, directory=tmp_path):
        line = f"us:2000000010:{2 * IDS}"
        assert subuid.read_text() == f"{TEXT}\n{line}\n"
        assert subgid.read_text() == f"{line}\n"
        # Comments are no ranges, and another's ids begin where these end.
        with subordinate_ids("them", containers=1, directory=tmp_path):
            assert f"them:{2000000010 + 2 * IDS}:{IDS}" in subgid.read_text()
    assert subuid.read_text() == f"{TEXT}\n"
    assert subgid.read_text() == ""


def test_one_after_the_other(tmp_path: Path) -> None:
    subuid = tmp_path / "subuid"
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    there, done = Event(), Event()

    def run() -> None:
        with subordinate_ids("us", containers=1, directory=tmp_path):
            there.set()
            done.wait()

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        until(lambda: there.is_set() or _somebody_waits(lock), "the other run")
        assert not subuid.exists()
    finally:
        os.close(lock)
        done.set()
        thread.join()
    assert there.is_set()
    assert subuid.read_text() == ""


def _somebody_waits(lock: int) -> bool:
    """Whether a lock has a waiter (proc_locks(5))."""
    suffix = f":{os.fstat(lock).st_ino}"
    with open("/proc/locks", encoding="ascii") as file:
        fields = [line.split() for line in file]
    return any(each[1] == "->" and each[6].endswith(suffix) for each in fields)
