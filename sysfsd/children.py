"""Something for each container, each in a process of its own.

Entering a mount namespace is for processes with one thread (setns(2)), and what is found there may
make whoever looks wait.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

from sysfsd.errors import NoSuchContainer, SysfsdError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_AT_ONCE = 32
"""Processes at work."""


def in_children(
    containers: Sequence[Mapping[str, Any]],
    work: Callable[[Mapping[str, Any]], object],
    patience: float,
) -> list[str]:
    """Do something for each container in a process of its own; returns the ids where it failed.

    A container that mounted a file system of its own over /proc can make whoever looks there wait,
    but only for ``patience`` seconds, and only for itself. One that is gone needs nothing.
    """
    left: list[str] = []
    waiting = list(reversed(containers))
    # Those that make us wait must not take up the places of others, time after time.
    at_work: dict[int, tuple[int, str, float]] = {}
    while waiting or at_work:
        while waiting and len(at_work) < _AT_ONCE:
            each = waiting.pop()
            child = _child(lambda each=each: work(each))  # type: ignore[misc]
            deadline = time.monotonic() + patience
            at_work[os.pidfd_open(child)] = child, str(each["id"]), deadline
        soonest = min(deadline for _, _, deadline in at_work.values())
        ended = select.select(list(at_work), [], [], max(0, soonest - time.monotonic()))[0]
        for pidfd, (child, container, deadline) in list(at_work.items()):
            if pidfd in ended:
                if os.waitpid(child, 0)[1] != 0:
                    left.append(container)
            elif deadline <= time.monotonic():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                left.append(container)
            else:
                continue
            os.close(pidfd)
            del at_work[pidfd]
    return left


def _child(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except (ProcessLookupError, NoSuchContainer):
            status = 0
        except (OSError, SysfsdError) as error:
            print(f"sysfsd: {error}", file=sys.stderr)  # noqa: T201
        finally:
            os._exit(status)
    return child
