"""What a write makes of an emulated file, and of the others that depend on it; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.sysctls.values import Numbers, Text, Written

if TYPE_CHECKING:
    from sysfsd.sysctls.node import Sysctl
    from sysfsd.sysctls.values import Value


def write(node: Sysctl, value: Value, data: bytes, position: int = 0) -> Written:
    """Return what a write of `data`, which has at least one byte, makes of `value`.

    With a position, as kernel/sysctl.c has it: numbers are taken at the file's beginning only, and
    what is elsewhere is ignored; a text goes on there, if it is not past its end. Files of sysfs
    have no positions.
    """
    ignored = position and isinstance(node.kind, Numbers)
    kept = b""
    if position and isinstance(node.kind, Text):
        text = node.kind.text(value)[:-1]
        ignored = position > len(text)
        kept = text[:position]
    if ignored:
        return Written(value, len(data))
    written = node.kind.write(value, kept + data)
    if kept and not written.error:
        written = written._replace(consumed=len(data))
    lock = node.locked
    if lock and not written.error and value == (lock.at,) != written.value:
        return Written(value, 0, lock.error)
    return written


def resets(node: Sysctl, before: Value, written: Written) -> tuple[str, ...]:
    """Return the paths of those that are 0 after this write of a file that had the value before."""
    unchanged = node.resets_on_change and written.value == before
    return () if written.error or unchanged else node.resets
