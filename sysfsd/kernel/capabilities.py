"""Giving up capabilities of our own, and asking for others' (capset(2), capabilities(7))."""

from __future__ import annotations

import ctypes
import os

from sysfsd.kernel.procfs import read_text

CAP_NET_ADMIN = 12
CAP_SYS_RESOURCE = 24
"""linux/capability.h"""

_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    """Two of these make the 64 bits, low words first."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def give_up(capability: int) -> None:
    """Drop a capability for good, from this thread and those that it starts from now on.

    Raises OSError. One that we never had is fine.
    """
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    _call("capget", header, data)
    word, kept = data[capability // 32], ~(1 << capability % 32)
    word.effective &= kept
    word.permitted &= kept
    word.inheritable &= kept
    _call("capset", header, data)


def give_up_all() -> None:
    """Drop all of them for good, from this thread; raises ``OSError``."""
    _call("capset", _Header(_VERSION_3, 0), (_Data * 2)())


def has(thread: int, capability: int, proc: str = "/proc") -> bool:
    """Whether a thread may do what one is for, in its own user namespace; raises ``OSError``."""
    for line in read_text(f"{proc}/{thread}/status").split("\n"):
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def _call(name: str, header: _Header, data: ctypes.Array[_Data]) -> None:
    if getattr(_libc, name)(ctypes.byref(header), ctypes.byref(data)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
