"""One engine and one daemon for all tests of this level; each test's containers are its own."""

from __future__ import annotations

import itertools
import json
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.engine.throwaway import Throwaway, throwaway
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.docker import Docker

IMAGES = Path(__file__).parent.parent / "images"
SUITES = ("bookworm", "sid")

_numbers = itertools.count(1)


class Start(Protocol):
    """Starts a system container in the background and returns its name."""

    def __call__(
        self, *options: str, image: str = ..., command: tuple[str, ...] = ..., runtime: str = ...
    ) -> str: ...


@pytest.fixture(scope="session")
def own() -> Iterator[Throwaway]:
    """The outer engine with all images loaded, and the daemon."""
    with throwaway(containers=64) as own:
        subprocess.run(
            ["sh", str(IMAGES / "load.sh")],
            env=own.environment(),
            check=True,
            capture_output=True,
            timeout=600,
        )
        yield own


@pytest.fixture(scope="session")
def docker(own: Throwaway) -> Docker:
    """The outer engine."""
    return own.docker


def _starter(docker: Docker, stack: ExitStack) -> Start:
    def start(
        *options: str,
        image: str = "busybox:latest",
        command: tuple[str, ...] = ("sleep", "1000"),
        runtime: str = "sysfsd",
    ) -> str:
        name = f"test-{next(_numbers)}"
        stack.callback(docker.attempt, "rm", "--force", "--volumes", name)
        docker("run", "-d", "--name", name, f"--runtime={runtime}", *options, image, *command)
        return name

    return start


@pytest.fixture
def start(docker: Docker) -> Iterator[Start]:
    """Start containers that end with the test."""
    with ExitStack() as stack:
        yield _starter(docker, stack)


@pytest.fixture(scope="module", params=SUITES)
def sandbox(docker: Docker, request: pytest.FixtureRequest) -> Iterator[str]:
    """A system container of 1 GiB and one CPU with a running engine and the image busybox in it.

    Once with Debian 12's engine inside, once with sid's.
    """
    with ExitStack() as stack:
        limits = ("--memory", "1g", "--cpus", "1", "--cpuset-cpus", "0")
        image = f"sysfsd-dind:{request.param}"
        name = _starter(docker, stack)(*limits, image=image, command=())
        inner = docker.inside(name)
        inner.wait_for_engine()
        inner("load", stdin=save(docker, "busybox:latest"))
        yield name


def save(docker: Docker, image: str) -> bytes:
    """Return an image as an archive."""
    done = docker.attempt("save", image)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _records_are_of_the_living(own: Throwaway) -> Iterator[None]:
    """Fail a test after which the daemon knows other containers than those that run."""
    yield
    until(lambda: _registered(own) == _running(own), "records of just the running containers", 10)


def _registered(own: Throwaway) -> set[str]:
    with own.daemon.client() as client:
        return {container["id"] for container in client.call("list", {})["containers"]}


def _running(own: Throwaway) -> set[str]:
    names = own.docker("ps", "--quiet", "--no-trunc").split()
    if not names:
        return set()
    records = json.loads(own.docker("inspect", *names))
    return {
        record["Id"] for record in records if record["HostConfig"]["Runtime"].startswith("sysfsd")
    }
