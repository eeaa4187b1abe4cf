"""Docker-in-Docker on a host with systemd: delegation, the hook, an engine inside, restarts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.wait import until
from tests.vm.conftest import load_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.docker import Docker
    from tests.vm.box import Box
    from tests.vm.conftest import Start

MEMORY = 1 << 30


@pytest.fixture
def sandbox(docker: Docker, start: Start) -> Iterator[Box]:
    """A system container of 1 GiB and one CPU with a running engine that has the image busybox."""
    load_image("sysfsd-dind:bookworm")
    limits = ("--memory=1g", "--memory-swap=1g", "--cpus=1", "--cpuset-cpus=1")
    box = start(*limits, image="sysfsd-dind:bookworm", command=())
    inner = docker.inside(box.name)
    until(lambda: _answers(inner, box), "an answer of the inner engine")
    saved = docker.attempt("save", "busybox:latest")
    assert saved.returncode == 0, saved.stderr
    inner("load", stdin=saved.stdout)
    yield box


def _answers(inner: Docker, box: Box) -> bool:
    if inner.attempt("version").returncode == 0:
        return True
    running = box.docker("inspect", "--format={{.State.Running}}", box.name)
    assert running == "true", box.docker.attempt("logs", box.name)
    return False


def test_an_engine_inside(docker: Docker, sandbox: Box) -> None:
    inner = docker.inside(sandbox.name)
    info = json.loads(inner("info", "--format", "{{json .}}"))
    assert info["MemTotal"] == MEMORY
    assert info["NCPU"] == 1
    assert info["CgroupVersion"] == "2"
    assert info["Driver"] == "overlay2"
    assert inner("run", "--rm", "busybox", "echo", "hello") == "hello"

    # Its root may use the cgroups that it was given, and gives its own containers limits there.
    owner = Path(f"/proc/{sandbox.pid}").stat().st_uid
    assert owner != 0
    assert sandbox.cgroup.stat().st_uid == owner
    assert (sandbox.cgroup / "memory.max").stat().st_uid == 0
    limits = ("--memory=64m", "--cpus=0.5", "--cpuset-cpus=1")
    inner("run", "-d", "--name=limited", *limits, "busybox", "sleep", "100000")
    limited = sandbox.cgroup / "docker" / inner("inspect", "--format={{.Id}}", "limited")
    assert (limited / "memory.max").read_text() == f"{64 << 20}\n"
    assert (limited / "cpu.max").read_text() == "50000 100000\n"
    # Init sits in a leaf now: what is shown is the whole container's all the same.
    assert Path(f"/proc/{sandbox.pid}/cgroup").read_text().endswith("/init\n")
    assert sandbox.meminfo()["MemTotal"] == MEMORY >> 10
    assert set(sandbox.cpus().values()) == {(0,)}, sandbox.cpus()
    inner("rm", "--force", "limited")
