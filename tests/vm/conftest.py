"""The installed service and the distribution's engine, both started by systemd, once for all."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.engine.docker import Docker
from tests.support.wait import patient, until
from tests.vm.box import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

# Not on the host, where these would change the system: run.sh's guest says that it is one.
collect_ignore_glob = [] if os.environ.get("SYSFSD_VM") else ["test_*.py"]

SCRATCH = Path("/dev/disk/by-id/virtio-scratch")
"""A disk of 1 GiB that is the tests' to overwrite."""

_IMAGES = Path(__file__).parent.parent / "images"
_numbers = itertools.count(1)


def command(*arguments: str, deadline: float = 60) -> str:
    """Run a command, which must succeed, and return its stdout, stripped."""
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=False, timeout=patient(deadline)
    )
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


class Start(Protocol):
    """Starts a container in the background."""

    def __call__(
        self, *options: str, image: str = ..., command: tuple[str, ...] = ..., runtime: str = ...
    ) -> Box: ...


@pytest.fixture(scope="session")
def service() -> None:
    """``sysfsd.service``, enabled and started as the README says."""
    command("systemctl", "enable", "--quiet", "--now", "sysfsd.socket", "sysfsd.service")


@pytest.fixture(scope="session")
def docker(service: None) -> Docker:
    """``docker.service`` with the image busybox; it knows the runtime ``sysfsd``."""
    command("systemctl", "start", "docker.service")
    load_image("busybox:latest")
    return Docker("/var/run/docker.sock")


def load_image(name: str) -> None:
    """Load an image of tests/images into the engine."""
    command("sh", str(_IMAGES / "load.sh"), name, deadline=120)


@pytest.fixture
def parent() -> Iterator[str]:
    """A slice to have containers in, for a test that asks for it before ``start``.

    Then it ends after them: systemd would wait 90 s for a container's init to heed SIGTERM.
    """
    name = "sysfsdvm.slice"
    yield name
    command("systemctl", "stop", name)


@pytest.fixture
def start(docker: Docker) -> Iterator[Start]:
    """Start containers that end with the test."""
    with ExitStack() as stack:

        def start(
            *options: str,
            image: str = "busybox:latest",
            command: tuple[str, ...] = ("sleep", "100000"),
            runtime: str = "sysfsd",
        ) -> Box:
            name = f"test-{next(_numbers)}"
            stack.callback(docker.attempt, "rm", "--force", "--volumes", name)
            docker("create", "--name", name, f"--runtime={runtime}", *options, image, *command)
            _start(docker, name)
            return Box(docker, name, docker.pid(name))

        yield start


def _start(docker: Docker, name: str) -> None:
    """Start a container, and again when the machine was too slow for the hook.

    The hook gives up after two seconds, runc after ten, and both wait a few for a daemon that is
    being started again, which takes half a minute in emulation.
    """

    def started() -> bool:
        done = docker.attempt("start", name)
        said = done.stderr.decode(errors="replace")
        slow = ("not done within", "hook ran past", "did not answer")
        if done.returncode != 0 and not any(each in said for each in slow):
            raise AssertionError(f"{name} did not start: {said}")
        return done.returncode == 0

    until(started, f"the start of {name}")


@contextmanager
def swap_on(device: str) -> Iterator[None]:
    """Let the machine swap to a device or file for a while."""
    command("mkswap", device)
    command("swapon", device)
    try:
        yield
    finally:
        command("swapoff", device)


@pytest.fixture(params=["zram", "partition"])
def swap(request: pytest.FixtureRequest) -> Iterator[None]:
    """512 MiB of swap or more: compressed memory, or a disk."""
    if request.param == "partition":
        with swap_on(str(SCRATCH)):
            yield
        return
    command("modprobe", "zram", "num_devices=1")
    settings = Path("/sys/block/zram0")
    (settings / "disksize").write_text("512M")
    try:
        with swap_on("/dev/zram0"):
            yield
    finally:
        until(lambda: _reset(settings), "the end of what udev looks for in it")


def _reset(zram: Path) -> bool:
    try:
        (zram / "reset").write_text("1")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on an ext4 of its own on the scratch disk."""
    command("mkfs.ext4", "-q", "-F", str(SCRATCH))
    command("mount", str(SCRATCH), str(tmp_path))
    try:
        yield tmp_path
    finally:
        command("umount", str(tmp_path))
