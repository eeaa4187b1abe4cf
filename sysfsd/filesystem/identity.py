"""Who is asking: the container of a caller, by way of the daemon."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import structlog
import trio

from sysfsd.control.client import Client
from sysfsd.errors import NoSuchContainer, SysfsdError
from sysfsd.kernel.cgroups import CgroupPaths
from sysfsd.kernel.procfs import read_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from sysfsd.control.protocol import Message
    from sysfsd.log import RateLimit

    T = TypeVar("T")

_log = structlog.get_logger(__name__)

_PIDFD_THREAD = os.O_EXCL
"""pidfd_open(2): a pidfd of a thread that leads no thread group (Linux 6.9)."""

ANSWER_SECONDS = 0.5
"""A caller waits so long for the daemon, and gets its own cgroup's view then."""

PAUSE_SECONDS = 5.0
"""After the daemon did not answer it is left alone for so long: one caller waits, not all."""

_THREADS = 8


class Identity:
    """Asks the daemon at a socket. Without one, nobody belongs to a container."""

    def __init__(
        self, control: str, limit: RateLimit, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._control = control
        self._limit = limit
        self._clock = clock
        self._not_before = -PAUSE_SECONDS
        self._threads = trio.CapacityLimiter(_THREADS)
        self.unanswered = 0
        """Callers whose container could not be asked for."""

    async def container_of(self, tid: int) -> str | None:
        """The id of the container that a caller belongs to; None if it belongs to none.

        ``tid`` is blocked in a request that has not been answered: it is still that thread.
        """

        def resolve() -> str | None:
            pidfd = _pidfd_of_thread(tid)
            try:
                with Client(self._control, timeout=ANSWER_SECONDS) as client:
                    container = client.call("resolve", {}, [pidfd])["id"]
                    return container if isinstance(container, str) else None
            finally:
                os.close(pidfd)

        return await self._ask(resolve)

    async def shown_to(
        self, tid: int, path: str, domain: int | None
    ) -> tuple[str | None, bytes | None]:
        """The container of a caller, and a view as that sees it, in one question.

        As from `container_of` and `view_of`, which may still know better where this has no view.
        """

        def resolve() -> tuple[str | None, bytes | None]:
            pidfd = _pidfd_of_thread(tid)
            try:
                with Client(self._control, timeout=ANSWER_SECONDS) as client:
                    answer = client.call("resolve", {"path": path, "domain": domain}, [pidfd])
            finally:
                os.close(pidfd)
            container, text = answer["id"], answer.get("text")
            return (
                container if isinstance(container, str) else None,
                text.encode() if isinstance(text, str) else None,
            )

        return await self._ask(resolve) or (None, None)

    async def view_of(self, container: str, path: str, domain: int | None) -> bytes | None:
        """A view as the daemon shows it to a container; None if it cannot.

        ``domain`` is the caller's execution domain, if not that of the container's init counts.
        """
        question: Message = {"id": container, "path": path, "domain": domain}

        def show() -> bytes | None:
            with Client(self._control, timeout=ANSWER_SECONDS) as client:
                text: str = client.call("show", question)["text"]
                return text.encode()

        return await self._ask(show)

    async def cgroup_of(self, container: str) -> CgroupPaths | None:
        """Where a registered container sits, as the daemon knows it; None if it cannot say."""

        def look() -> CgroupPaths | None:
            with Client(self._control, timeout=ANSWER_SECONDS) as client:
                for each in client.call("list", {})["containers"]:
                    if each["id"] == container:
                        return CgroupPaths(tuple(each["cgroup"].items()))
            return None

        return await self._ask(look)

    def is_silent(self) -> bool:
        """Whether nobody would be asked just now, and nobody belongs to a container."""
        return self._clock() < self._not_before or not os.path.exists(self._control)

    async def _ask(self, question: Callable[[], T | None]) -> T | None:
        if self.is_silent():
            return None
        try:
            return await trio.to_thread.run_sync(question, limiter=self._threads)
        except NoSuchContainer:  # gone since
            return None
        except (SysfsdError, OSError) as error:
            self.unanswered += 1
            self._not_before = self._clock() + PAUSE_SECONDS
            suppressed = self._limit.passes("identity")
            if suppressed is not None:
                _log.warning(
                    "no answer from the daemon; callers see their own cgroup",
                    error=str(error),
                    suppressed=suppressed,
                )
            return None


def _pidfd_of_thread(tid: int) -> int:
    try:
        return os.pidfd_open(tid, _PIDFD_THREAD)
    except OSError:
        # Before Linux 6.9. All threads of a process are in one user namespace (unshare(2)).
        for line in read_text(f"/proc/{tid}/status").split("\n"):
            if line.startswith("Tgid:"):
                return os.pidfd_open(int(line.split()[1]))
        raise
