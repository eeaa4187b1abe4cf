"""Files of ``/proc/sys`` as they are in another namespace, read and written by us.

They are those of the namespaces of the task that opens them (uts_namespaces(7), ``net_ctl_root`` of
``net/sysctl_net.c``). What the task may do there is what its user namespace says: some of them only
the host's root may write (``kernel/utsname_sysctl.c``). So a thread of its own joins the namespace,
and ends with it: no other thread of ours ever has another one's.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, TypeVar

from sysfsd.kernel import syscalls
from sysfsd.kernel.procfs import read_fd

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def read_here(path: str) -> bytes:
    """`read` in the namespace that we are in: for what is called there."""
    return _with_file(path, os.O_RDONLY, read_fd)


def write_here(path: str, data: bytes, offset: int) -> int:
    """The same for `write`."""
    return _with_file(path, os.O_WRONLY, lambda fd: os.pwrite(fd, data, offset))


def read(namespace: int, path: str) -> bytes:
    """Read a file in a namespace of any kind, given by its descriptor; raises ``OSError``."""
    return call(namespace, lambda: read_here(path))


def write(namespace: int, path: str, data: bytes, offset: int) -> int:
    """Write a file in a namespace and return how much the kernel took; raises ``OSError``."""
    return call(namespace, lambda: write_here(path, data, offset))


def _with_file(path: str, flags: int, work: Callable[[int], T]) -> T:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        return work(fd)
    finally:
        os.close(fd)


def call(namespace: int, work: Callable[[], T]) -> T:
    """Do something in a namespace, and return what comes of it or raise its ``OSError``."""
    results: list[T] = []
    errors: list[OSError] = []

    def run() -> None:
        try:
            syscalls.setns(namespace, 0)
            results.append(work())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="inside")
    try:
        thread.start()
    except RuntimeError:  # too many tasks
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
