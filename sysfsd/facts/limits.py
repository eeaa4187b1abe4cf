"""Hearing of limits the moment they are written.

A write to a file of cgroupfs is one through the VFS like any other, and inotify(7) tells of it, on
v1 and v2 alike: ``docker update`` does that. What the kernel changes by itself (an effective cpuset
when a CPU goes offline) it does not tell; that shows when facts are next read.

Files are watched, not their directories, in which the kernel reports events of its own all the time
(``memory.events`` of a container at its limit).
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
import trio

from sysfsd.kernel import inotify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sysfsd.kernel.cgroups import CgroupPaths, CgroupTree

FILES: Mapping[int, Mapping[str, tuple[str, ...]]] = {
    1: {
        "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
        "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
        "cpuset": ("cpuset.cpus", "cpuset.mems"),
    },
    2: {
        "memory": ("memory.max", "memory.high", "memory.swap.max"),
        "cpu": ("cpu.max",),
        "cpuset": ("cpuset.cpus", "cpuset.mems"),
    },
}
"""What holds limits, by version and controller."""

MAX_LEVELS = 8
"""So many of a container's cgroups and ancestors are watched, the nearest ones."""

_log = structlog.get_logger(__name__)


class LimitWatch:
    """Watches the limits of containers. Where that is not to be had they are polled as ever."""

    def __init__(self, tree: CgroupTree) -> None:
        self._tree = tree
        self._whose: defaultdict[int, set[int]] = defaultdict(set)
        self._watches: dict[int, set[int]] = {}
        self._refused = False
        self.events = 0
        self._inotify: inotify.Inotify | None = None
        try:
            self._inotify = inotify.Inotify()
        except OSError as error:
            self._refuse(error)

    def __contains__(self, serial: int) -> bool:
        return serial in self._watches

    def watch(self, serial: int, paths: CgroupPaths) -> None:
        """Watch a container's limits until `forget`."""
        watches = self._watches[serial] = set()
        if self._inotify is None:
            return
        for path in self._files(paths):
            try:
                watch = self._inotify.add_file(path, inotify.IN_MODIFY)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._refuse(error)  # fs.inotify.max_user_watches
                return
            watches.add(watch)
            self._whose[watch].add(serial)

    def forget(self, serial: int) -> None:
        """Watch them no more."""
        for watch in self._watches.pop(serial, ()):
            self._whose[watch].discard(serial)
            if not self._whose[watch]:
                del self._whose[watch]
                if self._inotify is not None:
                    with suppress(OSError):  # the cgroup is gone, and its watches with it
                        self._inotify.remove(watch)

    async def run(self, written: Callable[[int], None], pause: Callable[[], float]) -> None:
        """Call `written` with the serial of each container whose limits were written.

        At most once for each in `pause()` seconds, whoever writes how often.
        """
        if self._inotify is None:
            return
        try:
            while True:
                await trio.lowlevel.wait_readable(self._inotify.fileno())
                serials: set[int] = set()
                for event in self._inotify.read():
                    self.events += 1
                    if event == inotify.LOST:
                        serials.update(self._watches)
                    serials |= self._whose.get(event.watch, set())
                for serial in serials:
                    written(serial)
                    await trio.lowlevel.checkpoint()
                await trio.sleep(pause())
        finally:
            self._inotify.close()
            self._inotify = None

    def stats(self) -> dict[str, int]:
        """What is watched, and what was heard."""
        return {"watches": len(self._whose), "events": self.events}

    def _files(self, paths: CgroupPaths) -> Iterator[str]:
        for controller in ("memory", "cpu", "cpuset"):
            with suppress(OSError):
                cgroup = self._tree.controller(paths, controller)
                if cgroup is None:
                    continue
                names = FILES[cgroup.version][controller]
                with cgroup.levels() as levels:
                    for level in levels[:MAX_LEVELS]:
                        if not level.is_root:
                            yield from (cgroup.source(name, level.path) for name in names)

    def _refuse(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            _log.info("limits are polled: they can't all be watched", reason=str(error))
