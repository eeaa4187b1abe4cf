"""A real engine and a real sysfsd of one's own, gone without a trace when done.

    python -m tests.engine.throwaway COMMAND…

runs a command with ``DOCKER_HOST`` and ``SYSFSD_CONTROL`` set to them; ``examples/demo.sh`` does.

The engine keeps off whatever else runs on the machine: its data, state, socket and cgroups are its
own, and so is its network namespace, which means that its bridges, address ranges and iptables
rules are nobody else's. sysfsd too has its own mount point, socket and state.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from sysfsd.control.client import Client
from tests.engine.docker import Docker
from tests.support.wait import until
from tests.support.watched import watched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

IDS = 65536
"""Ids of one container's range."""

STOP = 20.0
"""Seconds that an engine or a daemon may take to stop before it is killed."""

# The distribution's own programs first: they belong together.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"


@dataclass(frozen=True)
class Daemon:
    """A running ``sysfsd serve``."""

    control: str
    mountpoint: str
    state_dir: str
    config: Path
    log: Path
    process: subprocess.Popen[bytes]

    def client(self) -> Client:
        """Return a connection to it, to be used as a context manager."""
        return Client(self.control)

    def command(self, *arguments: str) -> str:
        """Run ``sysfsd ARGUMENTS`` against it and return its stdout."""
        done = subprocess.run(
            [installed("sysfsd"), *arguments, "--control", self.control],
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()


@dataclass(frozen=True)
class Throwaway:
    """The engine, the daemon, and the directory that holds all of theirs.

    The engine knows the runtimes ``sysfsd``, ``sysfsd-crun`` (crun below instead of runc),
    ``sysfsd-pin`` (with that policy) and ``sysfsd-other``, whose daemon is whoever serves at
    ``other``: nobody, at first.
    """

    docker: Docker
    daemon: Daemon
    other: Path
    directory: Path
    cgroup: str

    def environment(self) -> dict[str, str]:
        """Return the environment in which commands find both."""
        return {
            "DOCKER_HOST": f"unix://{self.docker.socket}",
            "SYSFSD_CONTROL": self.daemon.control,
            "SYSFSD_BIN": str(Path(sys.executable).parent),
            "PATH": _PATH,
        }


def installed(name: str) -> str:
    """Return the path of one of our programs, installed beside this Python."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise SystemExit(f"{path} is missing: run tests/run.sh, which installs it")
    return str(path)


@contextmanager
def subordinate_ids(
    user: str, *, containers: int, directory: Path = Path("/etc")
) -> Iterator[None]:
    """Give ``user`` ids for so many containers in /etc/subuid and /etc/subgid, for a while."""
    files = [directory / "subuid", directory / "subgid"]
    with _locked(directory):
        texts = {path: path.read_text() if path.exists() else "" for path in files}
        taken = [end for text in texts.values() for end in _ends(text)]
        # Above everybody else's, and above what useradd(8) gives by default.
        line = f"{user}:{max([*taken, 1 << 30])}:{containers * IDS}"
        for path, text in texts.items():
            with path.open("a") as file:
                file.write(f"{'' if text.endswith(chr(10)) or not text else chr(10)}{line}\n")
    try:
        yield
    finally:
        with _locked(directory):
            for path in files:
                kept = [other for other in path.read_text().splitlines() if other != line]
                path.write_text("".join(other + "\n" for other in kept))


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other runs of ours off a directory's files (flock(2)); it stays as it is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _ends(text: str) -> Iterator[int]:
    """Where the ranges of a file end; lines of another shape have none, as for subuid(5)."""
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
            yield int(fields[1]) + int(fields[2])


def control_socket(directory: Path) -> str:
    """Return the control socket of the daemon that ``serving`` runs in a directory."""
    return str(directory / "run" / "control.sock")


@contextmanager
def serving(directory: Path, *, config: str = "", left: bool = False) -> Iterator[Daemon]:
    """Run ``sysfsd serve`` with everything of its under ``directory``.

    With ``left`` it is killed before the context ends, and the next one goes on.
    """
    state = directory / "run"
    mountpoint = directory / "mount"
    state.mkdir(parents=True, exist_ok=True, mode=0o711)
    with contextlib.suppress(FileExistsError):  # nobody may be there to say what it is
        mountpoint.mkdir()
    control = control_socket(directory)
    configuration = directory / "sysfsd.toml"
    options = ["--mountpoint", str(mountpoint), "--control", control, "--state-dir", str(state)]
    options += ["--config", str(configuration)]
    configuration.write_text(config)
    log = directory / "sysfsd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_dies_with_us(), installed("sysfsd"), "serve", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until(lambda: _answers(process, control, log), "an answer of sysfsd serve")
        os.listdir(mountpoint)  # the first request makes libfuse open what it keeps
        with watched(process.pid, log):
            yield Daemon(control, str(mountpoint), str(state), configuration, log, process)
    finally:
        _stop(process)
        if not left:
            _unmount_below(directory)
    if process.returncode != (-signal.SIGKILL if left else 0):
        raise AssertionError(f"sysfsd serve ended with {process.returncode}:\n{log.read_text()}")


def _answers(process: subprocess.Popen[bytes], control: str, log: Path) -> bool:
    if process.poll() is not None:
        raise AssertionError(f"sysfsd serve ended with {process.returncode}:\n{log.read_text()}")
    try:
        with Client(control) as client:
            return "version" in client.call("hello", {})
    except Exception:  # noqa: BLE001 - not up yet, in whichever way
        return False


@contextmanager
def throwaway(*, containers: int = 64) -> Iterator[Throwaway]:
    """Run an engine that knows the runtime ``sysfsd``, and the daemon behind it."""
    # Not in /tmp: overlay2 needs a disk that takes its upper layers, which an overlay does not.
    directory = Path(tempfile.mkdtemp(prefix="sysfsd-throwaway-", dir="/var/lib"))
    directory.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        stack.callback(_remove_cgroups, directory.name)
        stack.callback(_unmount_below, directory)
        # A user of their own in /etc/subuid: an installed sysfsd's containers may have that one's.
        stack.enter_context(subordinate_ids(directory.name, containers=containers))
        config = f'subid-user = "{directory.name}"\n'
        daemon = stack.enter_context(serving(directory / "sysfsd", config=config))
        crun = directory / "crun.toml"
        crun.write_text(config + 'runtime = "crun"\n')
        other = directory / "other"
        configured = str(daemon.config)
        runtimes = {
            "sysfsd": [daemon.control, configured],
            "sysfsd-crun": [daemon.control, str(crun)],
            "sysfsd-pin": [daemon.control, configured, "--cpu-policy", "pin"],
            "sysfsd-other": [control_socket(other), configured],
        }
        docker = stack.enter_context(
            engine(
                directory / "engine",
                cgroup=directory.name,
                runtimes={
                    name: [installed("sysfsd-runc"), "--control", control, "--config", *rest]
                    for name, (control, *rest) in runtimes.items()
                },
            )
        )
        yield Throwaway(docker, daemon, other, directory, directory.name)


@contextmanager
def engine(
    directory: Path, *, cgroup: str, runtimes: dict[str, list[str]], **settings: str
) -> Iterator[Docker]:
    """Run Docker's engine with everything of its under ``directory``.

    ``settings`` are more of its daemon.json's, with underscores for dashes.
    """
    directory.mkdir(mode=0o711)
    socket = directory / "docker.sock"
    exec_root = directory / "exec"
    configuration = {
        "hosts": [f"unix://{socket}"],
        "data-root": str(directory / "data"),
        "exec-root": str(exec_root),
        "pidfile": str(directory / "docker.pid"),
        # Not docker0's 172.17.0.0/16: that is what inner engines take, and they must not overlap.
        "bip": "10.199.0.1/24",
        "default-address-pools": [{"base": "10.199.128.0/17", "size": 24}],
        "cgroup-parent": f"/{cgroup}",
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "runtimes": {
            name: {"path": path, "runtimeArgs": arguments}
            for name, (path, *arguments) in runtimes.items()
        },
        **{name.replace("_", "-"): value for name, value in settings.items()},
    }
    daemon_json = directory / "daemon.json"
    daemon_json.write_text(json.dumps(configuration, indent=2))
    own_network = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    docker = Docker(str(socket))
    log = directory / "dockerd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_dies_with_us(), *own_network, "dockerd", "--config-file", str(daemon_json)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={"PATH": _PATH, "TMPDIR": str(directory)},
        )
    try:
        until(
            lambda: process.poll() is not None or docker.attempt("version").returncode == 0,
            "an answer of dockerd",
        )
        if process.poll() is not None:
            raise AssertionError(f"dockerd ended:\n{log.read_text(errors='replace')}")
        yield docker
    finally:
        with contextlib.suppress(Exception):
            if leftovers := docker("ps", "--all", "--quiet").split():
                docker("rm", "--force", "--volumes", *leftovers, deadline=120)
        _stop(process)
        _kill_leftovers(str(exec_root))


def _dies_with_us() -> list[str]:
    """Prefix of a command that is told to stop if this process is killed."""
    return ["setpriv", "--pdeathsig", "TERM"]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _kill_leftovers(exec_root: str) -> None:
    """End what a killed engine leaves: containerd and its shims, known by where they work."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            # Ours only by its command line. The kernel's name of it comes first: reading the
            # command line of some process in a container may block.
            if process.name().startswith(("containerd", "docker-proxy")) and any(
                exec_root in argument for argument in process.cmdline()
            ):
                processes.append(process)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _unmount_below(directory: Path) -> None:
    """Unmount everything below a directory, the last mounted first."""
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):
        if point.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def _remove_cgroups(name: str) -> None:
    """Kill what is left in the engine's cgroups and remove them."""
    controllers = Path("/sys/fs/cgroup")
    tops = [controllers / name, *controllers.glob(f"*/{name}")]
    for top in tops:
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                for pid in (Path(directory) / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            _remove_cgroup(Path(directory))


def _remove_cgroup(directory: Path) -> None:
    def removed() -> bool:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    until(removed, f"the end of the cgroup {directory}")


def main(command: list[str]) -> int:
    """Run a command with an engine of its own; returns the command's exit status."""

    def stop(number: int, frame: FrameType | None) -> None:
        # Once: what follows is the tidying up, and that must not be interrupted.
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    with throwaway() as own:
        process = subprocess.Popen(command, env=os.environ | own.environment())
        try:
            return process.wait()
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
