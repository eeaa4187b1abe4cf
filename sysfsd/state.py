"""The directory ``/run/sysfsd``: one daemon's, and nobody else's."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from sysfsd.errors import SysfsdError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEARCHABLE = 0o711
"""A container's root must get through to its stage, and need not see who else is there."""


@contextlib.contextmanager
def locked(state_dir: str) -> Iterator[None]:
    """Make the directory ours for as long as we live; raises ``SysfsdError`` if it is another's.

    The lock goes with the process, however it ends, so that a crashed predecessor is no obstacle.
    """
    _make(state_dir)
    fd = os.open(
        os.path.join(state_dir, "lock"),
        os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            raise SysfsdError(
                f"another sysfsd runs with the state directory {state_dir} (pid {pid}); "
                "stop it, or choose another --state-dir, --mountpoint and --control"
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)


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
