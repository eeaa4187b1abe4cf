"""Asking the daemon, synchronously: for the hook, the runtime and the command line.

On the hook's path: standard library only.
"""

from __future__ import annotations

import _socket as socket  # without the class on top, which brings selectors and enum: 8 ms
import os
import struct
import time

from sysfsd.control import protocol
from sysfsd.errors import DaemonUnavailable, InvalidRequest, PeerDenied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import TypeVar

    from sysfsd.control.protocol import Message

    T = TypeVar("T")

DEFAULT_TIMEOUT = 5.0
"""Seconds one request may take, from sending it to the end of its reply."""

_DAEMONS = 4
"""So many are asked, one after the other, as each ends."""


class Client:
    """One connection to the daemon; a context manager.

    Raises ``DaemonUnavailable`` when nobody listens or the answer takes longer than ``timeout``
    seconds, and whatever error the daemon names in its reply.
    """

    def __init__(self, path: str, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout
        self._pending = b""
        self._socket = self._connect()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def call(self, method: str, parameters: Message, fds: Sequence[int] = ()) -> Message:
        """Send one request, with descriptors riding along, and return its result.

        To a successor as well, if the daemon ends before it has answered: doing any of our requests
        twice comes to the same.
        """
        deadline = time.monotonic() + self._timeout
        data = protocol.request(method, parameters)
        for left in reversed(range(_DAEMONS)):
            try:
                sent = self._socket.sendmsg([data], _rights(fds)) if fds else 0
                self._socket.sendall(data[sent:])
                return protocol.parse_reply(self._read_line(deadline))
            except OSError as error:  # a time-out is one, too
                if left and isinstance(error, ConnectionError):
                    self._socket.close()
                    self._pending = b""
                    self._socket = self._connect()
                    continue
                raise self._gone(method, error.strerror or str(error)) from None
        raise AssertionError

    def with_daemon(self, work: Callable[[int, Message], T]) -> T:
        """Do something with a pidfd of the daemon, and what it says of itself (``hello``).

        Once more with its successor's if it has ended: then system calls say ESRCH.

        Not with SO_PEERPIDFD's: the process that listened first is dead, or systemd, when this one
        goes on with its socket (unix(7)). The daemon says its pid, and it was nobody else's at that
        moment if the connection, whose other end it alone has, still stands.
        """
        for left in reversed(range(_DAEMONS)):
            hello = self.call("hello", {})
            try:
                pidfd = os.pidfd_open(hello["pid"])
                try:
                    if not self._has_ended():
                        return work(pidfd, hello)
                finally:
                    os.close(pidfd)
            except ProcessLookupError:
                if not left:
                    raise
        raise self._gone("hello", "it ends again and again")

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # Not settimeout(), which makes connect(2) fail at once (EAGAIN) while many containers start
        # together and the daemon's backlog is full; this way it waits its turn (unix(7)).
        connection.setsockopt(
            socket.SOL_SOCKET,
            socket.SO_SNDTIMEO,
            struct.pack("@ll", int(self._timeout), int(self._timeout % 1 * 1_000_000)),
        )
        try:
            connection.connect(self.path)
        except PermissionError:
            connection.close()
            raise PeerDenied(f"only root may talk to the sysfsd daemon at {self.path}") from None
        except OSError as error:
            connection.close()
            reason = error.strerror or str(error)
            raise DaemonUnavailable(
                f"the sysfsd daemon does not answer at {self.path} ({reason}); "
                "start it with: systemctl start sysfsd (or: sysfsd serve)"
            ) from None
        return connection

    def _has_ended(self) -> bool:
        self._socket.setblocking(False)
        try:
            return not self._pending and not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self._socket.setblocking(True)

    def _gone(self, method: str, reason: str) -> DaemonUnavailable:
        return DaemonUnavailable(
            f"the sysfsd daemon at {self.path} did not answer {method!r} ({reason}); "
            "look at its log, or restart it: systemctl restart sysfsd"
        )

    def _read_line(self, deadline: float) -> bytes:
        while b"\n" not in self._pending:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionError("it closed the connection")
            self._pending += chunk
            if len(self._pending) > protocol.LINE_LIMIT:
                raise InvalidRequest("the daemon's answer is too long")
        line, _, self._pending = self._pending.partition(b"\n")
        return line


def _rights(fds: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """The ancillary data that takes descriptors along (unix(7))."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))]
