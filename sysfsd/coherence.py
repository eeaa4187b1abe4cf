"""Keeping an engine's overlay and a container's overlay over the same upper layer in step.

A system container's root file system is an overlay of its own (runtime/stage.py), while `docker cp`
and `docker export` go through the engine's overlay over the same layers. Each superblock caches
names and directories, and never looks again for what the other one changed beneath it
(Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems"). So:

- whoever opens or closes something on the engine's overlay is heard of by fanotify(7), and both
  superblocks are made to forget what they cached (`syscalls.reconfigure`): the container sees what
  was copied in, and the engine will look again;
- a directory or a symbolic link comes to be without being opened. Docker's engine makes a directory
  in the overlay's root before anything else (`.pivot_root…`), and that inotify(7) tells;
- a *lookup* by the engine raises no event, and neither does anything raise one that the container
  does. Every `ROUND_SECONDS` the engines' overlays of `ROUND_CONTAINERS` containers, in turn, are
  made to forget.

What somebody holds open, works in or has mounted something on is not forgotten by a superblock;
runtime/stage.py sees to mount points beforehand.

Nothing here ever fails a container. A reconfiguration waits while somebody syncs that superblock,
and takes 1.3 us for each cached name: it is done in a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict, deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import structlog
import trio

from sysfsd.errors import InvalidRequest
from sysfsd.kernel import fanotify, inotify, mounts, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

    from sysfsd.log import RateLimit

PAUSE_SECONDS = 0.01
"""The least time between two refreshes of one container."""

SETTLE_SECONDS = 0.25
"""After the last event, and once more after this time, both superblocks forget.

Changes of names, owners and times raise no event by themselves, and follow one within moments.
"""

ROUND_SECONDS = 1.0
ROUND_CONTAINERS = 10
"""Engines' overlays refreshed in one round. With n containers each has its turn in n/10 rounds."""

ROUND_LOST = 100
"""Containers wholly refreshed in one round when events were lost, until all have had their turn."""

BATCH_PAUSE_SECONDS = 0.002
"""Between two reads of events: so `docker export` of any tree takes a part of the event loop."""

_EVENTS = (
    fanotify.FAN_OPEN | fanotify.FAN_CLOSE_WRITE | fanotify.FAN_CLOSE_NOWRITE | fanotify.FAN_ONDIR
)
_NAMES = (
    inotify.IN_CREATE
    | inotify.IN_DELETE
    | inotify.IN_MOVED_FROM
    | inotify.IN_MOVED_TO
    | inotify.IN_ATTRIB
)
# A container that syncs without end keeps one of them waiting, for as long as a sync takes.
_WORKERS = 16
_RETIRED = 256
_ROOT = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# What a kernel says that has no fspick(2), or won't have this superblock reconfigured.
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP})

_log = structlog.get_logger(__name__)


class Roots(NamedTuple):
    """Where the engine's overlay is, and the ``st_dev`` of both."""

    engine_path: str
    engine: int
    container: int


@dataclass(slots=True)
class Counters:
    """What has happened so far."""

    events: int = 0
    lost: int = 0
    """Times that events were missing or belonged to no container that was known."""
    refreshes: int = 0
    """Superblocks made to forget."""
    failures: int = 0


@dataclass(slots=True, eq=False)
class _Pair:
    """The two overlays of one container."""

    id: str
    device: int
    engine: int
    container: int
    watch: int = -1
    """Of inotify, on the engine's root; negative when there is none."""
    turn: trio.Lock = field(default_factory=trio.Lock)
    wake: trio.Event = field(default_factory=trio.Event)
    touched: bool = False
    active: bool = False
    """A task refreshes it."""
    busy: bool = False
    """A worker thread uses the descriptors: they must not be closed now."""
    gone: bool = False

    def close(self) -> None:
        os.close(self.engine)
        os.close(self.container)


class Coherence:
    """Every container's two overlays; used on the event loop only.

    ``reconfigure`` is `syscalls.reconfigure`, or what a test puts in its place.
    """

    def __init__(
        self, limit: RateLimit, reconfigure: Callable[[int], None] = syscalls.reconfigure
    ) -> None:
        self._limit = limit
        self._reconfigure = reconfigure
        self._pairs: OrderedDict[str, _Pair] = OrderedDict()
        self._devices: dict[int, _Pair] = {}
        self._watches: dict[int, _Pair] = {}
        # Devices of pairs forgotten lately: their last events may still be on the way.
        self._retired: deque[int] = deque(maxlen=_RETIRED)
        self._counters = Counters()
        self._limiter = trio.CapacityLimiter(_WORKERS)
        self._nursery: trio.Nursery | None = None
        self._owed = 0
        self._said: set[str] = set()
        self._group: fanotify.Group | None = None
        self._names: inotify.Inotify | None = None
        try:
            self._group = fanotify.Group()
            self._names = inotify.Inotify()
        except OSError as error:
            self._tell_once("notify", error)

    def watch(self, container_id: str, engine_root: int, container_root: int) -> None:
        """Keep two overlays in step until `forget`, which another watch of that id implies.

        The descriptors, which may be O_PATH, stay yours. Raises ``InvalidRequest`` when they are
        not directories of overlays.
        """
        for root in (engine_root, container_root):
            _check(root)
        device = os.fstat(engine_root).st_dev
        self.forget(container_id)
        pair = _Pair(container_id, device, *_duplicates(engine_root, container_root))
        self._pairs[container_id] = pair
        self._devices[device] = pair
        with contextlib.suppress(ValueError):
            self._retired.remove(device)
        try:
            if self._group is not None:
                self._group.mark(engine_root, _EVENTS)
            if self._names is not None:
                pair.watch = self._names.add(engine_root, _NAMES)
                self._watches[pair.watch] = pair
        except OSError as error:
            self._tell_once("notify", error)

    def roots_of(self, container_id: str) -> Roots | None:
        """How a successor may find a container's overlays again; None if they aren't watched."""
        pair = self._pairs.get(container_id)
        if pair is None:
            return None
        path = os.readlink(f"/proc/self/fd/{pair.engine}")
        return Roots(path, pair.device, os.fstat(pair.container).st_dev)

    def resume(self, container_id: str, roots: Roots, init: int) -> bool:
        """Watch overlays again that a predecessor did, of the container whose init is ``init``.

        Returns whether they are where they were: a container that has just been made has not
        entered its root yet, and one that has left it can't be helped. Nothing that is not known to
        be that overlay is looked at: it may be a file system of the container's own.
        """
        with contextlib.ExitStack() as stack:
            try:
                engine = os.open(roots.engine_path, _ROOT)
                stack.callback(os.close, engine)
                container = os.open(f"/proc/{init}/root", _ROOT & ~os.O_NOFOLLOW)
                stack.callback(os.close, container)
                number = os.makedev(*map(int, mounts.device_of_root(init, container).split(":")))
                if number != roots.container or os.fstat(engine).st_dev != roots.engine:
                    return False
                self.watch(container_id, engine, container)
            except (OSError, ValueError, InvalidRequest):
                return False
        return True

    def forget(self, container_id: str) -> None:
        """Let go of a container's overlays; of an id that isn't watched: do nothing."""
        pair = self._pairs.pop(container_id, None)
        if pair is None:
            return
        if self._devices.get(pair.device) is pair:
            del self._devices[pair.device]
            self._retired.append(pair.device)
            if self._group is not None:
                with contextlib.suppress(OSError):  # there was none, or the engine unmounted it
                    self._group.unmark(pair.engine, _EVENTS)
        if self._watches.get(pair.watch) is pair:
            del self._watches[pair.watch]
            if self._names is not None:
                with contextlib.suppress(OSError):
                    self._names.remove(pair.watch)
        pair.gone = True
        pair.wake.set()
        if not pair.busy:
            pair.close()

    def stats(self) -> dict[str, int]:
        """Counters, and how many containers are watched now."""
        return {"watched": len(self._pairs), **asdict(self._counters)}

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do the work, until cancelled; then everything is forgotten."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for pair in self._pairs.values():
                    if pair.touched:
                        self._start(pair)
                if self._group is not None:
                    nursery.start_soon(self._listen, self._group)
                if self._names is not None:
                    nursery.start_soon(self._listen_to_names, self._names)
                nursery.start_soon(self._go_round)
                task_status.started()
        finally:
            self._nursery = None
            for container_id in list(self._pairs):
                self.forget(container_id)
            if self._group is not None:
                self._group.close()
                self._group = None
            if self._names is not None:
                self._names.close()
                self._names = None

    async def _listen(self, group: fanotify.Group) -> None:
        while True:
            await trio.lowlevel.wait_readable(group.fileno())
            for event in group.read():
                self._take(event)
            await trio.sleep(BATCH_PAUSE_SECONDS)

    async def _listen_to_names(self, names: inotify.Inotify) -> None:
        while True:
            await trio.lowlevel.wait_readable(names.fileno())
            for event in names.read():
                self._counters.events += 1
                pair = self._watches.get(event.watch)
                if pair is not None:
                    self._touch(pair)
                elif event == inotify.LOST:
                    self._counters.lost += 1
                    self._owed = len(self._pairs)
            await trio.sleep(BATCH_PAUSE_SECONDS)

    def _take(self, event: fanotify.Event) -> None:
        self._counters.events += 1
        device = None
        if event.fd >= 0:
            with contextlib.suppress(OSError):
                device = os.fstat(event.fd).st_dev
            with contextlib.suppress(OSError):
                os.close(event.fd)
        pair = self._devices.get(device) if device is not None else None
        if pair is not None:
            self._touch(pair)
        elif device is None or device not in self._retired:
            # Files (not directories) of an overlay over several file systems have other devices
            # than the overlay (overlayfs.rst, "Inode properties"); and events do get lost.
            self._counters.lost += 1
            self._owed = len(self._pairs)

    def _touch(self, pair: _Pair) -> None:
        pair.touched = True
        pair.wake.set()
        if not pair.active and self._nursery is not None:
            self._start(pair)

    def _start(self, pair: _Pair) -> None:
        assert self._nursery is not None
        pair.active = True
        self._nursery.start_soon(self._refresh, pair)

    async def _refresh(self, pair: _Pair) -> None:
        """Refresh both overlays until nothing has happened for `SETTLE_SECONDS`, and once more."""
        settled = False
        while not pair.gone:
            pair.touched = False
            pair.wake = trio.Event()
            began = trio.current_time()
            # The container's first: the engine's is to look again at what came of it.
            await self._forget_names(pair, pair.container, pair.engine)
            # A quarter of the time at most, where very many names are cached.
            await trio.sleep(max(PAUSE_SECONDS, 3 * (trio.current_time() - began)))
            if pair.touched:
                settled = False
                continue
            if settled:
                break
            with trio.move_on_after(SETTLE_SECONDS):
                await pair.wake.wait()
            settled = not pair.touched
        pair.active = False

    async def _go_round(self) -> None:
        while True:
            await trio.sleep(ROUND_SECONDS)
            assert self._nursery is not None
            owed = min(self._owed, ROUND_LOST)
            self._owed -= owed
            for number, pair in enumerate(
                list(self._pairs.values())[: max(owed, ROUND_CONTAINERS)]
            ):
                self._pairs.move_to_end(pair.id)
                # Without events, this is how a container gets to see what was copied in.
                if number < owed or self._group is None:
                    self._touch(pair)
                elif not pair.active and not pair.busy:
                    self._nursery.start_soon(self._forget_names, pair, pair.engine)

    async def _forget_names(self, pair: _Pair, *roots: int) -> None:
        """Make superblocks forget, in a worker thread, one at a time for a container."""
        async with pair.turn:
            if pair.gone:
                return
            pair.busy = True
            try:
                # Not abandoned, not even at the end: a descriptor must not be closed under it.
                failure = await trio.to_thread.run_sync(
                    self._reconfigure_all, roots, limiter=self._limiter
                )
            finally:
                pair.busy = False
                if pair.gone:
                    pair.close()
        if pair.gone:
            return
        if failure is None:
            self._counters.refreshes += len(roots)
            return
        self._counters.failures += 1
        if failure.errno in _UNSUPPORTED:
            self._tell_once("reconfigure", failure)
            self.forget(pair.id)
            return
        suppressed = self._limit.passes("coherence")
        if suppressed is not None:
            _log.warning(
                "overlay not refreshed",
                container=pair.id,
                error=str(failure),
                suppressed=suppressed,
            )

    def _reconfigure_all(self, roots: tuple[int, ...]) -> OSError | None:
        try:
            for root in roots:
                self._reconfigure(root)
        except OSError as error:
            return error
        return None

    def _tell_once(self, what: str, error: OSError) -> None:
        if what not in self._said:
            self._said.add(what)
            _log.info(
                "docker cp may not see what containers do, and they not it", reason=str(error)
            )


def _check(root: int) -> None:
    if (
        not stat.S_ISDIR(os.fstat(root).st_mode)
        or syscalls.filesystem_magic(root) != syscalls.OVERLAYFS_SUPER_MAGIC
    ):
        raise InvalidRequest("watch_root takes two descriptors: the roots of two overlays")


def _duplicates(first: int, second: int) -> tuple[int, int]:
    copy = os.dup(first)
    try:
        return copy, os.dup(second)
    except OSError:
        os.close(copy)
        raise
