"""Memory and swap of real controllers: limits of the container and above it, and pressure."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.wait import until
from tests.vm.box import CGROUPS
from tests.vm.conftest import command

if TYPE_CHECKING:
    from tests.vm.box import Box
    from tests.vm.conftest import Start

MIB = 1024
"""In kB, the unit of /proc/meminfo."""

FILL = "yes ballast | head -c {} >/dev/shm/ballast"
"""Not zeros: the kernel swaps those without storing them."""


def assert_parts_fit(memory: dict[str, int]) -> None:
    """What holds in every /proc/meminfo that describes one machine."""
    total = memory["MemTotal"]
    assert memory["MemFree"] <= memory["MemAvailable"] <= total
    used = total - memory["MemFree"]
    for part in "Cached Active Inactive AnonPages Mapped Shmem Slab KernelStack PageTables".split():
        assert memory[part] <= used, part
    assert memory["Shmem"] <= memory["Cached"]
    # Each is bytes, cut to kB.
    assert 0 <= memory["Slab"] - memory["SReclaimable"] - memory["SUnreclaim"] <= 1
    assert memory["SwapFree"] <= memory["SwapTotal"]


def swaps(box: Box) -> tuple[int, int]:
    """Size and used of its /proc/swaps, in kB, summed."""
    lines = [line.split() for line in box.read("proc/swaps").splitlines()[1:]]
    return sum(int(line[2]) for line in lines), sum(int(line[3]) for line in lines)


def stalled(text: str) -> int:
    """For how many microseconds some task waited, by pressure stall information."""
    some = text.splitlines()[0]
    assert some.startswith("some ")
    return int(some.rpartition("total=")[2])


def test_what_is_used_shows(start: Start) -> None:
    box = start("--memory=256m", "--memory-swap=256m", "--shm-size=128m")
    before = box.meminfo()
    assert before["MemTotal"] == 256 * MIB
    assert_parts_fit(before)
    box.docker.shell(box.name, FILL.format(64 << 20))
    until(lambda: box.meminfo()["Shmem"] >= 64 * MIB, "64 MiB of shared memory")
    after = box.meminfo()
    assert before["MemFree"] - after["MemFree"] >= 60 * MIB
    assert before["MemAvailable"] - after["MemAvailable"] >= 60 * MIB
    assert_parts_fit(after)


def test_a_changed_limit_shows(start: Start) -> None:
    box = start("--memory=256m", "--memory-swap=256m")
    box.docker("update", "--memory=200m", "--memory-swap=200m", box.name)
    until(lambda: box.meminfo()["MemTotal"] == 200 * MIB, "the new limit")


def test_the_smallest_limit_above_counts(parent: str, start: Start) -> None:
    box = start("--memory=256m", "--memory-swap=256m", f"--cgroup-parent={parent}")
    assert box.cgroup.parent == CGROUPS / parent
    assert box.meminfo()["MemTotal"] == 256 * MIB
    command("systemctl", "set-property", "--runtime", parent, "MemoryMax=128M")
    until(lambda: box.meminfo()["MemTotal"] == 128 * MIB, "the slice's limit")
    command("systemctl", "set-property", "--runtime", parent, "MemoryMax=infinity")
    until(lambda: box.meminfo()["MemTotal"] == 256 * MIB, "its own limit again")


def test_memory_that_does_not_fit_is_swapped(start: Start, swap: None) -> None:
    box = start("--memory=64m", "--memory-swap=320m", "--shm-size=256m")
    assert box.meminfo()["SwapTotal"] == 256 * MIB
    box.docker.shell(box.name, FILL.format(128 << 20))
    # It can't all be in 64 MiB of memory.
    until(lambda: swaps(box)[1] >= 64 * MIB, "64 MiB of swap in use")

    def swapped() -> dict[str, int]:
        now = box.meminfo()
        return now if now["SwapTotal"] - now["SwapFree"] >= 64 * MIB else {}

    # The two files may be of two refreshes.
    memory = until(swapped, "the same in meminfo")
    assert memory["MemTotal"] == 64 * MIB
    assert_parts_fit(memory)
    size, used = swaps(box)
    assert size == memory["SwapTotal"]
    assert 64 * MIB <= used <= size
    # It waited for memory, as long as the kernel says; who did not ask for any did not wait.
    # Asked for inside: through the pressure mount, everybody sees their own.
    kernels = box.cgroup / "memory.pressure"
    before = stalled(kernels.read_text())
    shown = stalled(box.docker.exec(box.name, "cat", "/proc/pressure/memory"))
    assert 0 < before <= shown <= stalled(kernels.read_text())
    neighbour = start("--memory=64m")
    assert stalled(box.docker.exec(neighbour.name, "cat", "/proc/pressure/memory")) < shown


def test_swap_comes_and_goes_with_the_hosts(start: Start, swap: None) -> None:
    box = start("--memory=64m", "--memory-swap=-1")
    host = int(command("awk", "/^SwapTotal/ { print $2 }", "/proc/meminfo"))
    assert box.meminfo()["SwapTotal"] == host
    assert swaps(box) == (host, 0)
    box.limit("memory.swap.max", str(32 << 20))
    until(lambda: box.meminfo()["SwapTotal"] == 32 * MIB, "its limit of swap")
    box.limit("memory.swap.max", "max")
    devices = [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]
    subprocess.run(["swapoff", *devices], check=True)
    try:
        until(lambda: box.meminfo()["SwapTotal"] == 0, "no swap")
        assert swaps(box) == (0, 0)
    finally:
        subprocess.run(["swapon", *devices], check=True)


def test_out_of_memory_is_the_containers_own_affair(start: Start) -> None:
    box = start("--memory=64m", "--memory-swap=64m")
    done = box.docker.attempt("exec", box.name, "sh", "-c", "tail /dev/zero")
    assert done.returncode == 137
    assert "oom_kill 0" not in (box.cgroup / "memory.events").read_text().splitlines()
    assert_parts_fit(box.meminfo())
    assert command("systemctl", "is-active", "sysfsd.service") == "active"
