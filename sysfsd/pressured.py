"""Pressure files with triggers: a process of their own, since pyfuse3 has one mount in each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from sysfsd.channel.answering import answering
from sysfsd.facts.pressure import resources_of_kernel
from sysfsd.filesystem.identity import Identity
from sysfsd.filesystem.pressure import PressureOperations
from sysfsd.filesystem.triggers import Triggers
from sysfsd.kernel import capabilities
from sysfsd.kernel.cgroups import CgroupTree
from sysfsd.kernel.openfiles import raise_descriptor_limit
from sysfsd.log import RateLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractContextManager

    from sysfsd.channel.device import Connection

_PRESSURE_SECONDS = 10.0
_PRESSURE_PAUSE_SECONDS = 1.0
_PRESSURE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from sysfsd.cli import main
sys.exit(main())
"""
_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def mounted(
    mounting: AbstractContextManager[Connection], control: str
) -> AsyncIterator[bool]:
    """Have pressure files at a mount, by a process of their own: pyfuse3 has one mount in each.

    Yields whether they are there. The kernel may count no pressure; and without them all else works
    as ever, only triggers don't.
    """
    if not resources_of_kernel():
        yield False
        return
    # In a thread: the way to the directory may lead through our own mount.
    connection = await trio.to_thread.run_sync(mounting.__enter__)
    try:
        async with trio.open_nursery() as nursery:
            yield await nursery.start(_keep_pressure, connection, control)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(mounting.__exit__, None, None, None)


async def _keep_pressure(
    connection: Connection,
    control: str,
    task_status: trio.TaskStatus[bool] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run that process, and the next when it ends; says once whether the first is ready."""
    started = False
    while True:
        command = [
            *(sys.executable, "-I", "-c", _PRESSURE, _PACKAGES),
            *("mount", "--pressure", "--device", str(connection.device), "--control", control),
            *(["--resumed"] if connection.resumed else []),
            connection.mountpoint,
        ]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[connection.device]
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ready = False
            with trio.move_on_after(_PRESSURE_SECONDS):
                ready = bool(await process.stdout.receive_some())
            if not started:
                task_status.started(ready)
                started = True
            if ready:
                status = await process.wait()
                _log.error("the process with pressure triggers ended: again", status=status)
            else:
                _log.warning("no pressure triggers: their process did not start")
        finally:
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()  # which it takes for the end
                await process.stdout.aclose()
                with trio.move_on_after(_PRESSURE_SECONDS):
                    await process.wait()
                process.kill()
                await process.wait()
        connection = connection._replace(resumed=True)
        await trio.sleep(_PRESSURE_PAUSE_SECONDS)


async def serve(connection: Connection, control: str) -> None:
    """Show callers their own pressure at a mount, until the end of stdin. The mount stays.

    Signals are for whoever started us: a terminal and systemd send them to us as well, but our
    files are to be there for as long as theirs.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    limit = RateLimit()
    # What we open for callers then is subject to the rules for those without privilege: only
    # windows of whole 2 s, which cost the kernel no real-time thread (psi_trigger_create).
    capabilities.give_up(capabilities.CAP_SYS_RESOURCE)
    raise_descriptor_limit()
    os.set_inheritable(connection.device, False)
    async with AsyncExitStack() as stack:
        triggers = stack.enter_context(Triggers())
        background = await stack.enter_async_context(trio.open_nursery())
        stack.callback(background.cancel_scope.cancel)

        operations = PressureOperations(
            resources=resources_of_kernel(),
            tree=CgroupTree.of_host(),
            identity=Identity(control, limit),
            triggers=triggers,
            limit=limit,
        )
        relay = await stack.enter_async_context(
            answering(operations, connection, node_in_handle=False)
        )
        background.start_soon(triggers.run)
        print("ready", flush=True)  # noqa: T201 - to whoever started us
        async with trio.open_nursery() as nursery:
            for ending in (relay.ended.wait, partial(trio.lowlevel.wait_readable, 0)):
                nursery.start_soon(_cancelling, nursery, ending)


async def _cancelling(nursery: trio.Nursery, wait: Callable[[], Awaitable[None]]) -> None:
    """Wait, and end a nursery's other tasks then."""
    await wait()
    nursery.cancel_scope.cancel()
