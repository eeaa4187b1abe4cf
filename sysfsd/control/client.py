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
    from collections.abc import Sequence
    from types import TracebackType

    from sysfsd.control.protocol import Message

DEFAULT_TIMEOUT = 5.0
"""Seconds one request may take, from sending it to the end of its reply."""

_SO_PEERPIDFD = 77  # asm-generic/socket.h, since Linux 6.5


class Client:
    """One connection to the daemon; a context manager.

    Raises ``DaemonUnavailable`` when nobody listens or the answer takes longer than ``timeout``
    seconds, and whatever error the daemon names in its reply.
    """

    def __init__(self, path: str, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout
        self._pending = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # Not settimeout(), which makes connect(2) fail at once (EAGAIN) while many containers start
        # together and the daemon's backlog is full; this way it waits its turn (unix(7)).
        self._socket.setsockopt(
            socket.SOL_SOCKET,
            socket.SO_SNDTIMEO,
            struct.pack("@ll", int(timeout), int(timeout % 1 * 1_000_000)),
        )
        try:
            self._socket.connect(path)
        except PermissionError:
            self._socket.close()
            raise PeerDenied(f"only root may talk to the sysfsd daemon at {path}") from None
        except OSError as error:
            self._socket.close()
            reason = error.strerror or str(error)
            raise DaemonUnavailable(
                f"the sysfsd daemon does not answer at {path} ({reason}); "
                "start it with: systemctl start sysfsd (or: sysfsd serve)"
            ) from None

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
        """Send one request, with descriptors riding along, and return its result."""
        deadline = time.monotonic() + self._timeout
        data = protocol.request(method, parameters)
        try:
            sent = self._socket.sendmsg([data], _rights(fds)) if fds else 0
            self._socket.sendall(data[sent:])
            line = self._read_line(deadline)
        except OSError as error:  # a time-out is one, too
            reason = error.strerror or str(error)
            raise DaemonUnavailable(
                f"the sysfsd daemon at {self.path} did not answer {method!r} ({reason}); "
                "look at its log, or restart it: systemctl restart sysfsd"
            ) from None
        return protocol.parse_reply(line)

    def daemon_pidfd(self) -> int:
        """A pidfd of the daemon: the process that listens at the other end (unix(7))."""
        try:
            return self._socket.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError:
            # Before Linux 6.5 only the number is known. It is the daemon's as long as the
            # connection stands, and that is asked right after.
            credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pidfd = os.pidfd_open(int.from_bytes(credentials[:4], "little"))
            try:
                self.call("hello", {})
            except BaseException:
                os.close(pidfd)
                raise
            return pidfd

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
