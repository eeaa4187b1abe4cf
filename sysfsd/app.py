"""Puts the parts together and runs them, from top to bottom: ``serve`` and ``mount``."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import pyfuse3
import structlog
import trio

from sysfsd import __version__, state
from sysfsd.binds import plan
from sysfsd.channel import device
from sysfsd.channel.counters import ChannelCounters
from sysfsd.channel.relay import MAX_IN_FLIGHT, Relay
from sysfsd.coherence import Coherence
from sysfsd.containers.registry import Registry
from sysfsd.containers.reservations import Reservations
from sysfsd.control.methods import Methods
from sysfsd.control.server import ControlServer, listening
from sysfsd.errors import SysfsdError
from sysfsd.facts.collector import FactsCollector
from sysfsd.facts.keeper import Keeper
from sysfsd.facts.load import INTERVAL_SECONDS
from sysfsd.facts.pressure import resources_of_kernel
from sysfsd.filesystem.callers import CallersOperations
from sysfsd.filesystem.identity import Identity
from sysfsd.filesystem.pinned import PinnedOperations
from sysfsd.filesystem.pressure import PressureOperations
from sysfsd.filesystem.rendering import HostFiles, Renderer
from sysfsd.filesystem.tree import Tree
from sysfsd.filesystem.triggers import Triggers
from sysfsd.kernel import capabilities
from sysfsd.kernel.cgroups import CgroupTree
from sysfsd.log import RateLimit
from sysfsd.notify import notify
from sysfsd.pinning.pinner import Pinner
from sysfsd.scripts import START
from sysfsd.sysctls.host import JOURNAL, HostSysctls
from sysfsd.sysctls.probe import emulated, probe
from sysfsd.sysctls.store import Store
from sysfsd.sysctls.table import SYSCTLS
from sysfsd.views import LINKS, VIEWS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sysfsd.config import Config
    from sysfsd.facts.load import LoadSampler
    from sysfsd.filesystem.operations import Operations
    from sysfsd.policy import Policy
    from sysfsd.sysctls.node import Sysctl

_UNCOVER_SECONDS = 20.0

_PRESSURE_SECONDS = 10.0
_PRESSURE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from sysfsd.cli import main
sys.exit(main())
"""
_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

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

        exact = _private_mountpoint(config, "exact")
        nodes = await _sysctls_to_emulate(config)
        sysctls = Store(
            os.path.join(config.state_dir, "sysctls"),
            [*nodes.values()],
            limit,
            policy=HostSysctls(config.sysctls, os.path.join(config.state_dir, JOURNAL), limit),
        )
        stack.callback(sysctls.close_all)
        tree = Tree(VIEWS, HostFiles().has, LINKS, nodes)
        cgroups = CgroupTree.of_host()
        collector = FactsCollector(tree=cgroups, keeper=keeper)
        renderer = Renderer(limit)
        registry = Registry(background, policy=config.policy())
        reservations = Reservations(background, user=config.subid_user)
        operations = PinnedOperations(
            tree=tree,
            registry=registry,
            collector=collector,
            renderer=renderer,
            sysctls=sysctls,
            limit=limit,
        )
        coherence = Coherence(limit)
        await background.start(coherence.run)
        reservations.on_free.append(coherence.forget)
        pinner = Pinner(
            tree=cgroups,
            records=registry.records,
            path=os.path.join(config.state_dir, "pins.json"),
        )
        registry.on_gone += [
            collector.forget,
            operations.forget_container,
            sysctls.close,
            pinner.wake,
        ]
        background.start_soon(pinner.run)

        relay = await stack.enter_async_context(
            _channel(config.mountpoint, operations, node_in_handle=True, exact=exact)
        )
        background.start_soon(_sample_loads, collector.load_sampler)

        stats: dict[str, Callable[[], object]] = {
            "containers": lambda: len(registry),
            "ranges_in_use": lambda: len(reservations),
            "snapshots": lambda: len(operations.snapshots),
            "sysctls": lambda: {"emulated": len(nodes), "containers": len(sysctls)},
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
            sysctls=sysctls,
            annotations=config.annotations,
            tree=tree,
            binds=lambda record: plan(cgroups, record, pressure=pressure),
            exact=exact,
            mountpoint=config.mountpoint,
            state_dir=config.state_dir,
            stage=stage,
            stats=stats,
        )
        server = ControlServer(methods.table(), limit)
        pressure = None
        if cgroups.nsdelegate:
            # Containers get its files bound; nobody else on the host has business there.
            directory = os.path.join(state.make_private(config.state_dir), "pressure")
            if await stack.enter_async_context(_pressure_mounted(directory, config.control)):
                pressure = directory
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
            tree=Tree(VIEWS, HostFiles().has, LINKS),
            identity=Identity(control, limit),
            collector=collector,
            renderer=Renderer(limit),
            limit=limit,
        )
        relay = await stack.enter_async_context(
            _channel(directory, operations, node_in_handle=False)
        )
        background.start_soon(_sample_loads, collector.load_sampler)
        await stack.enter_async_context(
            _pressure_mounted(os.path.join(directory, "proc/pressure"), control)
        )
        _log.info("mounted", directory=directory)
        await _until(signals, relay)
    _log.info("unmounted", directory=directory)


async def mount_pressure(directory: str, control: str) -> None:
    """Show callers their own pressure at a directory, until the end of stdin.

    Signals are for whoever started us: a terminal and systemd send them to us as well, but our
    files are to be there for as long as theirs.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    limit = RateLimit()
    # What we open for callers then is subject to the rules for those without privilege: only
    # windows of whole 2 s, which cost the kernel no real-time thread (psi_trigger_create).
    capabilities.give_up(capabilities.CAP_SYS_RESOURCE)
    _raise_descriptor_limit()
    async with AsyncExitStack() as stack:
        device.prepare_mountpoint(directory, make=True)
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
            _channel(directory, operations, node_in_handle=False)
        )
        background.start_soon(triggers.run)
        print("ready", flush=True)  # noqa: T201 - to whoever started us
        async with trio.open_nursery() as nursery:
            for ending in (relay.ended.wait, partial(trio.lowlevel.wait_readable, 0)):
                nursery.start_soon(_cancelling, nursery, ending)


async def _sysctls_to_emulate(config: Config) -> dict[int, Sysctl]:
    """Ask the kernel; without an answer, containers keep its own files."""
    try:
        states = await trio.to_thread.run_sync(probe, [node.path for node in SYSCTLS])
    except SysfsdError as error:
        _log.warning("no sysctls are emulated", error=str(error))
        return {}
    nodes = emulated(SYSCTLS, states)
    for path in sorted(config.sysctls.keys() - {node.path for node in nodes.values()}):
        _log.warning("policy without effect: containers have their own, or none", path=path)
    return nodes


def _private_mountpoint(config: Config, name: str) -> str:
    """Make a directory to mount at that containers get files of, and nobody else gets into."""
    directory = os.path.join(state.make_private(config.state_dir), name)
    device.prepare_mountpoint(directory, make=True)
    return directory


@asynccontextmanager
async def _pressure_mounted(directory: str, control: str) -> AsyncIterator[bool]:
    """Have pressure files at a directory, by a process of their own: pyfuse3 has one mount in each.

    Yields whether they are there. The kernel may count no pressure; and without them all else works
    as ever, only triggers don't.
    """
    if not resources_of_kernel():
        yield False
        return
    command = [
        *(sys.executable, "-I", "-c", _PRESSURE, _PACKAGES),
        *("mount", "--pressure", "--control", control, directory),
    ]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ready = False
        with trio.move_on_after(_PRESSURE_SECONDS):
            ready = bool(await process.stdout.receive_some())
        if not ready:
            _log.warning("no pressure triggers: their process did not start")
        async with trio.open_nursery() as nursery:
            if ready:
                nursery.start_soon(_complain_about, process)
            yield ready
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()  # which it takes for the end
            await process.stdout.aclose()
            with trio.move_on_after(_PRESSURE_SECONDS):
                await process.wait()
            process.kill()
            await process.wait()
            # What it leaves if killed. In a thread: the way there may lead through our own mount.
            await trio.to_thread.run_sync(device.unmount, directory)


async def _complain_about(process: trio.Process) -> None:
    status = await process.wait()
    _log.error("no pressure triggers any more: their process ended", status=status)


@asynccontextmanager
async def _channel(
    mountpoint: str, operations: Operations, *, node_in_handle: bool, exact: str | None = None
) -> AsyncIterator[Relay]:
    """Mount, and answer the kernel for as long as the context lasts. One at a time per process.

    ``exact`` is where the same is mounted once more, for files that are opened one by one.
    """
    async with AsyncExitStack() as stack:
        fuse_device = stack.enter_context(device.opened())
        stack.enter_context(device.mounted(fuse_device, mountpoint))
        second = None
        if exact is not None:
            second = stack.enter_context(device.opened())
            stack.enter_context(device.mounted(second, exact))
        ours, theirs = stack.enter_context(device.socket_pair(MAX_IN_FLIGHT))
        pyfuse3.init(operations, f"/dev/fd/{theirs}", set())
        stack.callback(pyfuse3.close, unmount=False)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        relay = Relay(
            fuse_device, ours, ChannelCounters(), node_in_handle=node_in_handle, second=second
        )
        nursery.start_soon(pyfuse3.main, 1, MAX_IN_FLIGHT + 16)
        nursery.start_soon(relay.run)
        # First of all to be undone: nobody finds the file system there and no one answering.
        stack.callback(device.unmount, mountpoint)
        if exact is not None:
            stack.callback(device.unmount, exact)
        yield relay


async def _cancelling(nursery: trio.Nursery, wait: Callable[[], Awaitable[None]]) -> None:
    """Wait, and end a nursery's other tasks then."""
    await wait()
    nursery.cancel_scope.cancel()


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
