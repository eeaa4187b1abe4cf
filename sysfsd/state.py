"""The directory ``/run/sysfsd``: one daemon's, and nobody else's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from sysfsd.errors import SysfsdError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEARCHABLE = 0o711
"""A container's root must get through to its stage, and need not see who else is there."""

_LOOK_AGAIN_SECONDS = 0.02


@contextlib.contextmanager
def locked(state_dir: str, patience: float = 0) -> Iterator[None]:
    """Make the directory ours for as long as we live; raises ``SysfsdError`` if it is another's.

    And stays so for ``patience`` seconds. The lock goes with the process, however it ends, so that
    a crashed predecessor is no obstacle.
    """
    _make(state_dir)
    fd = os.open(
        os.path.join(state_dir, "lock"),
        os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    try:
        if not _got(fd, time.monotonic() + patience):
            pid = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            raise SysfsdError(
                f"another sysfsd runs with the state directory {state_dir} (pid {pid}); "
                "stop it, or choose another --state-dir, --mountpoint and --control"
            )
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)


def _got(lock: int, end: float) -> bool:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_LOOK_AGAIN_SECONDS)  # flock(2) knows no deadline
        else:
            return True


def make_stage(state_dir: str) -> str:
    """Make the directory under which ``sysfsd-runc`` prepares containers' files."""
    stage = os.path.join(state_dir, "stage")
    _make(stage)
    return stage


def make_private(state_dir: str) -> str:
    """Make a directory that only root gets into."""
    private = os.path.join(state_dir, "private")
    _make(private, 0o700)
    return private


def open_private(directory: str) -> int:
    """Make a directory that only root gets into, and open it; raises ``OSError``."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.fchmod(fd, 0o700)
    return fd


def replace_file(path: str, data: bytes, *, dir_fd: int | None = None) -> None:
    """Replace a file at once: there is never half of it. Raises ``OSError``."""
    new = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(new, flags, 0o600, dir_fd=dir_fd), "wb") as file:
        file.write(data)
    os.replace(new, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def _make(directory: str, mode: int = _SEARCHABLE) -> None:
    os.makedirs(directory, mode=mode, exist_ok=True)
    os.chmod(directory, mode)
