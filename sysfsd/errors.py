"""Every error sysfsd raises on purpose.

::

    SysfsdError                 one line for the user: what is wrong and what to do next
    ├── UsageError              the command line or the configuration is wrong            exit 2
    ├── NoSuchContainer         no registered container has that name                     exit 3
    ├── NoSuchView              sysfsd serves no view at that path                        exit 3
    ├── ContainerExists         another live container is registered under that id        exit 1
    ├── NoRangeLeft             /etc/subuid or /etc/subgid has no free range of ids       exit 1
    ├── Refused                 a container that sysfsd-runc will not make                exit 1
    ├── InvalidRequest          a control request or a state document that makes no sense exit 1
    ├── PeerDenied              the caller may not talk to the daemon                     exit 1
    └── DaemonUnavailable       the daemon is not running, or does not answer             exit 69

Errors of the kernel stay ``OSError``. Inside the FUSE server they become an errno in one place,
``filesystem/operations.py``; on the command line they become one line in ``cli.py``.

``code`` is how an error is named on the control socket, ``exit_status`` what a command exits with.
This module is on the hook's path: no imports.
"""

from __future__ import annotations


class SysfsdError(Exception):
    """The root of the tree. ``str()`` of it is one line that says what to do next."""

    code = "internal"
    exit_status = 1


class UsageError(SysfsdError):
    """The command line or the configuration is wrong."""

    code = "usage"
    exit_status = 2


class NoSuchContainer(SysfsdError):  # noqa: N818 - named for what the user reads
    """No registered container has that name."""

    code = "no-such-container"
    exit_status = 3


class NoSuchView(SysfsdError):  # noqa: N818
    """There is no view at that path."""

    code = "no-such-view"
    exit_status = 3


class ContainerExists(SysfsdError):  # noqa: N818
    """Another live container is registered under that id."""

    code = "exists"


class NoRangeLeft(SysfsdError):  # noqa: N818
    """No free range of subordinate ids is left."""

    code = "no-range"


class Refused(SysfsdError):  # noqa: N818
    """A container that cannot be made into a system container, and why."""

    code = "refused"


class InvalidRequest(SysfsdError):  # noqa: N818
    """A control request or a state document that makes no sense."""

    code = "invalid"


class PeerDenied(SysfsdError):  # noqa: N818
    """The caller may not talk to the daemon."""

    code = "denied"


class DaemonUnavailable(SysfsdError):  # noqa: N818
    """The daemon is not running, or does not answer in time."""

    code = "unavailable"
    exit_status = 69


_KINDS: tuple[type[SysfsdError], ...] = (
    UsageError,
    NoSuchContainer,
    NoSuchView,
    ContainerExists,
    NoRangeLeft,
    Refused,
    InvalidRequest,
    PeerDenied,
    DaemonUnavailable,
)


def from_code(code: str, message: str) -> SysfsdError:
    """Rebuild the error that a control reply names; an unknown code gives a ``SysfsdError``."""
    for kind in _KINDS:
        if kind.code == code:
            return kind(message)
    return SysfsdError(message)
