"""What an administrator may decide about a sysctl, and which names it goes by; pure.

``never``, the default, is no entry. On the path of every container start of those who have decided
something: no more imports than the table has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.sysctls.values import Numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sysfsd.sysctls.node import Sysctl

_LIMITS = (
    *("fs/aio-max-nr", "fs/epoll/", "fs/fanotify/", "fs/file-max", "fs/inotify/", "fs/mount-max"),
    *("fs/nr_open", "fs/pipe-", "kernel/keys/", "kernel/pid_max", "kernel/threads-max", "net/"),
    "vm/max_map_count",
)
"""What ``max`` may raise. A container's root chooses the number: it is not to decide when the host
panics, or how much memory its kernel sets aside."""

MAX, FORBID = "max", "forbid"


def problem(node: Sysctl, policy: object) -> str | None:
    """Say what is wrong with a policy for a node, to go after its name; None if nothing is."""
    if policy not in (MAX, FORBID):
        return f'must be "{MAX}" or "{FORBID}"'
    if policy == FORBID:
        return None
    only = f'so it can only be "{FORBID}"'
    if not node.path.startswith("proc/sys/"):
        return f"is not below /proc/sys, {only}"
    if not isinstance(node.kind, Numbers) or node.kind.count != 1:
        return f"is not one number, {only}"
    if node.resets:
        # The host's vm.dirty_ratio is 0 once vm.dirty_bytes has been written, and a dirty_bytes
        # of 0, which is what was there, is refused (mm/page-writeback.c): no way back.
        return f"changes another one of the host's when it is written, {only}"
    if node.locked is not None:
        return f"has a value that the host would keep for ever, {only}"
    if not node.path.removeprefix("proc/sys/").startswith(_LIMITS):
        return f"is not a limit that does no harm when it is large, {only}"
    return None


def canonical(name: str) -> str:
    """Bring ``vm/swappiness`` and ``/proc/sys/vm/swappiness`` into the form ``vm.swappiness``."""
    return name.strip("/").removeprefix("proc/sys/").replace("/", ".")


def flattened(section: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """Return names and values: to TOML, ``vm.swappiness = "max"`` is a table in a table."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
