"""An engine with user namespaces of its own (userns-remap) keeps them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.engine.conftest import save
from tests.engine.throwaway import engine, installed, subordinate_ids

if TYPE_CHECKING:
    from tests.engine.docker import Docker
    from tests.engine.throwaway import Throwaway


def test_its_ids_are_kept_and_the_views_are_there(own: Throwaway, docker: Docker) -> None:
    with ExitStack() as stack:
        stack.enter_context(subordinate_ids("nobody", containers=1))
        stack.enter_context(subordinate_ids("nogroup", containers=1))
        directory = own.directory / "remapped"
        arguments = ["--control", own.daemon.control, "--config", str(own.daemon.config)]
        remapped = stack.enter_context(
            engine(
                directory,
                cgroup=f"{own.cgroup}/remapped",
                runtimes={"sysfsd": [installed("sysfsd-runc"), *arguments]},
                userns_remap="nobody:nogroup",
            )
        )
        remapped("load", stdin=save(docker, "busybox:latest"))
        name = "remapped"
        options = ["--memory", "64m", "-v", "data:/data"]
        remapped(
            "run", "-d", "--name", name, "--runtime=sysfsd", *options, "busybox", "sleep", "99"
        )
        plain = remapped("run", "--rm", "busybox", "cat", "/proc/self/uid_map")
        assert remapped.exec(name, "cat", "/proc/self/uid_map").split() == plain.split()
        assert remapped.shell(name, "awk '/^MemTotal/ { print $2 }' /proc/meminfo") == "65536"
        remapped.shell(name, "echo x >/data/x; mkdir -p /mnt && mount -t tmpfs none /mnt")
        assert remapped.exec(name, "stat", "-c", "%u:%g", "/data/x", "/etc/passwd") == "0:0\n0:0"
        output = remapped.refused("run", "--rm", "--runtime=sysfsd", "--userns=host", "busybox")
        assert "leave out --userns=host" in output
