"""Who has which range of ids, and until when."""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
import trio

from sysfsd.containers import ranges
from sysfsd.containers.ranges import IdRange
from sysfsd.errors import ContainerExists, InvalidRequest, NoRangeLeft
from sysfsd.kernel import namespaces
from sysfsd.kernel.procfs import is_running, parse_task_stat, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sysfsd.documents import Documents

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Reservation:
    """``create`` is a pidfd of the runtime's create process, ``init`` of the container's."""

    name: str
    """Nobody else's, in this boot: the create process by pid and start."""
    container: str
    range: IdRange
    create: int
    init: int | None = None
    note: Mapping[str, Any] | None = None
    """What else a successor must know of it, for whoever asked for it to be kept."""

    def held(self) -> bool:
        holders = [self.create] if self.init is None else [self.create, self.init]
        return any(namespaces.pidfd_alive(pidfd) for pidfd in holders)


class Reservations:
    """Hands out a range to a container that is being created.

    It stays the container's for as long as the create process lives, and then for as long as the
    init does that was registered meanwhile. Each reservation has one task in the nursery given.

    They are also in ``saved``, for a successor (`restore`): until the container has its user
    namespace, nothing else says that a range is taken.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        user: str,
        subuid: str = "/etc/subuid",
        subgid: str = "/etc/subgid",
        proc: str = "/proc",
        saved: Documents | None = None,
    ) -> None:
        self._saved = saved
        self._nursery = nursery
        self._user = user
        self._files = (subuid, subgid)
        self._proc = proc
        self._by_id: dict[str, _Reservation] = {}
        self._reservations: set[_Reservation] = set()
        self._last: IdRange | None = None
        # Containers of a predecessor of ours may still run: their ids are not free.
        self._mapped_before = self._mapped_uids()
        self.on_free: list[Callable[[str], None]] = []
        """Called with the id of a container when nothing of it is left that needs its range."""

    def __len__(self) -> int:
        """How many ranges are taken."""
        return len(self._reservations)

    def __contains__(self, container: str) -> bool:
        """Whether a range is this container's."""
        return container in self._by_id

    def reserve(self, container: str, create: int) -> IdRange:
        """Return a range for the container that the process behind ``create`` makes.

        Raises ``NoRangeLeft`` with the lines to add, ``ContainerExists`` while the container runs.
        """
        try:
            pid = namespaces.pidfd_pid(create, self._proc)
        except OSError:
            raise InvalidRequest("reserve needs a pidfd of a live create process") from None
        former = self._by_id.get(container)
        if former is not None and former.init is not None and namespaces.pidfd_alive(former.init):
            raise ContainerExists(f"a container {container} runs already; choose another id")
        if former is not None and former.init is None and self._is(former.create, pid):
            return former.range  # it had no answer, since a predecessor of ours ended
        chosen, name = self._choose(), ""
        if self._saved is not None:
            name = _name(pid, self._proc)
            self._save(name, container, chosen, None, None)
        self._add(_Reservation(name, container, chosen, os.dup(create)))
        return chosen

    def restore(self) -> None:
        """Go on with those of a predecessor that are held."""
        if self._saved is None:
            return
        for name, document in self._saved.all().items():
            try:
                container, init = str(document["container"]), document["init"]
                chosen = IdRange(*(int(each) for each in document["range"]))
                create = _reopen(name, self._proc)
                if init is None and create is None:
                    raise ValueError("never became a container")
                # One that is over is as good as any other that is.
                init_fd = None if init is None else _reopen(str(init), self._proc)
                if create is None and init_fd is None:
                    raise ValueError("its container is gone")
            except (LookupError, TypeError, ValueError) as error:
                _log.debug("range free meanwhile", reservation=name, reason=str(error))
                self._saved.remove(name)
                continue
            if create is None:
                assert init_fd is not None
                create = os.dup(init_fd)
            note = document.get("note")
            self._add(
                _Reservation(
                    name,
                    container,
                    chosen,
                    create,
                    init_fd,
                    note if isinstance(note, dict) else None,
                )
            )

    def bind(self, container: str, init: int) -> None:
        """Let a container's range live as long as its init; containers without one are fine."""
        reservation = self._by_id.get(container)
        if reservation is not None and reservation.init is None:
            if self._saved is not None:
                with contextlib.suppress(OSError):  # gone already, and its range soon
                    name = _name(namespaces.pidfd_pid(init, self._proc), self._proc)
                    self._save(
                        reservation.name, container, reservation.range, name, reservation.note
                    )
            reservation.init = os.dup(init)

    def _is(self, pidfd: int, pid: int) -> bool:
        try:
            return namespaces.pidfd_pid(pidfd, self._proc) == pid
        except OSError:
            return False

    def _add(self, reservation: _Reservation) -> None:
        self._last = reservation.range
        self._by_id[reservation.container] = reservation
        self._reservations.add(reservation)
        self._nursery.start_soon(self._watch, reservation, name=f"range of {reservation.container}")

    def note(self, container: str, note: Mapping[str, Any]) -> None:
        """Keep something beside a container's range; `notes` has it after a restart.

        To be called before the container is registered; its range must be taken.
        """
        reservation = self._by_id[container]
        reservation.note = note
        self._save(reservation.name, container, reservation.range, None, note)

    def notes(self) -> list[tuple[str, int | None, Mapping[str, Any]]]:
        """Containers with a note, the pid of the init of each, if it has one, and the note."""
        found = []
        for each in self._reservations:
            if each.note is not None:
                init = None
                with contextlib.suppress(OSError):
                    init = None if each.init is None else namespaces.pidfd_pid(each.init)
                found.append((each.container, init, each.note))
        return found

    def _save(
        self,
        name: str,
        container: str,
        chosen: IdRange,
        init: str | None,
        note: Mapping[str, Any] | None,
    ) -> None:
        if self._saved is not None:
            document = {"container": container, "range": list(chosen), "init": init, "note": note}
            self._saved.put(name, document)

    def _choose(self) -> IdRange:
        known = self._configured()
        try:
            return self._choose_from(known)
        except NoRangeLeft:
            pass
        # Some that a predecessor's containers had may be free by now. Looking takes a third of a
        # second on a host with 2000 processes: not each time, only before giving up.
        self._mapped_before = self._mapped_uids()
        try:
            return self._choose_from(known)
        except NoRangeLeft:
            raise NoRangeLeft(
                ranges.advice(
                    self._user,
                    f"all {len(known)} ranges of ids of user {self._user!r} are in use"
                    if known
                    else f"/etc/subuid and /etc/subgid have no range for user {self._user!r}",
                )
            ) from None

    def _choose_from(self, known: list[IdRange]) -> IdRange:
        holders: dict[IdRange, list[_Reservation]] = {}
        for each in self._reservations:
            holders.setdefault(each.range, []).append(each)

        # Asked of one after the other until one is free: of a thousand, that is mostly the first.
        def taken(candidate: IdRange) -> bool:
            return any(each.held() for each in holders.get(candidate, ())) or ranges.overlaps(
                candidate, self._mapped_before
            )

        return ranges.choose(known, taken, self._last)

    def _configured(self) -> list[IdRange]:
        # Read each time: what an administrator adds counts at once.
        names = {self._user}
        with contextlib.suppress(KeyError):  # subuid(5) does not ask for an account of that name
            names.add(str(pwd.getpwnam(self._user).pw_uid))
        found = [ranges.bases(ranges.parse_subids(_read(path), names)) for path in self._files]
        return ranges.pair(*found)

    def _mapped_uids(self) -> list[tuple[int, int]]:
        """Return ``(first uid, count)`` of what user namespaces on this host map, as of now."""
        own = _read(f"{self._proc}/self/uid_map")
        seen = {own, ""}
        for pid in _pids(self._proc):
            seen.add(_read(f"{self._proc}/{pid}/uid_map"))
        mapped = []
        for text in seen - {own, ""}:
            for line in text.splitlines():
                _inside, outside, count = (int(field) for field in line.split())
                mapped.append((outside, count))
        return mapped

    async def _watch(self, reservation: _Reservation) -> None:
        try:
            await trio.lowlevel.wait_readable(reservation.create)
            if reservation.init is not None:
                await trio.lowlevel.wait_readable(reservation.init)
            if self._saved is not None:  # not when it is we who end
                self._saved.remove(reservation.name)
        finally:
            self._reservations.discard(reservation)
            if self._by_id.get(reservation.container) is reservation:
                del self._by_id[reservation.container]
                for callback in self.on_free:
                    callback(reservation.container)
            os.close(reservation.create)
            if reservation.init is not None:
                os.close(reservation.init)
            _log.debug("range free", container=reservation.container)


def _name(pid: int, proc: str) -> str:
    """A process, as the name of a document: ``<pid>-<start>``."""
    return f"{pid}-{parse_task_stat(read_text(f'{proc}/{pid}/stat')).start_ticks}"


def _reopen(name: str, proc: str) -> int | None:
    """A pidfd of a process named so; None if it is gone. Raises ValueError for another name."""
    pid, start = (int(each) for each in name.split("-"))
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if is_running(pid, start, proc) and namespaces.pidfd_alive(pidfd):
        return pidfd
    os.close(pidfd)
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def _pids(proc: str) -> Iterable[str]:
    return [name for name in os.listdir(proc) if name.isdecimal()]
