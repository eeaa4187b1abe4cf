"""Puts the parts together and runs them, from top to bottom: ``serve`` and ``mount``."""

from __future__ import annotations

import contextlib
import os
import signal
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from sysfsd import __version__, documents, pressured, state
from sysfsd.binds import plan
from sysfsd.channel import device
from sysfsd.channel.allowance import Allowance
from sysfsd.channel.answering import answering
from sysfsd.coherence import Coherence, Roots
from sysfsd.containers.registry import Registry
from sysfsd.containers.reservations import Reservations
from sysfsd.control.methods import Methods
from sysfsd.control.server import ControlServer, listening, stop_listening
from sysfsd.errors import InvalidRequest
from sysfsd.facts.collector import FactsCollector
from sysfsd.facts.host import boot_time_in
from sysfsd.facts.keeper import Keeper
from sysfsd.facts.limits import LimitWatch
from sysfsd.facts.load import INTERVAL_SECONDS
from sysfsd.filesystem.callers import CallersOperations
from sysfsd.filesystem.identity import Identity
from sysfsd.filesystem.interfaces import PassedOn, tops_of
from sysfsd.filesystem.pinned import PinnedOperations
from sysfsd.filesystem.rendering import HostFiles, Renderer
from sysfsd.filesystem.tree import Tree
from sysfsd.freshness import Freshness
from sysfsd.handover import store as handover
from sysfsd.kernel.cgroups import CgroupTree
from sysfsd.kernel.openfiles import OpenFiles, raise_descriptor_limit, share_of_limit
from sysfsd.log import RateLimit
from sysfsd.notify import notify
from sysfsd.offline import MOUNTS, RECORDS
from sysfsd.ourselves import cover_containers, uncover_containers
from sysfsd.pinning.pinner import Pinner
from sysfsd.sysctls.host import JOURNAL, HostSysctls
from sysfsd.sysctls.known import ask_again, sysctls_to_emulate
from sysfsd.sysctls.store import Store
from sysfsd.views import LINKS, VIEWS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from sysfsd.channel.relay import Relay
    from sysfsd.config import Config
    from sysfsd.containers.record import ContainerRecord
    from sysfsd.documents import Documents
    from sysfsd.facts.load import LoadSampler
    from sysfsd.policy import Policy

_LOCK_SECONDS = 2.0

RESUME_ROUNDS = 30
RESUME_PAUSE_SECONDS = 1.0
"""So often, and with this pause, overlays are looked for: a container may be just starting."""

MOUNT_LOOKS = 20
"""How often ``sysfsd mount`` looks for what a reader it just answered asks next: for some 20 us."""

ALIVE_SECONDS = 3.0
"""Between two proofs that we don't hang; whoever watches over us waits several times as long."""

ANSWER_SECONDS = 10.0
"""An answer that takes longer will not come: all are made of small files of the kernel's."""

_log = structlog.get_logger(__name__)


async def serve(config: Config, *, fd_store: bool = False) -> None:
    """Run the service until SIGTERM or SIGINT, or until somebody unmounts it.

    What must outlive us is in systemd's store with ``fd_store``, else with a holder. On SIGHUP, or
    if we fail, all of it is left for a successor, and nobody notices.
    """
    limit = RateLimit()
    raise_descriptor_limit()
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        )

        # Ours alone, before anything of a predecessor's is touched. It may just be ending, or its
        # holder giving up.
        stack.enter_context(state.locked(config.state_dir, patience=_LOCK_SECONDS))
        stage = state.make_stage(config.state_dir)
        private = state.make_private(config.state_dir)
        os.makedirs(os.path.dirname(config.control), mode=0o711, exist_ok=True)
        store = stack.enter_context(handover.opened(private, config.state_dir, systemd=fd_store))
        # Whoever connects before we are ready waits.
        listener = stack.enter_context(listening(config.control, store, keep=not fd_store))

        # What a predecessor left.
        notes, records, reserved, mounted = (
            stack.enter_context(documents.opened(os.path.join(config.state_dir, name)))
            for name in ("notes", RECORDS, "reservations", MOUNTS)
        )
        keeper = Keeper(os.path.join(config.state_dir, "clocks"), limit)
        stack.callback(keeper.close_all)
        files = stack.enter_context(OpenFiles(share_of_limit()))

        # Whatever runs in the background, below everything that it uses.
        background = await stack.enter_async_context(trio.open_nursery())
        stack.callback(background.cancel_scope.cancel)

        # Callers may be waiting: whatever is not needed to answer them comes after the channel.
        exact = os.path.join(private, "exact")
        before = notes.get("tree")
        if before is None:  # the kernel knows files by numbers that nobody knows any more
            handover.forget(store, "views", "exact")
        connections = [
            stack.enter_context(device.taken_over(store, name, point))
            for name, point in (("views", config.mountpoint), ("exact", exact))
        ]
        resumed = any(connection.resumed for connection in connections)
        whole = all(connection.resumed for connection in connections)
        for name, connection in zip(("views", "exact"), connections, strict=True):
            _note_mount(mounted, name, connection.mountpoint)
        nodes = await sysctls_to_emulate(config, notes, ask=not resumed)
        sysctls = Store(
            os.path.join(config.state_dir, "sysctls"),
            nodes,
            limit,
            policy=HostSysctls(config.sysctls, os.path.join(config.state_dir, JOURNAL), limit),
        )
        stack.callback(sysctls.close_all)
        before = before or {"numbers": {}, "life": 0}
        tree = Tree(VIEWS, HostFiles().has, LINKS, nodes, before["numbers"] if resumed else None)
        life = before["life"] + 1
        notes.put("tree", {"numbers": dict(tree.numbers), "life": life})
        cgroups = CgroupTree.of_host()
        freshness = Freshness(
            moving_ns=int(config.freshness_ms * 1e6),
            limits_ns=int(config.limits_freshness_ms * 1e6),
            budget=config.cpu_budget,
        )
        limits = LimitWatch(cgroups)
        collector = FactsCollector(
            tree=cgroups,
            keeper=keeper,
            files=files,
            boot_time=partial(boot_time_in, files),
            refresh_ns=lambda: freshness.moving_ns,
        )
        renderer = Renderer(limit)
        passed_on = PassedOn(tops_of(tree), sysctls.open_network)
        registry = Registry(background, policy=config.policy(), saved=records)
        operations = PinnedOperations(
            tree=tree,
            registry=registry,
            collector=collector,
            renderer=renderer,
            sysctls=sysctls,
            passed_on=passed_on,
            limit=limit,
            life=life,
            freshness=freshness,
            limits=limits,
        )
        registry.on_gone += [collector.forget, operations.forget_container, sysctls.close]
        restored = registry.restore()
        for record, pidfd in restored:
            collector.track(record)
            if record.userns is not None:
                with contextlib.suppress(InvalidRequest):  # it is gone, and the registry will see
                    sysctls.open(record, pidfd)
        relay = await stack.enter_async_context(
            answering(
                operations,
                *connections,
                node_in_handle=True,
                life=life,
                answer=operations.answer,
                allowance=Allowance(config.cpu_budget),
                last_known=operations.last_known,
            )
        )
        stopping = trio.Event()
        background.start_soon(_prove_alive, store, relay, [config.mountpoint, exact], stopping)
        background.start_soon(_distrust, operations, [record for record, _ in restored])

        reservations = Reservations(background, user=config.subid_user, saved=reserved)
        reservations.restore()
        coherence = Coherence(limit)
        await background.start(coherence.run)
        reservations.on_free.append(coherence.forget)
        background.start_soon(_resume_coherence, coherence, reservations)
        pinner = Pinner(
            tree=cgroups,
            records=registry.records,
            path=os.path.join(config.state_dir, "pins.json"),
        )
        registry.on_gone.append(pinner.wake)
        background.start_soon(pinner.run)
        background.start_soon(_sample_loads, collector.load_sampler)
        background.start_soon(operations.pushing.run)
        background.start_soon(
            limits.run, operations.limits_written, lambda: freshness.moving_ns / 1e9
        )

        stats: dict[str, Callable[[], object]] = {
            "containers": lambda: len(registry),
            "ranges_in_use": lambda: len(reservations),
            "snapshots": lambda: len(operations.snapshots),
            "sysctls": lambda: {"emulated": len(nodes), "containers": len(sysctls)},
            "views": renderer.stats,
            "open_files": files.__len__,
            "freshness": freshness.stats,
            "limits": lambda: {**limits.stats(), **operations.pushing.stats()},
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
            if await stack.enter_async_context(pressured.mounted(mounting, config.control)):
                pressure = directory
                _note_mount(mounted, "pressure", directory)
        background.start_soon(server.serve, listener)
        covering = trio.CancelScope()
        if restored and not (whole and tree.numbers == before["numbers"]):
            background.start_soon(cover_containers, config.control, covering)
        if resumed:
            background.start_soon(ask_again, notes)

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
        stopping.set()
        if ending:
            await pinner.release_all()
            # Before anything of ours is gone: nobody finds a file there and no one answering.
            if not fd_store:  # else it may be a socket unit's
                stop_listening(config.control)
            await uncover_containers(config.state_dir)
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
            answering(
                operations,
                connection,
                node_in_handle=False,
                answer=operations.answer,
                looks=MOUNT_LOOKS,
            )
        )
        # First of all to be undone: nobody finds the file system there and no one answering.
        stack.callback(device.unmount, directory)
        background.start_soon(_sample_loads, collector.load_sampler)
        pressure = device.mounted(os.path.join(directory, "proc/pressure"), make=True)
        await stack.enter_async_context(pressured.mounted(pressure, control))
        _log.info("mounted", directory=directory)
        await _until(signals, relay)
    _log.info("unmounted", directory=directory)


def _note_mount(mounted: Documents, name: str, mountpoint: str) -> None:
    """Let `offline` know of a mount of ours."""
    there = device.mount_there(mountpoint)
    mounted.put(name, {"point": mountpoint, "device": "" if there is None else there.device})


async def _resume_coherence(coherence: Coherence, reservations: Reservations) -> None:
    """Go on with the overlays that a predecessor watched, as soon as they are to be found."""
    notes = {container: note for container, _, note in reservations.notes()}
    for _ in range(RESUME_ROUNDS):
        for container, init, note in reservations.notes():
            if container not in notes:
                continue
            try:
                roots = Roots(**note)
            except TypeError:
                del notes[container]
                continue
            if init is not None and coherence.resume(container, roots, init):
                del notes[container]
        if not notes:
            return
        await trio.sleep(RESUME_PAUSE_SECONDS)
    _log.info("docker cp may not see what these containers do, nor they it", containers=list(notes))


async def _distrust(operations: PinnedOperations, records: Sequence[ContainerRecord]) -> None:
    """Have the kernel ask anew, one container at a time: callers are answered in between."""
    for record in records:
        operations.distrust(record)
        await trio.lowlevel.checkpoint()


async def _prove_alive(
    store: handover.Store, relay: Relay, mountpoints: Sequence[str], stopping: trio.Event
) -> None:
    """Ask the kernel for our mounts, which asks us, and say that we don't hang if we answered.

    And if nobody else waits for an answer that does not come.
    """
    gone: set[str] = set()
    while True:
        for mountpoint in mountpoints:
            ours = await trio.to_thread.run_sync(relay.ask, mountpoint, abandon_on_cancel=True)
            if not (ours or mountpoint in gone or stopping.is_set() or relay.ended.is_set()):
                gone.add(mountpoint)
                _log.error(
                    "somebody unmounted it; containers get no views until the daemon is restarted",
                    mountpoint=mountpoint,
                )
        if relay.oldest_seconds < ANSWER_SECONDS:
            await trio.to_thread.run_sync(store.alive)
        await trio.sleep(ALIVE_SECONDS)


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


async def _sample_loads(sampler: LoadSampler) -> None:
    """Move load averages, in a thread: counting the tasks of many containers takes a while."""
    while True:
        await trio.sleep(INTERVAL_SECONDS)
        await trio.to_thread.run_sync(sampler.sample_all, abandon_on_cancel=True)
