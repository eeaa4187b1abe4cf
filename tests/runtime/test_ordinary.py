"""Containers that share the host's user namespace, under plain runc and crun: views, read-only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.throwaway import installed
from tests.support.bundles import run
from tests.support.daemon import started
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.runtime.conftest import Runtime
    from tests.support.bundles import Bundle

# What runc lets anybody bind below /proc (checkProcMount in its libcontainer/rootfs_linux.go), as
# far as there are views of it, and one in /sys.
BOUND = [
    *(f"proc/{name}" for name in "cpuinfo loadavg meminfo stat swaps uptime".split()),
    "sys/devices/system/cpu/online",
]

CHANGES = """
file=/proc/meminfo
(: >>$file) 2>/dev/null && echo opened for appending
(: >$file) 2>/dev/null && echo truncated
(exec 3<>$file) 2>/dev/null && echo opened for both
chmod 666 $file 2>/dev/null && echo chmod
chown 1:1 $file 2>/dev/null && echo chown
rm -f $file 2>/dev/null && echo removed
touch $file 2>/dev/null && echo touched
umount $file 2>/dev/null && echo unmounted
head -n 1 $file; stat -c '%a %u %g' $file
"""


@pytest.fixture
def views(runtime: Runtime, tmp_path: Path) -> Iterator[Path]:
    """``sysfsd mount`` beside the daemon."""
    directory = runtime.directory / "views"
    directory.mkdir()
    with started(["mount", str(directory), "--control", runtime.daemon.control], tmp_path / "log"):
        until(directory.is_mount, "the mount")
        yield directory
    directory.rmdir()


def with_binds(bundle: Bundle, views: Path) -> None:
    """As an engine does it for ``-v DIR/proc/meminfo:/proc/meminfo``."""
    bundle.spec["mounts"] += [
        {
            "destination": f"/{view}",
            "type": "bind",
            "source": str(views / view),
            "options": ["rbind", "rprivate"],
        }
        for view in BOUND
    ]
    bundle.save()


def with_hook(bundle: Bundle, runtime: Runtime) -> None:
    """As Podman, CRI-O and CDI do it."""
    hook: dict[str, Any] = {
        "path": installed("sysfsd-hook"),
        "args": ["sysfsd-hook", "--control", runtime.daemon.control],
        "env": ["PATH=/usr/bin:/bin"],
    }
    bundle.spec["hooks"] = {"createRuntime": [hook]}
    bundle.save()


def outcome(runtime: Runtime, bundle: Bundle) -> list[str]:
    done = run(runtime.plain("run", "--bundle", str(bundle.path), bundle.path.name))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["binds", "hook"])
def test_its_root_reads_and_changes_nothing(
    runtime: Runtime, new_bundle: Callable[..., Bundle], views: Path, how: str
) -> None:
    bundle = new_bundle("sh", "-c", CHANGES, memory=64 << 20)
    if how == "binds":
        with_binds(bundle, views)
    else:
        with_hook(bundle, runtime)
    *done, first, status = outcome(runtime, bundle)
    assert done == []
    assert first.split() == ["MemTotal:", "65536", "kB"]
    assert status == "444 0 0"


@pytest.mark.parametrize("how", ["binds", "hook"])
def test_who_is_not_root_in_there(
    runtime: Runtime, new_bundle: Callable[..., Bundle], views: Path, how: str
) -> None:
    bundle = new_bundle("sh", "-c", f"id -u; {CHANGES}", memory=64 << 20)
    bundle.spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    if how == "binds":
        with_binds(bundle, views)
    else:
        with_hook(bundle, runtime)
    uid, *done, first, status = outcome(runtime, bundle)
    assert (uid, done, status) == ("1000", [], "444 0 0")
    assert first.split() == ["MemTotal:", "65536", "kB"]


@pytest.mark.parametrize("how", ["binds", "hook"])
@pytest.mark.parametrize("namespace", ["cgroup", "pid"])
def test_in_a_leaf_of_its_cgroup(
    runtime: Runtime, new_bundle: Callable[..., Bundle], views: Path, how: str, namespace: str
) -> None:
    """With a cgroup namespace of its own, and with the host's pid namespace."""
    script = "cat /proc/1/comm; cut -d' ' -f1 /proc/uptime; head -n 1 /proc/meminfo"
    bundle = new_bundle("sh", "-c", script, memory=64 << 20)
    namespaces = bundle.spec["linux"]["namespaces"]
    if namespace == "cgroup":
        namespaces.append({"type": "cgroup"})
    else:
        namespaces.remove({"type": "pid"})
    if how == "binds":
        with_binds(bundle, views)
    else:
        with_hook(bundle, runtime)
    init, uptime, total = outcome(runtime, bundle)
    assert (init == "sh") == (namespace == "cgroup")
    with open("/proc/uptime", encoding="ascii") as file:
        host = float(file.read().split()[0])
    # With binds alone nobody knows a container's id, nor can this cgroup's name say that it is one.
    assert (float(uptime) < min(60, host)) == (how == "hook" or namespace == "cgroup")
    assert total.split() == ["MemTotal:", "65536", "kB"]
