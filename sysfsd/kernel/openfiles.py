"""Kernel files that stay open: reading one again is one pread(2), not a walk along its path.

A file of procfs or cgroupfs is made anew by each read from its start (the kernel's seq_file.rst),
so an open one is as good as a fresh one. One that has gone away (its cgroup was removed) gives
ENODEV for ever (``kernfs_seq_start``), also if another of the same name has come.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from contextlib import suppress

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_BYTES = 1 << 14

Key = tuple[str, str, str]
"""Where something is mounted, a directory below (``/a/b``), and a name in it; none: itself."""


def raise_descriptor_limit() -> None:
    """Allow ourselves what we may have: each container takes a few descriptors."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def share_of_limit() -> int:
    """Return how many descriptors of all that we may have are for these."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4


class OpenFiles:
    """At most so many of them; those that nobody asked for longest are closed. Thread-safe."""

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` descriptors, and at least as many as one read takes."""
        self._limit = max(2, limit)
        self._fds: OrderedDict[Key, int] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many are open."""
        return len(self._fds)

    def read(self, mountpoint: str, path: str, name: str, limit: int = 4 << 20) -> bytes | None:
        """Return at most `limit` bytes of a file; None if there is no such file in the directory.

        Raises OSError as open(2) and read(2) do: FileNotFoundError if the directory is gone.
        """
        with self._lock:
            try:
                return self._read((mountpoint, path, name), limit)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
            # Gone, or another one of that name: open it again, from the top.
            self._close_below(mountpoint, path)
            return self._read((mountpoint, path, name), limit)

    def close_below(self, path: str) -> None:
        """Close what is open in a directory and below it, wherever that is mounted."""
        with self._lock:
            self._close_below(None, path)

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            while self._fds:
                os.close(self._fds.popitem()[1])

    def _read(self, key: Key, limit: int) -> bytes | None:
        fd = self._fds.get(key)
        if fd is None:
            fd = self._open(*key)
            if fd is None:
                return None
        else:
            self._fds.move_to_end(key)
        data = os.pread(fd, min(limit, _READ_BYTES), 0)
        # What is smaller than a page is all there is: seq_files hand out pages, cut at a record.
        if len(data) < _WHOLE:
            return data
        chunks = [data]
        size = len(data)
        while size < limit and (data := os.pread(fd, min(limit - size, 1 << 16), size)):
            chunks.append(data)
            size += len(data)
        return b"".join(chunks)

    def _open(self, mountpoint: str, path: str, name: str) -> int | None:
        directory = self._directory(mountpoint, path)
        try:
            return self._keep((mountpoint, path, name), os.open(name, _FILE, dir_fd=directory))
        except FileNotFoundError:
            # A directory that was removed has no files either.
            there = os.stat(mountpoint + path)
            if there.st_ino != os.fstat(directory).st_ino:
                raise OSError(errno.ENODEV, "another directory", path) from None
            return None

    def _directory(self, mountpoint: str, path: str) -> int:
        key = mountpoint, path, ""
        fd = self._fds.get(key)
        if fd is not None:
            self._fds.move_to_end(key)
            return fd
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in path.split("/"):
            if name:
                try:
                    below = os.open(name, _DIRECTORY, dir_fd=fd)
                finally:
                    os.close(fd)
                fd = below
        return self._keep(key, fd)

    def _keep(self, key: Key, fd: int) -> int:
        self._fds[key] = fd
        if len(self._fds) > self._limit:
            os.close(self._fds.popitem(last=False)[1])
        return fd

    def _close_below(self, mountpoint: str | None, path: str) -> None:
        for key in [
            key
            for key in self._fds
            if mountpoint in {None, key[0]} and f"{key[1]}/".startswith(f"{path.rstrip('/')}/")
        ]:
            with suppress(OSError):
                os.close(self._fds.pop(key))


_WHOLE = 2048
"""A read that gives less has come to the end: a seq_file has a page at least, and goes on until no
further record fits. Only records of more than that could make it stop before; no file has them
that begins with less."""
