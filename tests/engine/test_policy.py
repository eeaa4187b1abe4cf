"""Policies as an engine's users set them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.wait import until

if TYPE_CHECKING:
    from tests.engine.conftest import Start
    from tests.engine.docker import Docker

DIND = "sysfsd-dind:bookworm"

pytestmark = pytest.mark.skipif(os.cpu_count() == 1, reason="one CPU leaves nothing to choose")


def test_pinned_containers_run_on_what_they_see(docker: Docker, start: Start) -> None:
    """Docker 20.10 knows no annotations: the policy comes with the runtime."""
    name = start("--cpus", "1", image=DIND, command=("sleep", "1000"), runtime="sysfsd-pin")

    def counts() -> set[int]:
        script = "nproc; nproc --all; grep -c ^processor /proc/cpuinfo; getconf _NPROCESSORS_ONLN"
        return {int(word) for word in docker.shell(name, script).split()}

    assert counts() == {1}
    docker("update", "--cpus", "2", name)
    until(lambda: counts() == {2}, "two CPUs")
    docker("update", "--cpus", "1", name)
    until(lambda: counts() == {1}, "one CPU")
    # What the user says about it holds, before and after.
    docker("update", "--cpuset-cpus", "0-1", "--cpus", "2", name)
    until(lambda: counts() == {2}, "two CPUs")
    docker("update", "--cpuset-cpus", "1", name)
    until(lambda: counts() == {1}, "one CPU")
    assert "Cpus_allowed_list:\t1" in docker.exec(name, "cat", "/proc/self/status")


def test_an_inner_engine_counts_what_it_may_use(docker: Docker, start: Start) -> None:
    name = start("--cpus", "1", image=DIND, command=(), runtime="sysfsd-pin")
    inner = docker.inside(name)
    inner.wait_for_engine()
    assert inner("info", "--format", "{{.NCPU}}") == "1"
