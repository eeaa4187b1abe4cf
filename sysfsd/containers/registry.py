"""The registered containers: by id, by serial, and by user namespace."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import psutil
import structlog
import trio

from sysfsd.containers import saved as saved_records
from sysfsd.containers.belonging import RecordsByCgroup, innermost
from sysfsd.containers.record import ContainerRecord
from sysfsd.errors import ContainerExists, InvalidRequest
from sysfsd.facts.host import process_started
from sysfsd.facts.placement import placement_of
from sysfsd.kernel import namespaces, personality
from sysfsd.kernel.procfs import is_running
from sysfsd.policy import DEFAULT, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sysfsd.documents import Documents
    from sysfsd.kernel.namespaces import UsernsKey

_LAST = "last"
"""Not a record, but the last serial."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Entry:
    """A record and what keeps it true.

    As long as the descriptors are open, neither its pid nor the number of its user namespace can
    become somebody else's.
    """

    record: ContainerRecord
    pidfd: int
    userns_fd: int
    watch: trio.CancelScope = field(default_factory=trio.CancelScope)


class Registry:
    """Keeps a record for as long as its container's init lives, however that ends.

    Each record has one task, in the nursery given, that waits for its pidfd. ``on_gone`` is called
    with every record that goes.

    Records are also in ``saved``, written before anybody is told of them: a successor goes on with
    them (`restore`). There they go when their container does, and not when we do.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        proc: str = "/proc",
        *,
        policy: Policy = DEFAULT,
        saved: Documents | None = None,
    ) -> None:
        """Make an empty one; `policy` is what holds where nobody decides otherwise."""
        self._nursery = nursery
        self._saved = saved
        self._proc = proc
        self._policy = policy
        self._by_id: dict[str, _Entry] = {}
        self._by_serial: dict[int, _Entry] = {}
        self._by_userns: dict[UsernsKey, list[_Entry]] = {}
        self._by_cgroup = RecordsByCgroup()
        self._last_serial = 0
        self._own_userns = namespaces.own_user_namespace(proc)
        self._domains = personality.matters()
        self.changed_ns = time.time_ns()
        """When a record last came or went, in ns since the epoch; never the same twice."""
        self.on_gone: list[Callable[[ContainerRecord], None]] = []

    def __len__(self) -> int:
        """How many containers are registered."""
        return len(self._by_id)

    def records(self) -> Sequence[ContainerRecord]:
        """All of them, in the order in which they came."""
        return [entry.record for entry in self._by_id.values()]

    def find(self, container: str) -> ContainerRecord | None:
        """The container with that id."""
        entry = self._by_id.get(container)
        return None if entry is None else entry.record

    def by_serial(self, serial: int) -> ContainerRecord | None:
        """The container with that serial."""
        entry = self._by_serial.get(serial)
        return None if entry is None else entry.record

    def register(
        self, container: str, pidfd: int, settings: Mapping[str, str] | None = None
    ) -> ContainerRecord:
        """Make a record for the container whose init is behind ``pidfd`` (which stays yours).

        ``settings`` are those of its policy that are not the default. Registering the same init
        again changes nothing but the settings that are named. Raises ``ContainerExists`` while
        another init of that id lives, ``InvalidRequest`` for a descriptor or a process that will
        not do.
        """
        pid = _pid_of(pidfd, self._proc)
        known = self._by_id.get(container)
        if known is not None and namespaces.pidfd_alive(known.pidfd):
            if known.record.pid == pid:
                if settings:
                    policy = known.record.policy.with_settings(settings)
                    record = replace(known.record, policy=policy)
                    self._save(record)
                    known.record = record
                    self._by_cgroup.put(record)
                return known.record
            raise ContainerExists(
                f"a container {container} is registered and runs (pid {known.record.pid}); "
                "stop it first, or choose another id"
            )
        policy = self._policy.with_settings(settings or {})
        entry = self._read_entry(container, pid, pidfd, policy)
        try:
            self._save(entry.record)
        except OSError:
            os.close(entry.pidfd)
            os.close(entry.userns_fd)
            raise
        if known is not None:
            self._remove(known, "container gone")
        self._add(entry)
        _log.info("container registered", container=container, pid=pid)
        return entry.record

    def restore(self) -> list[tuple[ContainerRecord, int]]:
        """Go on with a predecessor's records; returns those whose containers live.

        With each comes its pidfd, which is the registry's.
        """
        if self._saved is None:
            return []
        documents = self._saved.all()
        last = documents.pop(_LAST, {}).get("serial", 0)
        self._last_serial = last if type(last) is int else 0
        restored = []
        for name, document in documents.items():
            try:
                restored.append(self._reopen(saved_records.decode(document)))
            except (OSError, ValueError) as error:
                _log.info("container gone meanwhile", record=name, reason=str(error))
                self._saved.remove(name)
        restored.sort(key=lambda entry: entry.record.serial)
        for entry in restored:
            self._last_serial = max(self._last_serial, entry.record.serial)
            self._add(entry)
        return [(entry.record, entry.pidfd) for entry in restored]

    def release(self, container: str) -> None:
        """Drop a record while its container may still run; unknown ids are fine."""
        entry = self._by_id.get(container)
        if entry is not None:
            self._remove(entry, "container released")

    def resolve(self, pidfd: int) -> ContainerRecord | None:
        """The registered container that a process belongs to; None if it belongs to none.

        Raises ``InvalidRequest`` for a dead process.
        """
        pid = _pid_of(pidfd, self._proc)
        try:
            fd = namespaces.open_namespace(pid, "user", self._proc)
            try:
                lineage = namespaces.user_namespace_lineage(fd)
            finally:
                os.close(fd)
            place = placement_of(pid, self._proc)
        except OSError as error:
            raise InvalidRequest(f"the caller's namespaces: {error.strerror}") from None
        if not namespaces.pidfd_alive(pidfd):
            raise InvalidRequest("the caller is gone")
        return innermost(
            [[entry.record for entry in self._by_userns.get(key, ())] for key in lineage],
            self._by_cgroup.containing(place.cgroup),
            place,
        )

    def _read_entry(self, container: str, pid: int, pidfd: int, policy: Policy) -> _Entry:
        with contextlib.ExitStack() as stack:
            try:
                userns_fd = namespaces.open_namespace(pid, "user", self._proc)
                stack.callback(os.close, userns_fd)
                key: UsernsKey | None = namespaces.namespace_key(userns_fd)
                if key == self._own_userns:
                    key, uid_base, gid_base = None, 0, 0
                else:
                    uid_base, gid_base = namespaces.container_root(pid, self._proc)
                cgroup = placement_of(pid, self._proc, container).cgroup
                domain = personality.domain_of(pid, self._proc) if self._domains else None
                started = process_started(pid)
                kept_pidfd = os.dup(pidfd)
                stack.callback(os.close, kept_pidfd)
            except (OSError, psutil.NoSuchProcess, LookupError) as error:
                raise InvalidRequest(f"container {container}: {error}") from None
            # All of the above was read by number. It was that process as long as it lives now.
            if not namespaces.pidfd_alive(pidfd):
                raise InvalidRequest(f"container {container}: its process {pid} is gone")
            stack.pop_all()
        self._last_serial += 1
        record = ContainerRecord(
            id=container,
            pid=pid,
            userns=key,
            uid_base=uid_base,
            gid_base=gid_base,
            started=started,
            cgroup=cgroup,
            serial=self._last_serial,
            registered_ns=time.time_ns(),
            domain=domain,
            policy=policy,
        )
        return _Entry(record, kept_pidfd, userns_fd)

    def _reopen(self, record: ContainerRecord) -> _Entry:
        """Find the container of a saved record again; raises OSError if it is gone."""
        with contextlib.ExitStack() as stack:
            pidfd = os.pidfd_open(record.pid)
            stack.callback(os.close, pidfd)
            now_fd = namespaces.open_namespace(record.pid, "user", self._proc)
            stack.callback(os.close, now_fd)
            # It may have gone into one inside of its own meanwhile (unshare(2)), and nowhere else.
            key = record.userns or self._own_userns
            userns_fd = namespaces.open_in_lineage(now_fd, key)
            if userns_fd is not None:
                stack.callback(os.close, userns_fd)
            # By number and start it is that process, and as long as the pidfd is alive it was.
            if (
                userns_fd is None
                or not is_running(record.pid, record.start_ticks, self._proc)
                or not namespaces.pidfd_alive(pidfd)
            ):
                raise ProcessLookupError(errno.ESRCH, "its process is gone")
            stack.pop_all()
            os.close(now_fd)
        return _Entry(record, pidfd, userns_fd)

    def _save(self, record: ContainerRecord) -> None:
        if self._saved is not None:
            # First: whatever happens, the kernel never hears the same serial for two.
            self._saved.put(_LAST, {"serial": self._last_serial})
            self._saved.put(str(record.serial), saved_records.encode(record))

    def _add(self, entry: _Entry) -> None:
        record = entry.record
        self._by_id[record.id] = self._by_serial[record.serial] = entry
        if record.userns is not None:
            self._by_userns.setdefault(record.userns, []).append(entry)
        self._by_cgroup.put(record)
        self._touch()
        self._nursery.start_soon(self._watch, entry, name=f"watch {record.id}")

    async def _watch(self, entry: _Entry) -> None:
        # The descriptors are closed here and nowhere else: never while somebody waits for them.
        try:
            with entry.watch:
                await trio.lowlevel.wait_readable(entry.pidfd)
                self._remove(entry, "container gone")
        finally:
            self._remove(entry)  # when all of us stop
            os.close(entry.pidfd)
            os.close(entry.userns_fd)

    def _remove(self, entry: _Entry, reason: str | None = None) -> None:
        record = entry.record
        if self._by_serial.pop(record.serial, None) is None:
            return
        if self._by_id.get(record.id) is entry:
            del self._by_id[record.id]
        if record.userns is not None:
            entries = self._by_userns[record.userns]
            entries.remove(entry)
            if not entries:
                del self._by_userns[record.userns]
        self._by_cgroup.remove(record)
        entry.watch.cancel()
        self._touch()
        for callback in self.on_gone:
            try:
                callback(record)
            except Exception:  # noqa: BLE001 - the end of one container is not that of all
                _log.exception("not all of a container's is gone", container=record.id)
        if reason is not None:
            if self._saved is not None:
                self._saved.remove(str(record.serial))
            _log.info(reason, container=record.id, pid=record.pid)

    def _touch(self) -> None:
        self.changed_ns = max(time.time_ns(), self.changed_ns + 1)


def _pid_of(pidfd: int, proc: str) -> int:
    try:
        return namespaces.pidfd_pid(pidfd, proc)
    except ProcessLookupError:
        raise InvalidRequest("the process of that pidfd is gone") from None
    except OSError:
        raise InvalidRequest("the descriptor sent along is not a pidfd") from None
