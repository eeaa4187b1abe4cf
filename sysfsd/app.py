"""Puts the parts together and runs them, from top to bottom: ``serve`` and ``mount``."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

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
from sysfsd.control.server import ControlServer, listening, stop_listening
from sysfsd.documents import Documents
from sysfsd.errors import InvalidRequest, SysfsdError
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
from sysfsd.handover import store as handover
from sysfsd.kernel import capabilities
from sysfsd.kernel.cgroups import CgroupTree
from sysfsd.log import RateLimit
from sysfsd.notify import notify
from sysfsd.offline import MOUNTS, RECORDS
from sysfsd.pinning.pinner import Pinner
from sysfsd.scripts import START
from sysfsd.sysctls.host import HostSysctls
from sysfsd.sysctls.probe import State, emulated, probe
from sysfsd.sysctls.store import Store
from sysfsd.sysctls.table import SYSCTLS
from sysfsd.views import LINKS, VIEWS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractContextManager

    from sysfsd.config import Config
    from sysfsd.facts.load import LoadSampler
    from sysfsd.filesystem.operations import Operations
    from sysfsd.policy import Policy
    from sysfsd.sysctls.node import Sysctl

_UNCOVER_SECONDS = 20.0

ALIVE_SECONDS = 3.0
"""Between two proofs that we don't hang; whoever watches over us waits several times as long."""

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


async def serve(config: Config, *, fd_store: bool = False) -> None:
    """Run the service until SIGTERM or SIGINT, or until somebody unmounts it.

    What must outlive us is in systemd's store with ``fd_store``, else with a holder. On SIGHUP, or
    if we fail, all of it is left for a successor, and nobody notices.
    """
    limit = RateLimit()
    _raise_descriptor_limit()
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        )

        # Ours alone, before anything of a predecessor's is touched.
        stack.enter_context(state.locked(config.state_dir))
        stage = state.make_stage(config.state_dir)
        private = state.make_private(config.state_dir)
        os.makedirs(os.path.dirname(config.control), mode=0o711, exist_ok=True)
        store = stack.enter_context(handover.opened(private, config.state_dir, systemd=fd_store))
        # Whoever connects before we are ready waits.
        listener = stack.enter_context(listening(config.control, store, keep=not fd_store))

        # What a predecessor left.
        notes = _documents(stack, config, "notes")
        records = _documents(stack, config, RECORDS)
        reserved = _documents(stack, config, "reservations")
        mounted = _documents(stack, config, MOUNTS)
        keeper = Keeper(os.path.join(config.state_dir, "clocks"), limit)
        stack.callback(keeper.close_all)

        # Whatever runs in the background, below everything that it uses.
        background = await stack.enter_async_context(trio.open_nursery())
        stack.callback(background.cancel_scope.cancel)

        # Callers may be waiting: whatever is not needed to answer them comes after the channel.
        exact = os.path.join(private, "exact")
        connections = [
            stack.enter_context(device.taken_over(store, name, point))
            for name, point in (("views", config.mountpoint), ("exact", exact))
        ]
        resumed = any(connection.resumed for connection in connections)
        for name, connection in zip(("views", "exact"), connections, strict=True):
            _note_mount(mounted, name, connection.mountpoint)
        nodes = await _sysctls_to_emulate(config, notes, ask=not resumed)
        sysctls = Store(
            os.path.join(config.state_dir, "sysctls"),
            nodes,
            limit,
            policy=HostSysctls(
                config.sysctls, os.path.join(config.state_dir, "raised.json"), limit
            ),
        )
        stack.callback(sysctls.close_all)
        before = notes.get("tree") or {"numbers": {}, "life": 0}
        tree = Tree(VIEWS, HostFiles().has, LINKS, nodes, before["numbers"] if resumed else None)
        life = before["life"] + 1
        notes.put("tree", {"numbers": dict(tree.numbers), "life": life})
        cgroups = CgroupTree.of_host()
        collector = FactsCollector(tree=cgroups, keeper=keeper)
        renderer = Renderer(limit)
        registry = Registry(background, policy=config.policy(), saved=records)
        operations = PinnedOperations(
            tree=tree,
            registry=registry,
            collector=collector,
            renderer=renderer,
            sysctls=sysctls,
            limit=limit,
            life=life,
        )
        registry.on_gone += [collector.forget, operations.forget_container, sysctls.close]
        restored = registry.restore()
        for record, pidfd in restored:
            collector.track(record)
            if record.userns is not None:
                with contextlib.suppress(InvalidRequest):  # it is gone, and the registry will see
                    sysctls.open(record, pidfd)
        relay = await stack.enter_async_context(
            _channel(operations, *connections, node_in_handle=True, life=life)
        )

        reservations = Reservations(background, user=config.subid_user, saved=reserved)
        reservations.restore()
        coherence = Coherence(limit)
        await background.start(coherence.run)
        reservations.on_free.append(coherence.forget)
        pinner = Pinner(
            tree=cgroups,
            records=registry.records,
            path=os.path.join(config.state_dir, "pins.json"),
        )
        registry.on_gone.append(pinner.wake)
        background.start_soon(pinner.run)
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
            "life": lambda: {"number": life, "resumed": resumed, "restored": len(restored)},
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
            directory = os.path.join(private, "pressure")
            mounting = device.taken_over(store, "pressure", directory)
            if await stack.enter_async_context(_pressure_mounted(mounting, config.control)):
                pressure = directory
                _note_mount(mounted, "pressure", directory)
        background.start_soon(server.serve, listener)
        background.start_soon(_prove_alive, store, [config.mountpoint, exact])
        covering = trio.CancelScope()
        if restored and not (resumed and tree.numbers == before["numbers"]):
            background.start_soon(_cover_containers, config.control, covering)
        if resumed:
            background.start_soon(_ask_again, notes)

        _log.info(
            "serving",
            version=__version__,
            mountpoint=config.mountpoint,
            control=config.control,
            pid=os.getpid(),
            resumed=resumed,
            containers=len(restored),
        )
        notify("READY=1")
        stack.callback(notify, "STOPPING=1")
        ending = await _until(signals, relay)
        covering.cancel()
        if ending:
            await pinner.release_all()
            # Before anything of ours is gone: nobody finds a file there and no one answering.
            stop_listening(config.control)
            await _uncover_containers(config.state_dir)
            store.leave()
    _log.info("stopped")


async def mount(directory: str, control: str, policy: Policy) -> None:
    """Show callers their own views at a directory until a signal, or until it is unmounted."""
    limit = RateLimit()
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        connection = stack.enter_context(device.mounted(directory, make=False))
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
            _channel(operations, connection, node_in_handle=False)
        )
        # First of all to be undone: nobody finds the file system there and no one answering.
        stack.callback(device.unmount, directory)
        background.start_soon(_sample_loads, collector.load_sampler)
        pressure = device.mounted(os.path.join(directory, "proc/pressure"), make=True)
        await stack.enter_async_context(_pressure_mounted(pressure, control))
        _log.info("mounted", directory=directory)
        await _until(signals, relay)
    _log.info("unmounted", directory=directory)


async def mount_pressure(connection: device.Connection, control: str) -> None:
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
    _raise_descriptor_limit()
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
            _channel(operations, connection, node_in_handle=False)
        )
        background.start_soon(triggers.run)
        print("ready", flush=True)  # noqa: T201 - to whoever started us
        async with trio.open_nursery() as nursery:
            for ending in (relay.ended.wait, partial(trio.lowlevel.wait_readable, 0)):
                nursery.start_soon(_cancelling, nursery, ending)


def _documents(stack: AsyncExitStack, config: Config, name: str) -> Documents:
    documents = Documents(os.path.join(config.state_dir, name))
    stack.callback(documents.close)
    return documents


def _note_mount(mounted: Documents, name: str, mountpoint: str) -> None:
    """Let `offline` know of a mount of ours."""
    mounted.put(name, {"point": mountpoint, "device": device.device_of(mountpoint)})


async def _sysctls_to_emulate(config: Config, notes: Documents, *, ask: bool) -> list[Sysctl]:
    """Ask the kernel, or go by what it said before; without an answer, containers keep its files.

    With ``ask`` False, only if this version has not asked yet.
    """
    known = notes.get("sysctls")
    if ask or known is None or known.get("version") != __version__:
        try:
            known = await _ask_kernel(notes)
        except SysfsdError as error:
            _log.warning("no sysctls are emulated", error=str(error))
            return []
    nodes = emulated(SYSCTLS, {path: State(what) for path, what in known["states"].items()})
    for path in sorted(config.sysctls.keys() - {node.path for node in nodes}):
        _log.warning("policy without effect: containers have their own, or none", path=path)
    return nodes


async def _ask_kernel(notes: Documents) -> dict[str, Any]:
    states = await trio.to_thread.run_sync(probe, [node.path for node in SYSCTLS])
    found = {"version": __version__, "states": {path: what.value for path, what in states.items()}}
    notes.put("sysctls", found)
    return found


async def _ask_again(notes: Documents) -> None:
    """Have the next daemon know what has come since, with modules, say."""
    with contextlib.suppress(SysfsdError):
        await _ask_kernel(notes)


@asynccontextmanager
async def _pressure_mounted(
    mounting: AbstractContextManager[device.Connection], control: str
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
    connection: device.Connection,
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


@asynccontextmanager
async def _channel(
    operations: Operations,
    first: device.Connection,
    second: device.Connection | None = None,
    *,
    node_in_handle: bool,
    life: int = 0,
) -> AsyncIterator[Relay]:
    """Answer the kernel for as long as the context lasts. One at a time per process.

    ``second`` is where the same is mounted once more, for files that are opened one by one.
    """
    connections = [first] if second is None else [first, second]
    async with AsyncExitStack() as stack:
        ours, theirs = stack.enter_context(device.socket_pair(MAX_IN_FLIGHT))
        pyfuse3.init(operations, f"/dev/fd/{theirs}", set())
        stack.callback(pyfuse3.close, unmount=False)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        relay = Relay(
            first.device,
            ours,
            ChannelCounters(),
            node_in_handle=node_in_handle,
            second=None if second is None else second.device,
            resumed=frozenset(each.device for each in connections if each.resumed),
            life=life,
        )
        nursery.start_soon(pyfuse3.main, 1, MAX_IN_FLIGHT + 16)
        nursery.start_soon(relay.run)
        yield relay


async def _prove_alive(store: handover.Store, mountpoints: Sequence[str]) -> None:
    """Ask the kernel for our mounts, which asks us, and say that we don't hang if we answered."""
    while True:
        for mountpoint in mountpoints:
            # Not stat(2): the kernel knows a directory's attributes by heart.
            await trio.to_thread.run_sync(os.statvfs, mountpoint, abandon_on_cancel=True)
        store.alive()
        await trio.sleep(ALIVE_SECONDS)


async def _cancelling(nursery: trio.Nursery, wait: Callable[[], Awaitable[None]]) -> None:
    """Wait, and end a nursery's other tasks then."""
    await wait()
    nursery.cancel_scope.cancel()


async def _until(signals: AsyncIterator[int], relay: Relay) -> bool:
    """Wait for a signal or the end of the mount; returns whether that is the end of the service."""
    ending = True
    async with trio.open_nursery() as nursery:

        async def wait_for_signal() -> None:
            nonlocal ending
            number = signal.Signals(await anext(signals))
            ending = number is not signal.SIGHUP
            _log.info("stopping", signal=number.name, for_successor=not ending)
            nursery.cancel_scope.cancel()

        async def wait_for_unmount() -> None:
            await relay.ended.wait()
            _log.info("stopping: unmounted")
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_for_signal)
        nursery.start_soon(wait_for_unmount)
    return ending


async def _cover_containers(control: str, scope: trio.CancelScope) -> None:
    """Give the views to containers of a predecessor that lack some, by now or by our version."""
    with scope:
        await _run_ourselves("views are missing", "attach", "--all", "--control", control)


async def _uncover_containers(state_dir: str) -> None:
    """Take the views back from containers that keep running: without us they would read ENOTCONN.

    And unmount.
    """
    await _run_ourselves(
        "views stay attached", "detach", "--all", "--offline", "--state-dir", state_dir
    )


async def _run_ourselves(trouble: str, *arguments: str) -> None:
    """Run a command of ours that enters mount namespaces: for whoever has one thread (setns(2))."""
    command = [sys.executable, "-I", "-S", START, "cli", *arguments]
    with trio.move_on_after(_UNCOVER_SECONDS) as patience:
        done = await trio.run_process(command, check=False, capture_stderr=True)
        if done.returncode:
            _log.warning(trouble, error=done.stderr.decode("utf-8", "replace"))
    if patience.cancelled_caught:
        _log.warning(trouble, error=f"not done within {_UNCOVER_SECONDS} s")


def _raise_descriptor_limit() -> None:
    """Allow ourselves what we may have: each container takes a few descriptors."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _sample_loads(sampler: LoadSampler) -> None:
    """Move load averages, in a thread: counting the tasks of many containers takes a while."""
    while True:
        await trio.sleep(INTERVAL_SECONDS)
        await trio.to_thread.run_sync(sampler.sample_all, abandon_on_cancel=True)
