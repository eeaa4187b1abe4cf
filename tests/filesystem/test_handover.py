"""The holder, as a process: what it keeps, for whom, and until when."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from sysfsd import state
from sysfsd.handover import holder
from sysfsd.handover.store import HolderStore, SystemdStore
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def holders(directory: Path) -> list[psutil.Process]:
    """The holder of a directory, which is a child of ours."""
    found = []
    for child in psutil.Process().children():
        try:
            if child.cmdline()[-2:] == ["holder", str(directory)]:
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for each in holders(tmp_path):
        each.kill()
        each.wait()


def store_of(place: Path) -> HolderStore:
    return HolderStore(str(place), str(place))


def ended(place: Path) -> bool:
    with pytest.raises(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
        raise ChildProcessError
    return not holders(place)


def test_what_one_kept_the_next_takes(place: Path) -> None:
    reading, writing = os.pipe()
    first = store_of(place)
    assert first.take("pipe") is None
    first.keep("pipe", writing)
    first.keep("gone", reading)
    first.drop("gone")
    os.close(writing)
    first.alive()
    first.close()
    (process,) = holders(place)

    second = store_of(place)
    assert holders(place) == [process]
    taken = second.take("pipe")
    assert taken is not None
    assert not os.get_inheritable(taken)
    os.write(taken, b"still open")
    assert os.read(reading, 100) == b"still open"
    assert second.take("pipe") is None
    assert second.take("gone") is None
    os.close(taken)
    # In good order: nothing is left of it.
    second.leave()
    second.close()
    until(lambda: ended(place), "the end of the holder")
    assert os.read(reading, 100) == b""
    os.close(reading)


def test_one_that_was_let_go_is_not_replaced(place: Path) -> None:
    """Who says that all is well meanwhile, in a thread, may come too late."""
    reading, writing = os.pipe()
    store = store_of(place)
    store.keep("pipe", writing)
    store.leave()
    until(lambda: ended(place), "the end of the holder")
    os.close(writing)
    store.alive()
    assert holders(place) == []
    store.close()
    os.close(reading)


def test_another_of_the_same_name_takes_its_place(place: Path) -> None:
    ends = [os.pipe(), os.pipe()]
    store = store_of(place)
    for _, writing in ends:
        store.keep("pipe", writing)
        os.close(writing)
    store.close()
    assert os.read(ends[0][0], 1) == b"", "nobody has the first one open"
    again = store_of(place)
    taken = again.take("pipe")
    assert taken is not None
    os.write(taken, b"!")
    assert os.read(ends[1][0], 1) == b"!"
    os.close(taken)
    again.leave()
    again.close()
    for reading, _ in ends:
        os.close(reading)
    until(lambda: ended(place), "the end of the holder")


def test_no_more_than_so_many(place: Path) -> None:
    store = store_of(place)
    for number in range(holder.MAX_DESCRIPTORS):
        store.keep(f"null{number}", 0)
    store._socket.settimeout(0.2)  # it says nothing: there is no room
    with pytest.raises(OSError, match="timed out"):
        store.keep("one more", 0)
    store.leave()
    store.close()
    until(lambda: ended(place), "the end of the holder")


def test_nonsense_ends_the_conversation_and_loses_nothing(place: Path) -> None:
    reading, writing = os.pipe()
    first = store_of(place)
    first.keep("pipe", writing)
    os.close(writing)
    for packet in (b"\xff", b"[]", b"{", b"x" * holder.PACKET_BYTES):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.settimeout(5)  # long before the holder takes us for a daemon that hangs
            other.connect(str(place / "holder"))
            assert other.recv(holder.PACKET_BYTES)
            other.send(packet)
            assert other.recv(1) == b""
    first.close()
    second = store_of(place)
    taken = second.take("pipe")
    assert taken is not None
    os.close(taken)
    second.leave()
    second.close()
    os.close(reading)
    until(lambda: ended(place), "the end of the holder")


def test_one_without_anything_to_keep_ends_when_nobody_comes(place: Path) -> None:
    store_of(place).close()
    until(lambda: ended(place), "the end of the holder", holder.PATIENCE_SECONDS + 20)


def test_one_does_not_give_up_while_somebody_has_the_lock(place: Path) -> None:
    """A daemon that failed and is ending: what is attached would be nobody's."""
    reading, writing = os.pipe()
    store = store_of(place)
    store.keep("pipe", writing)
    os.close(writing)
    with state.locked(str(place)):
        store.close()
        (process,) = holders(place)
        before = process.num_ctx_switches().voluntary
        # It does nothing but try again.
        until(
            lambda: process.num_ctx_switches().voluntary > before + 10,
            "its attempts",
            holder.PATIENCE_SECONDS + 20,
        )
        assert process.is_running()
    until(lambda: ended(place), "its end")
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_what_systemd_hands_us(tmp_path: Path) -> None:
    """As sd_listen_fds(3) has it: numbers from 3 on, names beside them, for that pid alone."""
    script = (
        "exec 3</dev/null 4</dev/zero 5</dev/full; export LISTEN_PID=$$ LISTEN_FDS=3 "
        "NOTIFY_SOCKET=/x "
        'LISTEN_FDNAMES=views:exact:views; exec "$@"'
    )
    python = """
import os
from sysfsd.handover.store import SystemdStore
store = SystemdStore()
views, exact = store.take("views"), store.take("exact")
assert store.take("views") is None and store.take("control") is None
assert (views, exact) == (5, 4), (views, exact)
assert not os.get_inheritable(views) and not os.get_inheritable(exact)
assert "LISTEN_FDS" not in os.environ
store.close()
"""
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-c", python],
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_is_told_to_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.setattr("sysfsd.handover.store._SECONDS", 0.1)  # nobody lifts the barrier
        store = SystemdStore()
        store.keep("views", 0)
        for expected, count in ((b"FDSTORE=1\nFDNAME=views", 1), (b"BARRIER=1", 1)):
            data, fds, _flags, _ = socket.recv_fds(systemd, 100, 4)
            assert (data, len(fds)) == (expected, count)
            for fd in fds:
                os.close(fd)
        store.drop("views")
        store.alive()
        assert systemd.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=views"
        assert systemd.recv(100) == b"WATCHDOG=1"
        store.close()
