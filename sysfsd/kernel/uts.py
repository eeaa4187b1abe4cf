"""The names in a UTS namespace, read and written where the kernel keeps them.

``/proc/sys/kernel/hostname`` is always that of the task that opens it (uts_namespaces(7)), and only
the host's root may write it (``kernel/utsname_sysctl.c``; the file is 0644 and nobody's in a user
namespace). So a thread of its own joins the namespace, and ends with it: no other thread of ours
ever has another one's.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, TypeVar

from sysfsd.kernel import syscalls
from sysfsd.kernel.procfs import read_fd

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def read(namespace: int, path: str) -> bytes:
    """Read one of the two files in a namespace, given by its descriptor; raises ``OSError``."""
    return _inside(namespace, lambda: _with_file(path, os.O_RDONLY, read_fd))


def write(namespace: int, path: str, data: bytes, offset: int) -> int:
    """Write one of the two files and return how much the kernel took; raises ``OSError``."""
    return _inside(
        namespace, lambda: _with_file(path, os.O_WRONLY, lambda fd: os.pwrite(fd, data, offset))
    )


def _with_file(path: str, flags: int, work: Callable[[int], T]) -> T:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        return work(fd)
    finally:
        os.close(fd)


def _inside(namespace: int, work: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[OSError] = []

    def run() -> None:
        try:
            syscalls.setns(namespace, syscalls.CLONE_NEWUTS)
            results.append(work())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="uts")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
