"""The holder: a process that keeps a daemon's descriptors for the next one.

It is started by the first daemon of a state directory, outlives it however that ends, and hands all
it has to whoever connects. It also watches over the daemon: one that says nothing for
`SILENCE_SECONDS` hangs, and is killed, since to hang is worse than to be gone. When none has been
there and well for `PATIENCE_SECONDS`, it takes the containers' views away, so that they get the
kernel's own files instead of waiting for ever, and ends. A daemon that stops in good order ends it,
too.

A packet (``SOCK_SEQPACKET``) is a JSON object; descriptors ride along. To the daemon, once, when it
connects: ``{"names": [...]}``. From the daemon: ``{"keep": NAME}``, ``{"drop": NAME}``,
``{"alive": true}``, ``{"leave": true}``.

It is idle for as long as nothing happens: standard library only, and little of that.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

from sysfsd.scripts import START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SILENCE_SECONDS = 15.0
"""A daemon says every few seconds that it is alive (`store.HolderStore.alive`)."""

PATIENCE_SECONDS = 10.0
"""For so long a container's reads wait for a daemon to come back."""

MAX_DESCRIPTORS = 16
PACKET_BYTES = 4096

LISTENER = 3
"""The descriptor at which the holder is started to listen."""

_SO_PEERPIDFD = 77  # asm-generic/socket.h, since Linux 6.5
_GIVING_UP_SECONDS = 30.0
_AGAIN_SECONDS = 0.2

_OTHERS_SECONDS = 15.0
"""Whoever has the lock for so long, and says nothing to us, is well with another holder."""


class Holder:
    """The state of one holder."""

    def __init__(self, listener: socket.socket, state_dir: str) -> None:
        self._listener = listener
        self._state_dir = state_dir
        self._kept: dict[str, int] = {}
        self._daemon: socket.socket | None = None
        self._heard = time.monotonic()
        """When a daemon was last heard of."""
        self._well = self._heard
        """From when on containers wait: since one last said that it is alive, or was killed after
        it had. That one comes back and fails is no answer to them."""
        self._was_well = False
        """Whether the one that is connected has said so."""
        self._not_before = self._heard
        """When to try again to give up."""
        self._killed = 0
        """The pid of the daemon that we killed last."""
        self._owner, self._owned_since = 0, self._heard
        """Who had the lock when we last tried, and since when."""

    def run(self) -> None:
        """Keep what is there until there is nobody to keep it for."""
        while True:
            poller = select.poll()
            poller.register(self._listener, select.POLLIN)
            if self._daemon is not None:
                poller.register(self._daemon, select.POLLIN)
            if self._daemon is None:
                end = max(self._well + PATIENCE_SECONDS, self._not_before)
            else:
                end = self._heard + SILENCE_SECONDS
            left = max(0.0, end - time.monotonic())
            ready = dict(poller.poll(left * 1000))
            # What the one before said last counts, before the next is told what there is.
            if self._daemon is not None and self._daemon.fileno() in ready:
                if self._listen_to(self._daemon):
                    return
            elif self._listener.fileno() in ready:
                self._welcome()
            elif not ready and end <= time.monotonic():
                if self._daemon is not None:
                    self._kill(self._daemon)
                elif self._gave_up():
                    return
                else:
                    self._not_before = time.monotonic() + _AGAIN_SECONDS

    def _welcome(self) -> None:
        """Hand all to the next daemon. Whoever was there before is gone: it held a lock."""
        connection, _ = self._listener.accept()
        uid = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8]
        if int.from_bytes(uid, sys.byteorder) != 0:
            connection.close()
            return
        if self._daemon is not None:
            self._daemon.close()
        self._daemon, self._heard, self._was_well = connection, time.monotonic(), False
        self._killed = self._owner = 0
        packet = json.dumps({"names": list(self._kept)}).encode()
        try:
            socket.send_fds(connection, [packet], list(self._kept.values()))
        except OSError:  # gone again
            self._lose()

    def _listen_to(self, daemon: socket.socket) -> bool:
        """Take one packet; returns whether that was the end of it all."""
        fds: list[int] = []
        try:
            packet, fds = _receive(daemon)
            if not packet:
                self._lose()
                return False
            self._heard = time.monotonic()
            message = json.loads(packet)
            if isinstance(message, dict) and "alive" in message:
                self._well, self._was_well = self._heard, True
            return self._obey(message, fds)
        except (OSError, ValueError, TypeError, RecursionError):
            self._lose()
            return False
        finally:
            for fd in fds:
                os.close(fd)

    def _obey(self, message: Any, fds: list[int]) -> bool:
        if not isinstance(message, dict):
            raise ValueError("not a message")
        if "keep" in message and len(fds) == 1 and len(self._kept) < MAX_DESCRIPTORS:
            name = str(message["keep"])
            self._drop(name)
            self._kept[name] = fds.pop()
            assert self._daemon is not None
            self._daemon.send(b"kept")
        elif "drop" in message:
            self._drop(str(message["drop"]))
        return "leave" in message

    def _drop(self, name: str) -> None:
        fd = self._kept.pop(name, None)
        if fd is not None:
            os.close(fd)

    def _lose(self) -> None:
        if self._daemon is not None:
            self._daemon.close()
        self._daemon, self._heard = None, time.monotonic()

    def _kill(self, daemon: socket.socket) -> None:
        print(f"sysfsd: the daemon hangs: killed after {SILENCE_SECONDS:.0f} s", file=sys.stderr)
        try:
            self._killed = _pid_of(daemon)
            pidfd = _peer(daemon)
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
        except OSError as error:
            print(f"sysfsd: it cannot be killed: {error}", file=sys.stderr)
        if self._was_well:
            self._well = time.monotonic()
        self._lose()

    def _gave_up(self) -> bool:
        """Let the containers have the kernel's files, while callers wait for us: none may fail.

        Unless a daemon has the lock of the directory: one that we lost sight of, one that is about
        to connect, or one that has failed and is about to end.
        """
        if not self._kept:
            return True
        path = os.path.join(self._state_dir, "lock")
        try:
            lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # there is no such directory any more
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._detach_all()
        except BlockingIOError:
            now, owner = time.monotonic(), _pid_in(lock)
            if owner == self._killed != 0:
                # It waits in the kernel, with the connections that we have, too: whoever asked it
                # would wait for ever.
                self._detach_all("--abort")
                return True
            if owner != self._owner:
                self._owner, self._owned_since = owner, now
            return now - self._owned_since >= _OTHERS_SECONDS
        finally:
            os.close(lock)
        return True

    def _detach_all(self, *how: str) -> None:
        print(
            f"sysfsd: no daemon for {PATIENCE_SECONDS:.0f} s: containers get the kernel's files",
            file=sys.stderr,
        )
        command = [sys.executable, "-I", "-S", START, "cli", "detach", "--all", "--offline"]
        try:
            subprocess.run(
                [*command, "--locked", *how, "--state-dir", self._state_dir],
                check=False,
                timeout=_GIVING_UP_SECONDS,
            )
        except (OSError, subprocess.SubprocessError) as error:
            print(f"sysfsd: {error}", file=sys.stderr)


def _pid_in(lock: int) -> int:
    try:
        return int(os.pread(lock, 32, 0))
    except ValueError:  # it has it since just now
        return -1


def _pid_of(daemon: socket.socket) -> int:
    pid = daemon.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4]
    return int.from_bytes(pid, sys.byteorder)


def _peer(daemon: socket.socket) -> int:
    try:
        return daemon.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # before Linux 6.5: it lives, because its end of the connection is open
        return os.pidfd_open(_pid_of(daemon))


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    packet, ancillary, _flags, _ = connection.recvmsg(
        PACKET_BYTES,
        socket.CMSG_SPACE(MAX_DESCRIPTORS * fds.itemsize),
        socket.MSG_CMSG_CLOEXEC,
    )
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return packet, list(fds)


def main(arguments: list[str] | None = None) -> int:
    """Be the holder of a state directory; listens at descriptor `LISTENER`."""
    (state_dir,) = sys.argv[1:] if arguments is None else arguments
    # A terminal's Ctrl-C and a hangup are for the daemon.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(LISTENER, False)
    with socket.socket(fileno=LISTENER) as listener:
        Holder(listener, state_dir).run()
    return 0
