"""Plain ``docker run``, without a user namespace: the same views, read-only."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.conftest import save
from tests.support.daemon import started
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.engine.conftest import Start
    from tests.engine.docker import Docker
    from tests.engine.throwaway import Throwaway

DIND = "sysfsd-dind:bookworm"
BOUND = [
    *(f"proc/{name}" for name in "cpuinfo loadavg meminfo stat swaps uptime".split()),
    *(f"sys/devices/system/cpu/{name}" for name in "online possible present".split()),
]
LIMITS = ("--memory", "200m", "--memory-swap", "200m", "--cpus", "1")

CHANGES = """
for file in /proc/meminfo /proc/stat /sys/devices/system/cpu/online; do
    (: >>$file) 2>/dev/null && echo $file opened
    (exec 3<>$file) 2>/dev/null && echo $file opened for both
    chmod 666 $file 2>/dev/null && echo $file chmod
    chown 1:1 $file 2>/dev/null && echo $file chown
    rm -f $file 2>/dev/null && echo $file removed
    umount $file 2>/dev/null && echo $file unmounted
done
stat -c %a:%u:%g /proc/meminfo
"""


@pytest.fixture(scope="module")
def views(own: Throwaway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """``sysfsd mount``, beside the daemon and without one."""
    found: dict[str, Path] = {}
    with ExitStack() as stack:
        for name, control in (("beside", own.daemon.control), ("alone", "/nowhere")):
            found[name] = directory = own.directory / f"views-{name}"
            directory.mkdir()
            log = tmp_path_factory.mktemp("views") / "log"
            stack.enter_context(started(["mount", str(directory), "--control", control], log))
            until(lambda log=log: '"mounted"' in log.read_text(), "the mount")  # type: ignore[misc]
        yield found
    for directory in found.values():
        directory.rmdir()


@pytest.fixture(params=["binds, beside", "binds, alone", "attach"])
def ordinary(
    own: Throwaway,
    views: dict[str, Path],
    docker: Docker,
    start: Start,
    request: pytest.FixtureRequest,
) -> Callable[..., str]:
    """Start plain containers that have their views, in one way or the other."""
    how, _, which = request.param.partition(", ")

    def start_plain(*options: str) -> str:
        binds: list[str] = []
        if how == "binds":
            for view in BOUND:
                binds += ["-v", f"{views[which] / view}:/{view}"]
        name = start(*binds, *options, image=DIND, command=("sleep", "1000"), runtime="runc")
        if how == "attach":
            own.daemon.command("attach", str(docker.pid(name)))
        return name

    return start_plain


def seconds(docker: Docker, name: str) -> tuple[float, float]:
    up, idle = docker.exec(name, "cat", "/proc/uptime").split()
    return float(up), float(idle)


@pytest.mark.parametrize("options", [(), ("--pid", "host")], ids=["own pids", "host's pids"])
def test_limits(docker: Docker, ordinary: Callable[..., str], options: tuple[str, ...]) -> None:
    name = ordinary(*LIMITS, *options)
    assert docker.exec(name, "head", "-n", "1", "/proc/meminfo").split()[1] == str(200 << 10)
    assert docker.shell(name, "free -k | awk '/^Mem/ { print $2 }'") == str(200 << 10)
    assert docker.shell(name, "grep -c ^processor /proc/cpuinfo") == "1"
    assert docker.shell(name, "grep -c ^cpu[0-9] /proc/stat") == "1"
    assert docker.exec(name, "cat", "/sys/devices/system/cpu/online") == "0"
    assert docker.exec(name, "cat", "/proc/swaps").count("\n") == 0
    host = float(Path("/proc/uptime").read_text().split()[0])
    up, idle = seconds(docker, name)
    assert 0 <= idle <= up < host
    until(lambda: seconds(docker, name)[0] > up, "time goes on")


def test_its_root_changes_nothing(docker: Docker, ordinary: Callable[..., str]) -> None:
    name = ordinary(*LIMITS)
    assert docker.shell(name, CHANGES) == "444:0:0"


def test_a_changed_limit_shows(docker: Docker, ordinary: Callable[..., str]) -> None:
    name = ordinary(*LIMITS)
    docker("update", "--memory", "100m", "--memory-swap", "100m", "--cpus", "2", name)
    until(
        lambda: docker.exec(name, "head", "-n", "1", "/proc/meminfo").split()[1] == "102400",
        "the new limit",
    )
    until(
        lambda: docker.exec(name, "cat", "/sys/devices/system/cpu/online") == "0-1",
        "the new quota",
    )


def test_two_containers_and_the_host_at_the_same_files(
    docker: Docker, ordinary: Callable[..., str]
) -> None:
    names = {ordinary("--memory", f"{size}m"): size for size in (64, 80, 96)}
    for _ in range(5):
        for name, size in names.items():
            total = docker.exec(name, "head", "-n", "1", "/proc/meminfo").split()[1]
            assert total == str(size << 10)


def test_usage_is_the_containers(docker: Docker, ordinary: Callable[..., str]) -> None:
    """Whoever asks, and in whichever leaf: here by docker exec, in one that init did not make."""
    name = ordinary(*LIMITS)

    def free() -> int:
        return int(docker.shell(name, "awk '/^MemFree/ { print $2 }' /proc/meminfo"))

    before = free()
    docker.shell(name, "head -c 40M /dev/zero >/dev/shm/ballast")
    until(lambda: before - free() > 35 << 10, "40 MiB less of free memory")


def test_a_container_in_a_container(docker: Docker, views: dict[str, Path], start: Start) -> None:
    """The outer one is a system container, the inner one nobody's but its engine's."""
    binds = ["-v", f"{views['beside']}:/views"]
    outer = start(*binds, "--memory", "600m", image=DIND, command=())
    inner = docker.inside(outer)
    inner.wait_for_engine()
    inner("load", stdin=save(docker, "busybox:latest"))
    command = ("busybox", "head", "-n", "1", "/views/proc/meminfo")
    total = inner("run", "--rm", "--memory", "50m", "-v", "/views:/views", *command).split()[1]
    assert total == str(50 << 10)
    assert docker.exec(outer, *command[1:]).split()[1] == str(600 << 10)
