"""Puts the parts together and runs them, from top to bottom: ``serve`` and ``mount``."""

from __future__ import annotations

import os
import resource
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import pyfuse3
import structlog
import trio

from sysfsd import __version__, state
from sysfsd.channel import device
from sysfsd.channel.counters import ChannelCounters
from sysfsd.channel.relay import MAX_IN_FLIGHT, Relay
from sysfsd.coherence import Coherence
from sysfsd.containers.registry import Registry
from sysfsd.containers.reservations import Reservations
from sysfsd.control.methods import Methods
from sysfsd.control.server import ControlServer, listening
from sysfsd.facts.collector import FactsCollector
from sysfsd.facts.keeper import Keeper
from sysfsd.facts.load import INTERVAL_SECONDS
from sysfsd.filesystem.callers import CallersOperations
from sysfsd.filesystem.identity import Identity
from sysfsd.filesystem.pinned import PinnedOperations
from sysfsd.filesystem.rendering import HostFiles, Renderer
from sysfsd.filesystem.tree import Tree
from sysfsd.kernel.cgroups import CgroupTree
from sysfsd.log import RateLimit
from sysfsd.notify import notify
from sysfsd.pinning.pinner import Pinner
from sysfsd.scripts import START
from sysfsd.views import VIEWS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sysfsd.config import Config
    from sysfsd.facts.load import LoadSampler
    from sysfsd.filesystem.operations import Operations
    from sysfsd.policy import Policy

_UNCOVER_SECONDS = 20.0

_log = structlog.get_logger(__name__)


async def serve(config: Config) -> None:
    """Run the service until SIGTERM or SIGINT, or until somebody unmounts it."""
    limit = RateLimit()
    _raise_descriptor_limit()
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))

        # Ours alone, before anything of a predecessor's is touched.
        stack.enter_context(state.locked(config.state_dir))
        stage = state.make_stage(config.state_dir)
        os.makedirs(os.path.dirname(config.control), mode=0o711, exist_ok=True)
        device.prepare_mountpoint(config.mountpoint, make=True)
        # Whoever connects before we are ready waits.
        listener = stack.enter_context(listening(config.control))

        keeper = Keeper(os.path.join(config.state_dir, "clocks"), limit)
        stack.callback(keeper.close_all)

        # Whatever runs in the background, below everything that it uses.
        background = await stack.enter_async_context(trio.open_nursery())
        stack.callback(background.cancel_scope.cancel)

        tree = Tree(VIEWS, HostFiles().has)
        collector = FactsCollector(tree=CgroupTree.of_host(), keeper=keeper)
        renderer = Renderer(limit)
        registry = Registry(background, policy=config.policy())
        reservations = Reservations(background, user=config.subid_user)
        operations = PinnedOperations(
            tree=tree, registry=registry, collector=collector, renderer=renderer, limit=limit
        )
        coherence = Coherence(limit)
        await background.start(coherence.run)
        reservations.on_free.append(coherence.forget)
        pinner = Pinner(
            tree=CgroupTree.of_host(),
            records=registry.records,
            path=os.path.join(config.state_dir, "pins.json"),
        )
        registry.on_gone += [collector.forget, operations.forget_container, pinner.wake]
        background.start_soon(pinner.run)

        relay = await stack.enter_async_context(
            _channel(config.mountpoint, operations, node_in_handle=True)
        )
        background.start_soon(_sample_loads, collector.load_sampler)

        stats: dict[str, Callable[[], object]] = {
            "containers": lambda: len(registry),
            "ranges_in_use": lambda: len(reservations),
            "snapshots": lambda: len(operations.snapshots),
            "views": renderer.stats,
            "failures": lambda: operations.failures,
            "channel": relay.stats,
            "control": lambda: server.stats(),  # noqa: PLW0108 - it is made below
            "coherence": coherence.stats,
            "pinning": pinner.stats,
            "load_sampler": lambda: asdict(collector.load_sampler.last_report),
            "tasks": lambda: trio.lowlevel.current_statistics().tasks_living,
        }
        methods = Methods(
            registry=registry,
            reservations=reservations,
            coherence=coherence,
            collector=collector,
            pinner=pinner,
            tree=tree,
            mountpoint=config.mountpoint,
            state_dir=config.state_dir,
            stage=stage,
            stats=stats,
        )
        server = ControlServer(methods.table(), limit)
        background.start_soon(server.serve, listener)

        _log.info(
            "serving",
            version=__version__,
            mountpoint=config.mountpoint,
            control=config.control,
            pid=os.getpid(),
        )
        notify("READY=1")
        stack.callback(notify, "STOPPING=1")
        await _until(signals, relay)
        if len(registry):
            await _uncover_containers(config.control)
        await pinner.release_all()
    _log.info("stopped")


async def mount(directory: str, control: str, policy: Policy) -> None:
    """Show callers their own views at a directory until a signal, or until it is unmounted."""
    limit = RateLimit()
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        device.prepare_mountpoint(directory, make=False)
        background = await stack.enter_async_context(trio.open_nursery())
        stack.callback(background.cancel_scope.cancel)

        collector = FactsCollector(tree=CgroupTree.of_host(), policy=policy)
        operations = CallersOperations(
            tree=Tree(VIEWS, HostFiles().has),
            identity=Identity(control, limit),
            collector=collector,
            renderer=Renderer(limit),
            limit=limit,
        )
        relay = await stack.enter_async_context(
            _channel(directory, operations, node_in_handle=False)
        )
        background.start_soon(_sample_loads, collector.load_sampler)
        _log.info("mounted", directory=directory)
        await _until(signals, relay)
    _log.info("unmounted", directory=directory)


@asynccontextmanager
async def _channel(
    mountpoint: str, operations: Operations, *, node_in_handle: bool
) -> AsyncIterator[Relay]:
    """Mount, and answer the kernel for as long as the context lasts. One at a time per process."""
    async with AsyncExitStack() as stack:
        fuse_device = stack.enter_context(device.opened())
        stack.enter_context(device.mounted(fuse_device, mountpoint))
        ours, theirs = stack.enter_context(device.socket_pair(MAX_IN_FLIGHT))
        pyfuse3.init(operations, f"/dev/fd/{theirs}", set())
        stack.callback(pyfuse3.close, unmount=False)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        relay = Relay(fuse_device, ours, ChannelCounters(), node_in_handle=node_in_handle)
        nursery.start_soon(pyfuse3.main, 1, MAX_IN_FLIGHT + 16)
        nursery.start_soon(relay.run)
        # First of all to be undone: nobody finds the file system there and no one answering.
        stack.callback(device.unmount, mountpoint)
        yield relay


async def _until(signals: AsyncIterator[int], relay: Relay) -> None:
    """Wait for a signal or the end of the mount."""
    async with trio.open_nursery() as nursery:

        async def wait_for_signal() -> None:
            _log.info("stopping", signal=signal.Signals(await anext(signals)).name)
            nursery.cancel_scope.cancel()

        async def wait_for_unmount() -> None:
            await relay.ended.wait()
            _log.info("stopping: unmounted")
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_for_signal)
        nursery.start_soon(wait_for_unmount)


async def _uncover_containers(control: str) -> None:
    """Take the views back from containers that keep running: without us they would read ENOTCONN.

    In another process, because entering a mount namespace is for those with one thread (setns(2)).
    """
    command = [sys.executable, "-I", "-S", START, "cli", "detach", "--all", "--control", control]
    with trio.move_on_after(_UNCOVER_SECONDS) as patience:
        done = await trio.run_process(command, check=False, capture_stderr=True)
        if done.returncode:
            _log.warning("views stay attached", error=done.stderr.decode("utf-8", "replace"))
    if patience.cancelled_caught:
        _log.warning("views stay attached", error=f"not done within {_UNCOVER_SECONDS} s")


def _raise_descriptor_limit() -> None:
    """Allow ourselves what we may have: each container takes a few descriptors."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _sample_loads(sampler: LoadSampler) -> None:
    """Move load averages, in a thread: counting the tasks of many containers takes a while."""
    while True:
        await trio.sleep(INTERVAL_SECONDS)
        await trio.to_thread.run_sync(sampler.sample_all, abandon_on_cancel=True)
