"""A daemon and real containers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.containers import Container, container
from tests.support.daemon import Serving, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root or FUSE there is nothing to test here."""
    for reason, missing in (
        ("needs root: mounts", os.geteuid() != 0),
        ("needs /dev/fuse", not os.path.exists("/dev/fuse")),
    ):
        for item in items:
            if missing and "tests/filesystem/" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One for all tests of a file."""
    with serving(tmp_path_factory.mktemp("daemon")) as running:
        yield running
        assert running.stop() == 0, running.log.read_text()


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[Serving]:
    """One for a test that ends it."""
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def box() -> Iterator[Container]:
    """A container with 96 MiB and half a CPU, not registered."""
    with container(memory=96 << 20, cpus=0.5) as running:
        yield running


@pytest.fixture
def web(daemon: Serving, box: Container) -> Iterator[Path]:
    """The directory of that container, registered as ``web``."""
    registered = daemon.register("web", box.pid)
    yield daemon.mountpoint / registered["directory"]
    daemon.call("release", id="web")
