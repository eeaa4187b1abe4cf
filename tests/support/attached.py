"""Containers with what ``sysfsd attach`` gives them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.containers import container
from tests.support.daemon import sysfsd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.containers import Container
    from tests.support.daemon import Serving


def attach(daemon: Serving, name: str, box: Container) -> None:
    """Give a container its files, under that id."""
    done = sysfsd("attach", "--id", name, str(box.pid), control=daemon.control)
    assert done.returncode == 0, done.stderr


def mounted_in(box: Container) -> list[str]:
    """Where a container has files of ours; the host's mounts, of which it may have a copy, too."""
    table = (line.split(" ") for line in box.run("cat", "/proc/self/mountinfo").splitlines())
    return [fields[4] for fields in table if fields[fields.index("-") + 1] == "fuse.sysfsd"]


@contextmanager
def system_container(daemon: Serving, name: str) -> Iterator[Container]:
    """Run a container with namespaces of its own, and its files."""
    with container(isolated=True) as box:
        attach(daemon, name, box)
        yield box
