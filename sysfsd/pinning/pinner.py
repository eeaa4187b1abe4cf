"""Carries pins out: looks at each pinned container twice a second, and writes what is to change.

Everything is one kind of round, in a worker thread: what there is in the cpusets, what is
remembered, and what the registered containers want, go into `choice.decide`. A container that is
no longer registered or no longer to be pinned wants nothing, and gets its own cpuset back.

What is going to be written is remembered first. Whatever moment we are killed at, the next daemon
knows every value of ours. Between our reading a cpuset and writing it lie microseconds in which an
engine's own write would be lost: the kernel knows no compare-and-exchange of files.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import structlog
import trio

from sysfsd.errors import Refused
from sysfsd.facts.cpu import read_quota
from sysfsd.kernel import namespaces
from sysfsd.kernel.cgroups import Cgroup
from sysfsd.kernel.cpusets import CpusetKey, OpenCpuset, opened, own_cpuset
from sysfsd.kernel.procfs import boot_id
from sysfsd.pinning import remembered
from sysfsd.pinning.choice import Pin, count_pins, decide, format_cpus
from sysfsd.policy import CPU_PIN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sysfsd.containers.record import ContainerRecord
    from sysfsd.kernel.cgroups import CgroupTree

INTERVAL_SECONDS = 0.5
"""A changed quota or cpuset is followed within a second."""

SETTLE_SECONDS = 1.0
"""A container that starts waits so long for its pin (the hook has 5 s), and starts without it."""

GRACE_SECONDS = 10.0
"""A predecessor's containers have so long to be registered again before they are let go."""

RELEASE_SECONDS = 5.0
"""All pins are taken back within this time when we stop."""

RETRY_SECONDS = 10.0
"""What the kernel has refused to write is not tried again, and remembered again, for so long."""

MAX_PROCESSES = 1024
"""So many processes of a cgroup are looked at before it counts as the container's own."""

_log = structlog.get_logger(__name__)


class _Refusal(NamedTuple):
    """What the kernel would not have in a cpuset, and until when it is not asked again."""

    text: str
    until: float
    error: OSError

    def holds_for(self, text: str, now: float) -> bool:
        return text == self.text and now < self.until


class Pinner:
    """The pins of one daemon."""

    def __init__(
        self,
        *,
        tree: CgroupTree,
        records: Callable[[], Sequence[ContainerRecord]],
        path: str,
        proc: str = "/proc",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Remember pins in the file at `path`; take over those that a predecessor left there."""
        self._tree = tree
        self._records = records
        self._path = path
        self._proc = proc
        self._clock = clock
        self._boot = boot_id(proc)
        self._pins: dict[CpusetKey, Pin] = {}
        try:
            self._pins = remembered.load(path, self._boot)
        except (OSError, ValueError) as error:
            _log.warning("the pins of a former daemon are not known", path=path, error=str(error))
        self._counts = count_pins(self._pins.values())
        self._inherited = set(self._pins)
        self._grace_ends = clock() + GRACE_SECONDS
        self._keys: dict[int, CpusetKey] = {}
        self._troubles: dict[str, str] = {}
        self._refusals: dict[CpusetKey, _Refusal] = {}
        self._wake = trio.Event()
        self._waiting: list[trio.Event] = []
        self._one_round = trio.Lock()
        self._stopped = False

    def stats(self) -> dict[str, int]:
        """How many containers are pinned, and how many cannot be."""
        return {"pinned": len(self._pins), "failing": len(self._troubles)}

    def trouble(self, container: str) -> str | None:
        """Say why a container is not pinned as it should be; None if it is, or need not be."""
        return self._troubles.get(container)

    async def run(self) -> None:
        """Keep pins up to date until cancelled."""
        while True:
            wanted = self._pins or any(_wants(record) for record in self._records())
            with trio.move_on_after(INTERVAL_SECONDS if wanted else math.inf):
                await self._wake.wait()
            self._wake = trio.Event()
            waiting, self._waiting = self._waiting, []
            await self._do_round()
            for settled in waiting:
                settled.set()

    def wake(self, _record: ContainerRecord | None = None) -> None:
        """Look again now: a container came, went, or is decided otherwise about."""
        self._wake.set()

    async def settle(self) -> None:
        """Look again now, and wait until that is done, though not for long."""
        settled = trio.Event()
        self._waiting.append(settled)
        self._wake.set()
        with trio.move_on_after(SETTLE_SECONDS):
            await settled.wait()

    async def release_all(self) -> None:
        """Give every container its own cpuset back, and pin none any more."""
        self._stopped = True
        with trio.move_on_after(RELEASE_SECONDS):
            await self._do_round()

    async def _do_round(self) -> None:
        async with self._one_round:
            wanting = [] if self._stopped else [each for each in self._records() if _wants(each)]
            grace = not self._stopped and self._clock() < self._grace_ends
            # Writing a cpuset waits for whoever holds the kernel's locks of cpusets and hotplug.
            await trio.to_thread.run_sync(self._round, wanting, grace, abandon_on_cancel=True)

    def _round(self, wanting: Sequence[ContainerRecord], grace: bool) -> None:
        kept = set(self._inherited) if grace else set()
        keys: dict[int, CpusetKey] = {}
        cgroups = {record.serial: self._cgroup(record) for record in wanting}
        # Records of one process (which may have two names) are of one container.
        users = {(cgroups[record.serial], record.pid) for record in wanting}
        sharing = Counter(cgroup for cgroup, _pid in users)
        for record in wanting:
            cgroup = cgroups[record.serial]
            try:
                if isinstance(cgroup, OSError):
                    raise cgroup
                if cgroup is None:
                    raise Refused("it has no cpuset of its own")
                if sharing[cgroup] > 1:
                    raise Refused("another container is in the same cgroup")
                keys[record.serial] = self._follow(cgroup, record)
            except (OSError, ValueError, Refused) as error:
                if _is_gone(error):
                    continue
                self._has_trouble(record.id, error)
                if not isinstance(error, Refused) and record.serial in self._keys:
                    keys[record.serial] = self._keys[record.serial]  # what is there stays, for now
            else:
                self._troubles.pop(record.id, None)
        self._keys = keys
        kept.update(keys.values())
        for key in [key for key in self._pins if key not in kept]:
            self._let_go(key)
        now = self._clock()
        self._refusals = {key: each for key, each in self._refusals.items() if now < each.until}
        names = {record.id for record in wanting} | {key.path for key in self._pins}
        self._troubles = {name: text for name, text in self._troubles.items() if name in names}

    def _cgroup(self, record: ContainerRecord) -> Cgroup | OSError | None:
        try:
            return own_cpuset(self._tree, record.cgroup)
        except OSError as error:  # gone, or out of our sight
            return error

    def _follow(self, cgroup: Cgroup, record: ContainerRecord) -> CpusetKey:
        with opened(cgroup) as cpuset:
            key = cpuset.key
            if key not in self._pins and not self._is_its_own(cpuset, record):
                raise Refused("others than the container are in its cgroup")
            quota = read_quota(self._tree.controller(record.cgroup, "cpu"))
            if self._decide(cpuset, None if quota is None else quota.value):
                pin = self._pins.get(key)
                cpus = format_cpus(pin.wrote) if pin is not None else "its own"
                _log.info("pinned", container=record.id, cpus=cpus)
        self._inherited.discard(key)
        return key

    def _let_go(self, key: CpusetKey) -> None:
        try:
            with opened(Cgroup(key.version, key.mountpoint, key.path)) as cpuset:
                if cpuset.key == key and self._decide(cpuset, None):
                    _log.info("no longer pinned", cgroup=key.path)
            self._remember(key, None)
        except (OSError, ValueError, Refused) as error:
            if not _is_gone(error):
                # v1 refuses a CPU that the parent no longer has: tried again as long as we run.
                self._has_trouble(key.path, error)
                return
            try:
                self._remember(key, None)
            except OSError as full:
                self._has_trouble(key.path, full)

    def _decide(self, cpuset: OpenCpuset, quota: int | None) -> bool:
        """Decide about a cpuset and carry it out; returns whether anything was written."""
        state = cpuset.read()
        if state is None:
            raise Refused("cpusets are not enabled for its cgroup")
        key, pin = cpuset.key, self._pins.get(cpuset.key)
        decision = decide(state, quota, pin, self._counts)
        if decision.text is not None:
            refusal = self._refusals.pop(key, None)
            if refusal is not None and refusal.holds_for(decision.text, self._clock()):
                self._refusals[key] = refusal
                raise refusal.error
            if decision.pin is not None:
                self._remember(key, decision.pin)
            try:
                cpuset.write(decision.text)
            except OSError as error:
                until = self._clock() + RETRY_SECONDS
                self._refusals[key] = _Refusal(decision.text, until, error)
                self._remember(key, pin)
                raise
        self._remember(key, decision.pin and decision.pin._replace(former=()))
        return decision.text is not None

    def _remember(self, key: CpusetKey, pin: Pin | None) -> None:
        """Raises ``OSError``: what a successor could not know of is not written to a cgroup."""
        if pin == self._pins.get(key):
            return
        pins = self._pins.copy()
        if pin is None:
            del pins[key]
        else:
            pins[key] = pin
        remembered.save(self._path, pins, self._boot)
        self._pins = pins
        self._counts = count_pins(pins.values())

    def _is_its_own(self, cpuset: OpenCpuset, record: ContainerRecord) -> bool:
        """Whether all processes of a cgroup are of one container.

        They are in its pid namespace or in one below; or, if that is the host's, in its mount
        namespace. A process that an engine is about to send in is not, for a moment.
        """
        for kind in ("pid", "mnt"):
            home = self._lineage(record.pid, kind)[0]
            if home != self._lineage(os.getpid(), kind)[0]:
                break
        else:
            return False
        for pid in cpuset.processes()[:MAX_PROCESSES]:
            try:
                if home not in self._lineage(pid, kind):
                    return False
            except (FileNotFoundError, ProcessLookupError):
                continue
        return True

    def _lineage(self, pid: int, kind: str) -> list[namespaces.UsernsKey]:
        fd = namespaces.open_namespace(pid, kind, self._proc)
        try:
            if kind == "mnt":
                return [namespaces.namespace_key(fd)]
            return namespaces.user_namespace_lineage(fd)
        finally:
            os.close(fd)

    def _has_trouble(self, name: str, error: Exception) -> None:
        # Said once: a round comes twice a second.
        if self._troubles.get(name) != str(error):
            self._troubles[name] = str(error)
            _log.warning("not pinned as it should be", container=name, error=str(error))


def _is_gone(error: Exception) -> bool:
    """Whether a process or a cgroup went while we looked; the files of a removed one say ENODEV."""
    return isinstance(error, OSError) and error.errno in {errno.ENOENT, errno.ESRCH, errno.ENODEV}


def _wants(record: ContainerRecord) -> bool:
    return record.policy.cpu == CPU_PIN
