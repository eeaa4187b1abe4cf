"""``sysfsd serve`` of the tests' own, from the sources, with everything of it in one directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from sysfsd.control.client import Client
from sysfsd.errors import SysfsdError
from tests.support.wait import patient, until
from tests.support.watched import watched

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SYSFSD = [sys.executable, "-m", "sysfsd.cli"]
_SOURCES = Path(__file__).parent.parent.parent


@dataclass
class Serving:
    """A running daemon."""

    process: subprocess.Popen[bytes]
    mountpoint: Path
    control: str
    state_dir: Path
    log: Path

    @property
    def containers(self) -> Path:
        return self.mountpoint / "containers"

    def call(self, method: str, *fds: int, **parameters: Any) -> dict[str, Any]:
        """Ask it once."""
        with Client(self.control) as client:
            return client.call(method, parameters, fds)

    def register(self, container: str, pid: int) -> dict[str, Any]:
        """Register a process as a container's init."""
        pidfd = os.pidfd_open(pid)
        try:
            return self.call("register", pidfd, id=container)
        finally:
            os.close(pidfd)

    def ids(self) -> list[str]:
        """Ids of the registered containers."""
        return [each["id"] for each in self.call("list")["containers"]]

    def events(self) -> list[dict[str, Any]]:
        """Its log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def kill(self) -> None:
        """SIGKILL it, and leave everything to the next."""
        self.process.kill()
        self.process.wait()

    def holder(self) -> psutil.Process | None:
        """The process that keeps its connections over a restart."""
        for child in psutil.Process(self.process.pid).children():
            if child.status() != psutil.STATUS_ZOMBIE and "holder" in child.cmdline():
                return child
        return None

    def kill_with_holder(self) -> None:
        """SIGKILL it, and the process that would keep its connections.

        The holder goes first, and is gone to its last file, so that with the daemon the
        connections are dead: who asks while they die gets ECONNABORTED, who comes later ENOTCONN.
        The daemon is stopped meanwhile: it would start another.
        """
        holder = self.holder()
        assert holder is not None
        self.process.send_signal(signal.SIGSTOP)
        # Its first thread: another may wait for an answer from our own mount.
        first = psutil.Process(self.process.pid)
        until(lambda: first.status() == psutil.STATUS_STOPPED, "the daemon to stand still")
        holder.kill()
        # It has one thread, and nobody who takes note of its end.
        until(lambda: holder.status() == psutil.STATUS_ZOMBIE, "the holder's end")
        self.kill()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(patient(20))


def sysfsd(*arguments: str, control: str = "/nowhere") -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*SYSFSD, *arguments],
        env=os.environ | {"SYSFSD_CONTROL": control},
        cwd=_SOURCES,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(30),
    )


@contextmanager
def started(
    arguments: Sequence[str], log: Path, prefix: Sequence[str] = (), sources: Path = _SOURCES
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the background, logging to a file; it is killed if it does not stop."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*prefix, *SYSFSD, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=sources,
        )
    try:
        with watched(process.pid, log):
            yield process
    finally:
        process.terminate()
        try:
            process.wait(patient(20))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def serving(
    directory: Path, *arguments: str, own_mounts: bool = False, sources: Path = _SOURCES
) -> Iterator[Serving]:
    """Run ``sysfsd serve`` in a directory, on request in a mount namespace of its own."""
    directory.chmod(0o711)
    mountpoint, state, log = directory / "mount", directory / "state", directory / "log"
    control = str(state / "control.sock")
    options = ["--mountpoint", str(mountpoint), "--control", control, "--state-dir", str(state)]
    prefix = ["unshare", "--mount"] if own_mounts else []
    with started(["serve", *options, *arguments], log, prefix, sources) as process:

        def answers() -> bool:
            assert process.poll() is None, f"sysfsd serve ended:\n{log.read_text()}"
            try:
                with Client(control) as client:
                    return "version" in client.call("hello", {})
            except SysfsdError:
                return False

        until(answers, "sysfsd serve")
        if own_mounts:
            mountpoint = Path(f"/proc/{process.pid}/root{mountpoint}")
        # The first request of each kind makes libfuse open what it keeps.
        assert os.listdir(mountpoint) == ["containers"]
        yield Serving(process, mountpoint, control, state, log)


@contextmanager
def configured(directory: Path, text: str) -> Iterator[Serving]:
    """Run ``sysfsd serve`` in a directory, with this configuration file."""
    path = directory / "sysfsd.toml"
    path.write_text(text)
    with serving(directory, "--config", str(path)) as daemon:
        yield daemon
