"""The daemon's side of what keeps its descriptors: systemd, or the holder."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
from typing import TYPE_CHECKING, Protocol

import structlog

from sysfsd.errors import SysfsdError, UsageError
from sysfsd.handover import holder
from sysfsd.notify import notify
from sysfsd.scripts import START

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS = 5.0
_ATTEMPTS = 3
_ALIVE = json.dumps({"alive": True}).encode()
_FIRST = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)

_log = structlog.get_logger(__name__)


class Store(Protocol):
    """Keeps descriptors for a successor."""

    def take(self, name: str) -> int | None:
        """Return what a predecessor kept under a name, if it did; it is the caller's to close."""

    def keep(self, name: str, fd: int) -> None:
        """Keep a descriptor, which stays the caller's as well. Raises OSError if that fails."""

    def drop(self, name: str) -> None:
        """Keep what has that name no longer."""

    def alive(self) -> None:
        """Say that we don't hang; once every few seconds, in a thread. Raises ``SysfsdError``."""

    def leave(self) -> None:
        """Say that there will be no successor, or one that begins anew."""


class SystemdStore:
    """systemd's (``FileDescriptorStoreMax=``), and what a socket unit hands us."""

    def __init__(self) -> None:
        """Take what systemd has for us; raises ``UsageError`` if it did not start us."""
        if not os.environ.get("NOTIFY_SOCKET"):
            raise UsageError(
                "--fd-store is for a systemd unit with FileDescriptorStoreMax=; leave it out, and "
                "a process of ours keeps what must outlive the daemon"
            )
        self._taken = _from_systemd()

    def take(self, name: str) -> int | None:
        """See `Store`."""
        return self._taken.pop(name, None)

    def keep(self, name: str, fd: int) -> None:
        """See `Store`."""
        notify(f"FDSTORE=1\nFDNAME={name}", [fd])
        _wait_for_systemd()

    def drop(self, name: str) -> None:
        """See `Store`."""
        notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def alive(self) -> None:
        """See `Store`."""
        notify("WATCHDOG=1")

    def leave(self) -> None:
        """See `Store`. Whether there is a successor is for the unit to know (``ExecStopPost=``)."""

    def close(self) -> None:
        """Close what nobody took."""
        while self._taken:
            os.close(self._taken.popitem()[1])


class HolderStore:
    """A `holder` of the state directory, which is started unless there is one."""

    def __init__(self, private: str, state_dir: str) -> None:
        """Connect; ``private`` is a directory of ours alone. Raises ``SysfsdError``."""
        self._path = os.path.join(private, "holder")
        self._state_dir = state_dir
        self._child: int | None = None
        self._left = False
        self._kept: dict[str, int] = {}
        """What it has of us: those who have them close them."""
        self._socket, self._taken = self._open()

    def take(self, name: str) -> int | None:
        """See `Store`."""
        fd = self._taken.pop(name, None)
        if fd is not None:
            self._kept[name] = fd
        return fd

    def keep(self, name: str, fd: int) -> None:
        """See `Store`."""
        socket.send_fds(self._socket, [json.dumps({"keep": name}).encode()], [fd])
        if self._socket.recv(holder.PACKET_BYTES) != b"kept":
            raise OSError("the process that keeps descriptors has ended")
        self._kept[name] = fd

    def drop(self, name: str) -> None:
        """See `Store`."""
        self._kept.pop(name, None)
        self._say({"drop": name})

    def alive(self) -> None:
        """See `Store`. If nobody hears it, all is given to one that does, which takes a while."""
        try:
            self._socket.send(_ALIVE)
        except ConnectionError:
            if self._left:  # and it has gone since, while a thread was on its way here
                return
            self._socket.close()
            self._socket, theirs = self._open()
            for fd in theirs.values():  # it was not gone, and has all that we have
                os.close(fd)
            for name, fd in list(self._kept.items()):
                self.keep(name, fd)
            _log.warning("the process that keeps descriptors was gone: another one has them")

    def leave(self) -> None:
        """See `Store`."""
        self._left = True
        self._say({"leave": True})

    def close(self) -> None:
        """Close what nobody took, and the connection."""
        while self._taken:
            os.close(self._taken.popitem()[1])
        self._socket.close()

    def _say(self, message: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # it has ended: there is nobody to tell
            self._socket.send(json.dumps(message).encode())

    def _open(self) -> tuple[socket.socket, dict[str, int]]:
        """Connect to a holder, started if there is none, and return what it has, too."""
        for _ in range(_ATTEMPTS):
            try:
                connection = self._connect()
            except OSError:
                try:
                    self._start()
                    connection = self._connect()
                except OSError as error:
                    raise SysfsdError(f"no process to keep descriptors: {error}") from None
            try:
                return connection, _welcomed(connection)
            except ConnectionError:  # it was about to end
                connection.close()
            except (OSError, ValueError, KeyError) as error:
                connection.close()
                raise SysfsdError(f"the process that keeps descriptors: {error!r}") from None
        raise SysfsdError("the process that keeps descriptors ends again and again")

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _forget_former(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._child, os.WNOHANG)

    def _start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self._path)
            listener.listen(1)
            # A session of its own: what is sent to our group or terminal is not for it.
            self._forget_former()
            self._child = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", START, "holder", self._state_dir],
                {"PATH": os.defpath},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 1),
                    (os.POSIX_SPAWN_DUP2, listener.fileno(), holder.LISTENER),
                ],
                setsid=True,
            )


def _welcomed(connection: socket.socket) -> dict[str, int]:
    """What a holder has, which it says first; raises ``ConnectionError`` when it ends instead."""
    connection.settimeout(_SECONDS)
    packet, fds, _flags, _ = socket.recv_fds(
        connection, holder.PACKET_BYTES, holder.MAX_DESCRIPTORS
    )
    if not packet:
        raise ConnectionResetError
    for fd in fds:
        os.set_inheritable(fd, False)
    return dict(zip(json.loads(packet)["names"], fds, strict=True))


@contextlib.contextmanager
def opened(private: str, state_dir: str, *, systemd: bool) -> Iterator[Store]:
    """Yield systemd's store, or a holder's."""
    store = SystemdStore() if systemd else HolderStore(private, state_dir)
    try:
        yield store
    finally:
        store.close()


def forget(store: Store, *names: str) -> None:
    """Let go of what a predecessor kept."""
    for name in names:
        fd = store.take(name)
        if fd is not None:
            os.close(fd)
            store.drop(name)


def _from_systemd() -> dict[str, int]:
    """What systemd started us with, by name (sd_listen_fds(3)); of several with one, the last."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return {}
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, int] = {}
    for fd, name in zip(range(_FIRST, _FIRST + count), names, strict=False):
        os.set_inheritable(fd, False)
        if name in found:
            os.close(found[name])
        found[name] = fd
    return found


def _wait_for_systemd() -> None:
    """Wait until it has read what we sent it (sd_notify_barrier(3))."""
    ours, theirs = os.pipe()
    try:
        try:
            notify("BARRIER=1", [theirs])
        finally:
            os.close(theirs)
        poller = select.poll()
        poller.register(ours, 0)
        poller.poll(_SECONDS * 1000)
    finally:
        os.close(ours)
