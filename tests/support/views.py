"""The table of views, for tests that go through it: of each family its first member."""

from __future__ import annotations

from sysfsd.facts.host import HostFacts
from sysfsd.filesystem.rendering import HostFiles
from sysfsd.sysctls.probe import passed_on
from sysfsd.sysctls.table import SYSCTLS
from sysfsd.views import VIEWS, Family, View, attach_points

EACH = tuple(entry.view(0) if isinstance(entry, Family) else entry for entry in VIEWS)
PATHS = tuple(view.path for view in EACH)


def view(path: str) -> View:
    """The view at a path."""
    return next(view for view in EACH if view.path == path)


def of_this_host() -> list[str]:
    """Paths of those that this host's containers have."""
    node = HostFacts().online_nodes.value[0]
    first = {"sys/devices/system/node/online": node}
    return [
        (entry.view(first.get(entry.members, 0)) if isinstance(entry, Family) else entry).path
        for entry in VIEWS
        if HostFiles().has(entry)
    ]


SYSCTL_POINTS = frozenset(
    f"/{path}" for node in SYSCTLS for path in (node.path, passed_on(node.path)) if path
)
"""Where a container may have a sysctl of ours; which ones depends on the kernel."""


def points_of_this_host() -> list[str]:
    """What is covered in this host's containers."""
    return attach_points([entry for entry in VIEWS if HostFiles().has(entry)])


def bare(data: bytes) -> bytes:
    """The content of a pinned file without the blanks that keep its lines where they are."""
    return b"\n".join(line.rstrip(b" ") for line in data.split(b"\n"))
