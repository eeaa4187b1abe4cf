"""From a view to bytes; if that fails, the kernel's own file, loudly."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import structlog

from sysfsd.facts.host import HostFacts
from sysfsd.kernel.procfs import read_fd
from sysfsd.views import known_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from sysfsd.facts.collector import Facts
    from sysfsd.log import RateLimit
    from sysfsd.views import Family, View

MAX_FALLBACK_BYTES = 1 << 20

_log = structlog.get_logger(__name__)


class HostFiles:
    """Which views stand for a file that the host has, too."""

    def __init__(self, root: str = "/") -> None:
        self._root = root
        host = HostFacts(sys=os.path.join(root, "sys"))
        self._first_cpu = host.online_cpus.value[0]
        self._first_node = host.online_nodes.value[0]

    def has(self, view: View | Family) -> bool:
        """Whether the host has it."""
        path = known_by(view, self._first_cpu, self._first_node)
        return os.path.exists(os.path.join(self._root, path))


class Renderer:
    """Renders views and counts what came of it."""

    def __init__(self, limit: RateLimit, root: str = "/") -> None:
        self._limit = limit
        self._root = root
        self.rendered = 0
        self.fallbacks: dict[str, int] = {}
        """Views that gave the kernel's file instead, and how often."""

    def render(self, view: View, facts: Callable[[], Facts], whose: str) -> bytes:
        """Return the content of a file; raises ``OSError`` if not even the kernel's is to be had.

        A container is better off with the host's numbers, which it would see without us, than
        without any: many programs do not start without /proc/meminfo.
        """
        try:
            data = view.render(facts())
        except Exception as error:  # noqa: BLE001 - a view's bug must not take a container's file
            self.fallbacks[view.path] = self.fallbacks.get(view.path, 0) + 1
            suppressed = self._limit.passes(("view", view.path))
            if suppressed is not None:
                _log.warning(
                    "view failed; the kernel's own file is shown",
                    view=view.path,
                    container=whose,
                    error=repr(error),
                    suppressed=suppressed,
                )
            return self.kernels_own(view)
        self.rendered += 1
        return data

    def stats(self) -> dict[str, object]:
        """What came of it so far."""
        return {"rendered": self.rendered, "fallbacks": dict(self.fallbacks)}

    def kernels_own(self, view: View) -> bytes:
        """Return the host's file at a view's path."""
        fd = os.open(os.path.join(self._root, view.path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return read_fd(fd, MAX_FALLBACK_BYTES)
        finally:
            os.close(fd)
