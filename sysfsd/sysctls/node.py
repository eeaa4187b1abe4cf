"""What one emulated file is: a row of the table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from sysfsd.sysctls.values import Kind, Value


class Scope(Enum):
    """Whose one value is."""

    CONTAINER = "container"
    NETWORK = "network namespace"
    """Of the container's init: those that share it share the value."""


class Live(Enum):
    """Values that the kernel keeps per namespace, but does not let a container's root write as is.

    Of each, the kind of the namespace.
    """

    HOSTNAME = "uts"
    """And the domain name. Only the host's root may."""
    PING_GROUPS = "net"
    """In the numbers of the writer's user namespace: all of them must be there."""


class Made(Enum):
    """Values that are made for each container."""

    PRODUCT_UUID = "product_uuid"


class Locked(NamedTuple):
    """A value that stays until the next boot: of the next container, here."""

    at: int
    error: int
    """The errno of a later write of another value."""


Default: TypeAlias = "Value | Live | Made | None"
"""What is shown until somebody writes: None is the host's value."""


@dataclass(frozen=True, slots=True)
class Sysctl:
    """One emulated file. To add one, append a row to the table."""

    path: str
    """Below the container's root: ``proc/sys/vm/swappiness``."""
    kind: Kind
    why: str
    """Who reads or writes it, and where that is documented."""
    default: Default = None
    mode: int = 0o644
    scope: Scope = Scope.CONTAINER
    resets: tuple[str, ...] = ()
    """Paths of others, of the same kind, that a write sets to 0, as the kernel does: of a ratio and
    an absolute number only one counts."""

    resets_on_change: bool = False
    """Whether it does so only if its own value changed (``dirty_ratio_handler``)."""
    locked: Locked | None = None
    always: bool = False
    """Whether it is emulated even though the kernel lets a container's root write it."""

    @property
    def writable(self) -> bool:
        """Whether it has a write bit."""
        return bool(self.mode & 0o222)
