"""What the administrator decided about sysctls, and what of the host's was raised for containers.

``max`` raises the host's value to the largest that a running container wrote, and lowers it again
when the last that needed it is gone. What was raised, from where and for whom, is in a journal that
is written before the host's file is, so that a successor of a killed daemon knows it as well. A
value that is not one of ours any more is the administrator's, and left alone.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from sysfsd.kernel.procfs import boot_id, is_running, read_fd, read_text
from sysfsd.state import replace_file
from sysfsd.sysctls.policy import FORBID, MAX, problem
from sysfsd.sysctls.table import SYSCTLS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sysfsd.containers.record import ContainerRecord
    from sysfsd.log import RateLimit
    from sysfsd.sysctls.values import Value

JOURNAL = "raised.json"
"""Its name in the daemon's state directory."""

_LIMIT = 1 << 20

_log = structlog.get_logger(__name__)


class Raised(NamedTuple):
    """One of the host's values that containers have raised."""

    original: int
    ours: tuple[int, ...]
    """What the host's value is; or, as long as a write is not known to be done, what it was and
    what it is to be: a kill may come between the journal and the host's file."""
    wanted: Mapping[str, int]
    """What each container wrote, by ``<pid>-<start>`` of its init."""

    @property
    def target(self) -> int:
        """What the host's value should be."""
        return max([self.original, *self.wanted.values()])


def wish(before: Raised | None, current: int, key: str, number: int) -> Raised:
    """Add a container's wish, or change it; pure."""
    if before is None or current not in before.ours:
        before = Raised(current, (current,), {})
    after = before._replace(wanted={**before.wanted, key: number})
    return after._replace(ours=(current, after.target))


def forget(before: Raised, current: int, *keys: str) -> Raised | None:
    """Take containers' wishes away; pure. None if the value is the administrator's by now."""
    if current not in before.ours:
        return None
    wanted = {each: number for each, number in before.wanted.items() if each not in keys}
    after = before._replace(wanted=wanted)
    return after._replace(ours=(current, after.target))


class HostSysctls:
    """The decisions about all nodes, and the journal. Raises nothing: see the log."""

    def __init__(
        self, policies: Mapping[str, str], path: str, limit: RateLimit, *, root: str = "/"
    ) -> None:
        """Go on where a predecessor stopped; `policies` are by the paths of nodes."""
        self._policies = policies
        self._path = path
        self._limit = limit
        self._root = root
        self._boot = boot_id()
        self._raised = self._load()
        gone = self._gone()
        for each in list(self._raised):
            self._let_go(each, gone)

    def allows(self, path: str) -> bool:
        """Whether containers may write it at all."""
        return self._policies.get(path) != FORBID

    def written(self, record: ContainerRecord, path: str, value: Value) -> None:
        """Raise the host's value, if that is to follow what containers write."""
        if self._policies.get(path) != MAX or isinstance(value, str):
            return
        before = self._raised.get(path)
        try:
            current = self._read(path)
            after = wish(before, current, _key(record), value[0])
            try:
                self._begin(path, current, after)
            except OSError:
                # What the host does not take must not be in the way of what others want.
                self._put(path, before)
                self._save()
                raise
            self._end(path, after)
        except (OSError, ValueError) as error:
            self._complain(path, error)

    def release(self, record: ContainerRecord) -> None:
        """Lower what was raised for a container that is gone.

        And for those that went unnoticed: of one that is released by hand nobody says when it ends.
        """
        gone = {_key(record), *self._gone()}
        for path, raised in list(self._raised.items()):
            if not gone.isdisjoint(raised.wanted) or len(raised.ours) > 1:
                self._let_go(path, gone)

    def _gone(self) -> set[str]:
        """Return the containers whose inits have ended."""
        keys = {key for raised in self._raised.values() for key in raised.wanted}
        return {key for key in keys if not is_running(*_init(key))}

    def _let_go(self, path: str, gone: set[str]) -> None:
        try:
            current = self._read(path)
            after = forget(self._raised[path], current, *gone)
            if after is None:
                self._put(path, None)
                self._save()
            else:
                self._begin(path, current, after)
                self._end(path, after)
        except (OSError, ValueError) as error:
            self._complain(path, error)  # tried again when the next container goes

    def _begin(self, path: str, current: int, after: Raised) -> None:
        self._put(path, after)
        if after.target != current:
            self._save()
            self._write(path, after.target)
            suppressed = self._limit.passes(("raised", path))
            if suppressed is not None:
                _log.info(
                    "host's sysctl changed for containers",
                    path=path,
                    value=after.target,
                    suppressed=suppressed,
                )

    def _end(self, path: str, after: Raised) -> None:
        # Read again, because the kernel may round. From now on, what was before is not ours: the
        # administrator may want just that back.
        self._put(path, after._replace(ours=(self._read(path),)) if after.wanted else None)
        self._save()

    def _put(self, path: str, raised: Raised | None) -> None:
        if raised is None:
            self._raised.pop(path, None)
        else:
            self._raised[path] = raised

    def _read(self, path: str) -> int:
        return int(read_text(os.path.join(self._root, path)))

    def _write(self, path: str, number: int) -> None:
        flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(os.path.join(self._root, path), flags)
        try:
            os.write(fd, b"%d\n" % number)
        finally:
            os.close(fd)

    def _load(self) -> dict[str, Raised]:
        try:
            raised = read_journal(self._path, self._boot)
        except (OSError, ValueError) as error:
            _log.error(
                "what was raised of the host's sysctls is not known any more",
                file=self._path,
                error=str(error),
            )
            return {}
        # Nothing else of the host's is ever written, whoever wrote that file.
        return {
            node.path: raised[node.path]
            for node in SYSCTLS
            if node.path in raised and problem(node, MAX) is None
        }

    def _save(self) -> None:
        replace_file(self._path, encode(self._raised, self._boot))

    def _complain(self, path: str, error: Exception) -> None:
        suppressed = self._limit.passes(("host", path))
        if suppressed is not None:
            _log.warning(
                "host's sysctl stays as it is", path=path, error=str(error), suppressed=suppressed
            )


def read_journal(path: str, boot: str) -> dict[str, Raised]:
    """Return what a daemon raised that keeps its journal there: nothing, if there is none.

    `boot` is the id of this boot. Raises ``OSError``, or ``ValueError`` for another document.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    try:
        return decode(read_fd(fd, _LIMIT), boot)
    finally:
        os.close(fd)


def encode(raised: Mapping[str, Raised], boot: str) -> bytes:
    """Write the journal; `boot` is the id of this boot: sysctls do not outlive it."""
    entries = {path: each._asdict() for path, each in raised.items()}
    return json.dumps({"boot": boot, "raised": entries}).encode() + b"\n"


def decode(data: bytes, boot: str) -> dict[str, Raised]:
    """Read the journal; raises ``ValueError`` for any other. Nothing is left of another boot."""
    try:
        document: Any = json.loads(data)
        if document["boot"] != boot:
            return {}
        return {
            str(path): Raised(
                int(each["original"]),
                tuple(int(number) for number in each["ours"]),
                {_checked(key): int(number) for key, number in each["wanted"].items()},
            )
            for path, each in document["raised"].items()
        }
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not what we write: {error!r}") from None


def _checked(key: str) -> str:
    _init(key)
    return key


def _init(key: str) -> tuple[int, int]:
    """Return pid and start of a container's init; raises ``ValueError`` if it is no key of ours."""
    pid, _, start = key.partition("-")
    if not pid.isdecimal() or not start.isdecimal():
        raise ValueError(f"{key!r} names no process")
    return int(pid), int(start)


def _key(record: ContainerRecord) -> str:
    return f"{record.pid}-{record.start_ticks}"
