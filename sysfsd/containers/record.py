"""What is known about one container."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sysfsd.errors import InvalidRequest
from sysfsd.facts.cpu import TICKS_PER_SECOND
from sysfsd.policy import DEFAULT, Policy

if TYPE_CHECKING:
    from sysfsd.kernel.cgroups import CgroupPaths
    from sysfsd.kernel.namespaces import UsernsKey

_ID = re.compile(r"[A-Za-z0-9_+.-]{1,255}")


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """One registered container. The descriptors that keep it true belong to the registry."""

    id: str
    pid: int
    """Its init, as the host numbers it."""
    userns: UsernsKey | None
    """Its user namespace; None when it shares the daemon's."""
    uid_base: int
    """The host's uid of its root."""
    gid_base: int
    started: float
    """When its init started, in seconds since boot (CLOCK_BOOTTIME)."""
    cgroup: CgroupPaths
    """Its own, which its init may sit below (`facts.placement`); decided when it is registered."""
    serial: int
    """Never used again in the life of one daemon; part of the inode numbers of its files."""
    registered_ns: int
    """When it was registered, in ns since the epoch."""
    domain: int | None = None
    """Its init's execution domain as of then, where that makes a difference."""
    policy: Policy = DEFAULT

    @property
    def start_ticks(self) -> int:
        """The same as ``started``, as /proc/<pid>/stat has it: with the pid, nobody else's."""
        return round(self.started * TICKS_PER_SECOND)


def check_id(value: object) -> str:
    """Return a container id as OCI runtimes allow them; raises ``InvalidRequest``.

    It becomes the name of a directory.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value) or value in {".", ".."}:
        shown = repr(value[:80]) if isinstance(value, str) else "this"
        raise InvalidRequest(
            f"{shown} is not a container id: it has 1 to 255 letters, digits, '_', '+', '-' or '.'"
        )
    return value
