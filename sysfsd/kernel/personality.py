"""Execution domains: what ``setarch`` and 32-bit programs on a 64-bit kernel have set.

The kernel's arch/arm64/kernel/cpuinfo.c writes /proc/cpuinfo for the personality of the thread that
reads it: with ``PER_LINUX32`` it is that of a 32-bit machine, ``Features`` and all. On other
architectures the file is the same for everybody. Source: personality(2).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sysfsd.kernel import syscalls
from sysfsd.kernel.procfs import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

PER_LINUX = 0x0000
PER_LINUX32 = 0x0008

_MASK = 0x00FF
"""The domain. The bits above are switches, such as READ_IMPLIES_EXEC, that are nobody else's."""

_ASK = 0xFFFFFFFF

_DEPENDENT = frozenset({"aarch64", "aarch64_be", "armv8l", "armv8b"})


def matters(machine: str | None = None) -> bool:
    """Whether /proc/cpuinfo of this machine depends on who reads it."""
    return (os.uname().machine if machine is None else machine) in _DEPENDENT


def domain_of(pid: int, proc: str = "/proc") -> int | None:
    """Read the execution domain of a process or thread: `PER_LINUX32`, or `PER_LINUX` for others.

    None if it cannot be told: the file asks for the right to trace the process, which Yama and
    other security modules may deny even root.
    """
    try:
        value = int(read_text(f"{proc}/{pid}/personality"), 16)
    except (OSError, ValueError):
        return None
    return PER_LINUX32 if value & _MASK == PER_LINUX32 else PER_LINUX


@contextmanager
def under(domain: int | None) -> Iterator[None]:
    """Have an execution domain, this thread alone; None for our own. Nothing may await in here."""
    own = syscalls.personality(_ASK)
    if domain is None or domain == own & _MASK:
        yield
        return
    syscalls.personality((own & ~_MASK) | domain)
    try:
        yield
    finally:
        syscalls.personality(own)
