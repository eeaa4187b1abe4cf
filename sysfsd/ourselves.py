"""Commands of ours that the daemon runs: what enters mount namespaces has one thread (setns(2))."""

from __future__ import annotations

import sys

import structlog
import trio

from sysfsd.scripts import START

_SECONDS = 20.0

_log = structlog.get_logger(__name__)


async def cover_containers(control: str, scope: trio.CancelScope) -> None:
    """Give the views to containers of a predecessor that lack some, by now or by our version."""
    with scope:
        await _run_ourselves("views are missing", "attach", "--all", "--control", control)


async def uncover_containers(state_dir: str) -> None:
    """Take the views back from containers that keep running: without us they would read ENOTCONN.

    And unmount.
    """
    await _run_ourselves(
        "views stay attached",
        "detach",
        "--all",
        "--offline",
        "--locked",
        "--state-dir",
        state_dir,
    )


async def _run_ourselves(trouble: str, *arguments: str) -> None:
    """Run a command of ours that enters mount namespaces: for whoever has one thread (setns(2))."""
    command = [sys.executable, "-I", "-S", START, "cli", *arguments]
    with trio.move_on_after(_SECONDS) as patience:
        done = await trio.run_process(command, check=False, capture_stderr=True)
        if done.returncode:
            _log.warning(trouble, error=done.stderr.decode("utf-8", "replace"))
    if patience.cancelled_caught:
        _log.warning(trouble, error=f"not done within {_SECONDS} s")
