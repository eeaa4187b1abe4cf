"""The file that says which cpusets we narrowed, and what they were before.

A daemon that is killed leaves its pins in the cgroups. Its successor must tell them from what the
engine wrote, or a container would keep the cpuset that we gave it for ever.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from sysfsd.kernel.cpusets import CpusetKey
from sysfsd.kernel.procfs import parse_cpu_list, read_fd
from sysfsd.pinning.choice import Pin
from sysfsd.state import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT = 4 << 20
"""Bytes: some ten thousand containers."""


def encode(pins: Mapping[CpusetKey, Pin], boot: str) -> bytes:
    """Write the document; `boot` is the id of this boot: cgroups do not outlive it."""
    entries = [{**key._asdict(), **pin._asdict()} for key, pin in pins.items()]
    return json.dumps({"boot": boot, "pins": entries}).encode() + b"\n"


def decode(data: bytes, boot: str) -> dict[CpusetKey, Pin]:
    """Read the document; raises ``ValueError`` for any other. Nothing is left of another boot."""
    try:
        document: Any = json.loads(data)
        if document["boot"] != boot:
            return {}
        return dict(_entry(entry) for entry in document["pins"])
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"not what we write: {error!r}") from None


def _entry(entry: Any) -> tuple[CpusetKey, Pin]:
    key = CpusetKey(*(entry[name] for name in CpusetKey._fields))
    pin = Pin(entry["user"], tuple(entry["wrote"]), tuple(entry["former"]))
    numbers = (key.version, key.device, key.inode, *pin.wrote, *pin.former)
    texts = (key.mountpoint, key.path, pin.user)
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(isinstance(number, int) and number >= 0 for number in numbers)
        or key.version not in {1, 2}
        or not key.path.strip("/")  # the root is nobody's own
    ):
        raise ValueError("not what we write")
    parse_cpu_list(pin.user)
    return key, pin


def load(path: str, boot: str) -> dict[CpusetKey, Pin]:
    """Read the file; empty if there is none. Raises ``ValueError`` or ``OSError``."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    try:
        return decode(read_fd(fd, LIMIT), boot)
    finally:
        os.close(fd)


def save(path: str, pins: Mapping[CpusetKey, Pin], boot: str) -> None:
    """Replace the file at once: there is never half of it. Raises ``OSError``."""
    replace_file(path, encode(pins, boot))
