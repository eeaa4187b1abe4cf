"""Volumes and bind mounts: the same owner inside and on disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine.conftest import Start
    from tests.engine.docker import Docker
    from tests.engine.throwaway import Throwaway


@pytest.fixture
def shared(own: Throwaway) -> Iterator[Path]:
    """A directory of the host, on a disk."""
    directory = own.directory / "shared"
    directory.mkdir()
    yield directory
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    directory.rmdir()


WRITE = "echo r >/data/root; echo u >/data/user; chown 1000:1000 /data/user; mkdir /data/dir"


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def test_bind_mount(docker: Docker, start: Start, shared: Path) -> None:
    (shared / "ours").write_text("host")
    (shared / "theirs").write_text("host")
    os.chown(shared / "theirs", 1000, 1000)
    name = start("-v", f"{shared}:/data")
    assert docker.exec(
        name, "stat", "-c", "%u:%g", "/data", "/data/ours", "/data/theirs"
    ).split() == [
        "0:0",
        "0:0",
        "1000:1000",
    ]
    docker.shell(name, WRITE)
    assert owner(shared / "root") == (0, 0)
    assert owner(shared / "user") == (1000, 1000)
    assert owner(shared / "dir") == (0, 0)
    # A user of the container, and not just its root.
    docker("exec", "-u", "1000:1000", name, "sh", "-c", "echo more >>/data/theirs")
    assert (shared / "theirs").read_text() == "hostmore\n"


def test_read_only_bind_mount(docker: Docker, start: Start, shared: Path) -> None:
    (shared / "file").write_text("host")
    name = start("-v", f"{shared}:/data:ro")
    assert docker.exec(name, "cat", "/data/file") == "host"
    assert "Read-only" in docker.refused("exec", name, "touch", "/data/new")


def test_bind_of_one_file(docker: Docker, start: Start, shared: Path) -> None:
    (shared / "file").write_text("host")
    name = start("-v", f"{shared}/file:/root/file")
    docker.shell(name, "echo inside >/root/file")
    assert (shared / "file").read_text() == "inside\n"
    assert owner(shared / "file") == (0, 0)


def test_volume(docker: Docker, start: Start) -> None:
    docker("volume", "create", "owned")
    try:
        name = start("-v", "owned:/data")
        docker.shell(name, WRITE)
        docker("rm", "--force", name)
        # A plain container sees them as they are on disk.
        listed = docker(
            *("run", "--rm", "-v", "owned:/data", "busybox"),
            *("stat", "-c", "%n %u:%g", "/data/root", "/data/user", "/data/dir"),
        )
        assert listed.splitlines() == ["/data/root 0:0", "/data/user 1000:1000", "/data/dir 0:0"]
        # Another system container, with another range, sees them so, too.
        other = start("-v", "owned:/data")
        assert docker.exec(other, "stat", "-c", "%u:%g", "/data/user") == "1000:1000"
        docker("rm", "--force", other)
    finally:
        docker("volume", "rm", "owned")


def test_shared_by_two_at_once(docker: Docker, start: Start, shared: Path) -> None:
    one = start("-v", f"{shared}:/data")
    two = start("-v", f"{shared}:/data")
    docker.shell(one, "echo one >/data/file; chown 42 /data/file")
    assert docker.exec(two, "stat", "-c", "%u", "/data/file") == "42"
    docker.shell(two, "echo two >>/data/file")
    assert (shared / "file").read_text() == "one\ntwo\n"


def test_volume_filled_from_the_image(docker: Docker, start: Start) -> None:
    try:
        name = start("-v", "filled:/etc")
        assert docker.exec(name, "stat", "-c", "%u:%g", "/etc/passwd") == "0:0"
        docker("rm", "--force", name)
    finally:
        docker("volume", "rm", "filled")


def test_files_of_the_image_belong_to_root(docker: Docker, start: Start) -> None:
    name = start()
    assert docker.shell(name, "stat -c %u:%g / /bin /bin/busybox /etc/passwd | sort -u") == "0:0"
    # From a lower layer to the upper one, by its owner.
    docker.shell(name, "echo more >>/etc/passwd; chown 3:4 /etc/group; mv /etc/group /etc/groups")
    assert docker.exec(name, "stat", "-c", "%u:%g", "/etc/groups", "/etc/passwd") == "3:4\n0:0"
