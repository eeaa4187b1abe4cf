"""Keeps containers' counters in files, so that they never run backwards when the daemon restarts.

One small file per container, ``<pid>-<start>``, in a directory of ours alone (tmpfs: what is
written is there for the next process, however this one ends). It is written *before* an answer with
its numbers goes out, so that whoever comes after us knows all that anybody was ever told.

A file has two slots that are written in turn. A write that a kill tears (between two pages) damages
the older one, whose answer has not gone out yet; the other holds the last that has.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from sysfsd import state
from sysfsd.facts import kept as formats
from sysfsd.facts.host import boottime_ns
from sysfsd.facts.kept import Init, Kept
from sysfsd.kernel.procfs import boot_id, is_running

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sysfsd.facts.cpuclock import CpuClock
    from sysfsd.facts.disk import DiskClock
    from sysfsd.facts.load import KeptLoad
    from sysfsd.log import RateLimit

SLOT_BYTES = 1 << 21
"""From one slot to the other: the largest there can be, and the hole between them takes no room."""

_NAME = re.compile(r"(\d{1,10})-(\d{1,20})")

_NOTHING = Kept()

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _File:
    init: Init
    fd: int | None
    """None where another record of the same process has the file, or there is none to be had."""
    sequence: int = 0
    kept: Kept = _NOTHING


class Keeper:
    """The files of one daemon. May be used from several threads. Never raises: see the log."""

    def __init__(
        self,
        directory: str,
        limit: RateLimit,
        *,
        proc: str = "/proc",
        clock: Callable[[], int] = boottime_ns,
    ) -> None:
        """Use a directory, which is made, and drop what is in it of processes that are gone.

        Raises ``OSError``.
        """
        self._limit = limit
        self._proc = proc
        self._now = clock
        self._boot = bytes.fromhex(boot_id(proc).replace("-", ""))
        self._lock = threading.Lock()
        self._files: dict[Hashable, _File] = {}
        self._users: Counter[Init] = Counter()
        self._released: set[Init] = set()
        self._directory = state.open_private(directory)
        for name in os.listdir(self._directory):
            match = _NAME.fullmatch(name)
            if match:
                self._remove_if_gone(Init(self._boot, int(match[1]), int(match[2])))

    def open(self, key: Hashable, pid: int, start_ticks: int) -> Kept:
        """Begin to keep the counters of a container, known by its init; returns the former ones."""
        init = Init(self._boot, pid, start_ticks)
        with self._lock:
            # A second record of one process: the file is the first one's.
            taken = self._users[init] > 0
            self._users[init] += 1
            file = self._files[key] = _File(init, None)
            self._released.discard(init)
            try:
                fd = os.open(
                    _name(init),
                    os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                    0o600,
                    dir_fd=self._directory,
                )
            except OSError as error:
                self._complain(init, error)
                return Kept()
            try:
                file.sequence, file.kept = self._read(fd, init)
            except (OSError, ValueError) as error:
                self._complain(init, error)
                if not taken:
                    with contextlib.suppress(OSError):
                        os.ftruncate(fd, 0)
            if taken:
                os.close(fd)
            else:
                file.fd = fd
            return file.kept

    def keep_clock(self, key: Hashable, clock: CpuClock) -> None:
        """Write a container's clock; whoever has no file has no clock kept."""
        with self._lock:
            file = self._files.get(key)
            if file is not None:
                self._write(file, file.kept._replace(clock=clock))

    def keep_load(self, key: Hashable, load: KeptLoad) -> None:
        """Write a container's load."""
        with self._lock:
            file = self._files.get(key)
            if file is not None:
                self._write(file, file.kept._replace(load=load))

    def keep_disks(self, key: Hashable, disks: DiskClock) -> None:
        """Write what a container did on disks."""
        with self._lock:
            file = self._files.get(key)
            if file is not None:
                self._write(file, file.kept._replace(disks=disks))

    def close(self, key: Hashable) -> None:
        """Write no more of a container; its file goes as well, unless its init still lives.

        Then it may come back: to us, or to a successor of ours.
        """
        with self._lock:
            file = self._files.pop(key, None)
            if file is None:
                return
            self._users[file.init] -= 1
            if not self._users[file.init]:
                del self._users[file.init]
            if file.fd is None:
                return
            os.close(file.fd)
            self._released.add(file.init)
            self._released = {init for init in self._released if not self._remove_if_gone(init)}

    def close_all(self) -> None:
        """Close all files, and leave them to a successor."""
        with self._lock:
            for file in self._files.values():
                if file.fd is not None:
                    os.close(file.fd)
            self._files.clear()
            os.close(self._directory)

    def _read(self, fd: int, init: Init) -> tuple[int, Kept]:
        """Return the newer of the two slots; raises ``ValueError`` if neither will do."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file")
        if status.st_size == 0:
            return 0, Kept()
        found: list[tuple[int, Kept]] = []
        problem: ValueError | None = None
        for offset in (0, SLOT_BYTES):
            head = os.pread(fd, formats.HEAD_BYTES, offset)
            if not head.strip(b"\0"):
                continue  # not written yet
            try:
                data = os.pread(fd, formats.length(head), offset)
                found.append(formats.decode(data, init, self._now()))
            except ValueError as error:
                problem = error
        if not found:
            raise problem or ValueError("empty")
        return max(found, key=lambda slot: slot[0])

    def _write(self, file: _File, kept: Kept) -> None:
        file.kept = kept
        if file.fd is None:
            return
        file.sequence += 1
        try:
            data = formats.encode(file.init, file.sequence, kept)
            written = os.pwrite(file.fd, data, SLOT_BYTES * (file.sequence % 2))
            if written != len(data):
                raise OSError("no room for all of it")
        except (OSError, ValueError) as error:
            self._complain(file.init, error)

    def _remove_if_gone(self, init: Init) -> bool:
        if is_running(init.pid, init.start_ticks, self._proc):
            return False
        with contextlib.suppress(OSError):
            os.unlink(_name(init), dir_fd=self._directory)
        return True

    def _complain(self, init: Init, error: Exception) -> None:
        suppressed = self._limit.passes(("keeper", str(error)))
        if suppressed is not None:
            _log.warning(
                "counters are not kept over a restart",
                pid=init.pid,
                error=str(error),
                suppressed=suppressed,
            )


def _name(init: Init) -> str:
    return f"{init.pid}-{init.start_ticks}"
