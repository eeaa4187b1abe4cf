"""The daemon's side of the control socket. ``protocol`` says what is spoken."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import structlog
import trio

from sysfsd.control import protocol
from sysfsd.errors import DaemonUnavailable, InvalidRequest, PeerDenied, SysfsdError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from sysfsd.control.protocol import Message
    from sysfsd.handover.store import Store
    from sysfsd.log import RateLimit

    Method: TypeAlias = Callable[[Message, Sequence[int]], Awaitable[Message]]

MAX_CONNECTIONS = 128
"""More wait in the listening socket's queue."""

MAX_FDS = 4
"""Descriptors that one request may bring."""

REQUEST_SECONDS = 5.0
"""From a request's first byte to the end of its reply."""

IDLE_SECONDS = 60.0
"""For how long a connection may say nothing."""

_ACCEPT_PAUSE = 0.1

_CREDENTIALS = struct.Struct("=iII")
_CHUNK = 65536

_log = structlog.get_logger(__name__)


@contextlib.contextmanager
def listening(path: str, store: Store, *, keep: bool) -> Iterator[socket.socket]:
    """Listen at a path, for root only, and leave the socket to a successor. May raise ``OSError``.

    That of a predecessor, or of systemd, whose queue may have clients in it that wait for us; else
    a new one in place of whatever is there. Whoever calls this has made sure that the predecessor
    is gone. With ``keep`` a new one is put into the store, as ``control``.
    """
    listener = _former_listener(path, store)
    if listener is None:
        listener = _new_listener(path)
        if keep:
            store.keep("control", listener.fileno())
    with listener:
        # Once more, so that clients are told who we are (SO_PEERPIDFD; unix_listen).
        listener.listen(MAX_CONNECTIONS)
        yield listener


def stop_listening(path: str) -> None:
    """Have nobody find us any more: clients are to be told at once that we are gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _former_listener(path: str, store: Store) -> socket.socket | None:
    fd = store.take("control")
    if fd is None:
        return None
    listener = socket.socket(fileno=fd)
    listener.setblocking(True)
    if listener.family == socket.AF_UNIX and listener.getsockname() == path:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                return listener
    listener.close()
    return None


def _new_listener(path: str) -> socket.socket:
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former = os.umask(0o177)
    try:
        listener.bind(path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(former)
    return listener


@dataclass(slots=True)
class _Timing:
    """How long requests for one method took, to the end of making the reply."""

    requests: int = 0
    total_ns: int = 0
    longest_ns: int = 0

    def add(self, nanoseconds: int) -> None:
        self.requests += 1
        self.total_ns += nanoseconds
        self.longest_ns = max(self.longest_ns, nanoseconds)

    def as_dict(self) -> dict[str, float]:
        return {
            "requests": self.requests,
            "mean_ms": round(self.total_ns / self.requests / 1e6, 3),
            "longest_ms": round(self.longest_ns / 1e6, 3),
        }


def _clear(path: str) -> None:
    """Make room for a socket; raises ``SysfsdError`` if what is there is not a dead daemon's."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise SysfsdError(f"{path} is there and is no socket; choose another --control")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            client.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except BlockingIOError:  # its queue is full
        pass
    raise SysfsdError(f"another sysfsd listens at {path}; stop it, or choose another --control")


class ControlServer:
    """Answers requests, several connections at a time and one request after another on each."""

    def __init__(self, methods: Mapping[str, Method], limit: RateLimit) -> None:
        self._methods = methods
        self._limit = limit
        self._room = trio.CapacityLimiter(MAX_CONNECTIONS)
        self._timings = {name: _Timing() for name in methods}
        self.connections = 0
        """Connections that are open."""
        self.requests = 0
        self.errors = 0
        self.denied = 0

    def stats(self) -> dict[str, object]:
        """What was asked so far."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "denied": self.denied,
            "connections": self.connections,
            "methods": {
                name: timing.as_dict() for name, timing in self._timings.items() if timing.requests
            },
        }

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections until cancelled."""
        accepting = trio.socket.from_stdlib_socket(listener)
        async with trio.open_nursery() as nursery:
            while True:
                token = object()
                await self._room.acquire_on_behalf_of(token)
                try:
                    connection, _ = await accepting.accept()
                except OSError as error:
                    self._room.release_on_behalf_of(token)
                    # No descriptors left, or a peer that changed its mind: neither ends us.
                    if self._limit.passes("accept") is not None:
                        _log.warning("a control connection failed", error=str(error))
                    await trio.sleep(_ACCEPT_PAUSE)
                    continue
                except BaseException:
                    self._room.release_on_behalf_of(token)
                    raise
                nursery.start_soon(self._converse, connection, token)

    async def _converse(self, connection: trio.socket.SocketType, token: object) -> None:
        self.connections += 1
        try:
            with connection:
                await _Conversation(connection, self).run()
        except (OSError, trio.BrokenResourceError):
            pass  # the peer went away
        finally:
            self.connections -= 1
            self._room.release_on_behalf_of(token)

    def admits(self, connection: trio.socket.SocketType) -> bool:
        """Whether the peer is root. The socket's mode says so already, unless it was passed on."""
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        pid, uid, _gid = _CREDENTIALS.unpack(credentials)
        if uid == 0:
            return True
        self.denied += 1
        suppressed = self._limit.passes("denied")
        if suppressed is not None:
            _log.warning("control peer refused", pid=pid, uid=uid, suppressed=suppressed)
        return False

    async def answer(self, line: bytes, fds: Sequence[int]) -> bytes:
        """Carry one request out; whatever happens, there is a reply."""
        self.requests += 1
        started, name = time.perf_counter_ns(), ""
        try:
            name, parameters = protocol.parse_request(line)
            method = self._methods.get(name)
            if method is None:
                raise InvalidRequest(f"no method {name[:100]!r}")
            return protocol.result(await method(parameters, fds))
        except SysfsdError as error:
            self.errors += 1
            return protocol.failure(error)
        except Exception as error:  # noqa: BLE001 - a bug answers, too, and the daemon lives
            self.errors += 1
            _log.error("control request failed", exc_info=error)
            return protocol.failure(SysfsdError(f"internal error: {error!r}; see sysfsd's log"))
        finally:
            if name in self._timings:
                self._timings[name].add(time.perf_counter_ns() - started)


class _Conversation:
    """One connection: lines in, lines out, and the descriptors that came with the line."""

    def __init__(self, connection: trio.socket.SocketType, server: ControlServer) -> None:
        self._connection = connection
        self._server = server
        self._buffer = bytearray()
        self._fds: list[int] = []

    async def run(self) -> None:
        try:
            if not self._server.admits(self._connection):
                await self._refuse(PeerDenied("only root may talk to the sysfsd daemon"))
                return
            while await self._one_request():
                pass
        finally:
            self._close_fds()

    async def _one_request(self) -> bool:
        with trio.move_on_after(IDLE_SECONDS):
            if not self._buffer and not await self._receive():
                return False
        if not self._buffer:
            return False
        with trio.move_on_after(REQUEST_SECONDS):
            try:
                line = await self._line()
            except InvalidRequest as error:
                await self._refuse(error)
                return False
            if line is None:
                return False
            try:
                reply = await self._server.answer(line, self._fds)
            finally:
                self._close_fds()
            await self._send(reply)
            return True
        with trio.move_on_after(1):
            await self._refuse(
                DaemonUnavailable(f"the request was not done within {REQUEST_SECONDS:.0f} s")
            )
        return False

    async def _line(self) -> bytes | None:
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if len(line) >= protocol.LINE_LIMIT:
                raise InvalidRequest(f"a request is longer than {protocol.LINE_LIMIT} bytes")
            if newline:
                self._buffer = rest
                return bytes(line)
            if not await self._receive():
                return None

    async def _receive(self) -> bool:
        data, ancillary, flags, _ = await self._connection.recvmsg(
            _CHUNK, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                count = len(payload) // 4
                self._fds += struct.unpack(f"={count}i", payload[: count * 4])
        self._buffer += data
        if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            await self._refuse(InvalidRequest(f"more than {MAX_FDS} descriptors in one request"))
            return False
        return bool(data)

    async def _refuse(self, error: SysfsdError) -> None:
        self._server.errors += 1
        await self._send(protocol.failure(error))
        # Read what is left: closing with bytes unread would reset the connection, and the peer
        # would not see why.
        self._connection.shutdown(socket.SHUT_WR)
        with trio.move_on_after(1):
            while await self._connection.recv(_CHUNK):
                pass

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self._connection.send(view) :]

    def _close_fds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
