"""The same files, of the same container, at the same moment: where they differ from lxcfs's."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.programs import host
from tests.programs.bench import Kind
from tests.programs.lxcfs_rules import FILES, REFRESH, RULES, V1, Kernel, holds, oldest
from tests.programs.ways import Way
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.programs.bench import Bench, Box
    from tests.programs.lxcfs_rules import Fields, Rule

pytestmark = pytest.mark.skipif(
    not (V1 / "memory/memory.limit_in_bytes").exists(), reason="no cgroup v1 on this host"
)

KINDS = (
    Kind("side-by-side-quota", ("--cpus=1",), cpus=1, affinity=host.cpus()),
    Kind("side-by-side-cpuset", (f"--cpuset-cpus={host.cpus() - 1}",), cpus=1, affinity=1),
    Kind("side-by-side-all", (), cpus=host.cpus(), affinity=host.cpus()),
)

# Some of each kind of memory: huge, locked, mapped from a file; tmpfs there is already.
_HOLD = """
import ctypes, mmap, os, signal
MIB = 1 << 20
huge = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
huge.madvise(mmap.MADV_HUGEPAGE)
huge[:] = bytes([1]) * len(huge)
locked = mmap.mmap(-1, 2 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(locked))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(locked))) == 0
file = open("/var/tmp/mapped", "w+b")
file.write(bytes([2]) * 8 * MIB)
file.flush()
os.fsync(file.fileno())
mapped = mmap.mmap(file.fileno(), 8 * MIB, prot=mmap.PROT_READ)
sum(mapped[page] for page in range(0, len(mapped), 4096))
print("ready", flush=True)
signal.pause()
"""


@dataclass(frozen=True)
class Look:
    """What both show, and the kernel before and after."""

    before: Kernel
    ours: Mapping[str, Fields]
    lxcfs: Mapping[str, Fields]
    after: Kernel

    def differences(self) -> list[tuple[str, str]]:
        """File and field of each number that is not the same, or that one of them lacks."""
        return [
            (file, field)
            for file, ours in self.ours.items()
            for field in sorted({*ours, *self.lxcfs[file]})
            if ours.get(field) != self.lxcfs[file].get(field)
        ]


def _look(bench: Bench, box: Box) -> Look | None:
    """Look at both; None when the container's memory was not the same all the while.

    Nor when what we say was older than usual, on a machine that has much to do, or stood still.
    """
    before = Kernel.now(box.pid)
    ours = {file: FILES[file](_of_us(bench, box, file)) for file in FILES}
    lxcfs = {file: FILES[file](_of_lxcfs(bench, box, file)) for file in ours}
    after = Kernel.now(box.pid)
    if (before.memory, before.usage) != (after.memory, after.usage):
        return None
    if oldest(ours, before.cpus) < before.uptime - REFRESH:
        return None
    return Look(before, ours, lxcfs, after)


def _counted(bench: Bench, box: Box) -> bool:
    """Whether both have taken a sample of its tasks, which each does every 5 seconds."""
    tasks = Kernel.now(box.pid).tasks
    texts = (_of_us(bench, box, "proc/loadavg"), _of_lxcfs(bench, box, "proc/loadavg"))
    return all(FILES["proc/loadavg"](text)["tasks"] == tasks for text in texts)


def _of_us(bench: Bench, box: Box, file: str) -> str:
    return Path(bench.own.daemon.mountpoint, "containers", box.identifier, file).read_text()


def _of_lxcfs(bench: Bench, box: Box, file: str) -> str:
    # lxcfs knows who asks by the pid namespace alone. A process that has joined that one but not
    # the cgroups leaves the container's memory as it is.
    path = str(bench.lxcfs.mountpoint / file)
    enter = ["nsenter", f"--target={box.pid}", "--pid", "--", "cat", path]
    return subprocess.run(enter, check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def look(running: Bench, request: pytest.FixtureRequest) -> Look:
    """A look at a container of each kind that has done something."""
    with running.box(request.param) as box, running.way(box, Way.SYSFSD):
        docker = box.own.docker
        box.run("timeout 1 sh -c 'while :; do :; done'")
        # From when it is first asked on, lxcfs knows a container.
        first = {file: _of_lxcfs(running, box, file) for file in FILES}
        docker.shell(box.name, f"python3 -c '{_HOLD}' >/tmp/hold 2>&1 &")
        until(lambda: "ready" in box.run("cat /tmp/hold"), "memory of all kinds")
        box.run("timeout 2 sh -c 'while :; do :; done'")
        until(lambda: _counted(running, box), "samples of both since it has held still")
        assert first.keys() == FILES.keys()
        found = until(lambda: _look(running, box), "a look at a container that holds still")
        assert found is not None
        return found


def _rule(file: str, field: str) -> Rule | None:
    return next((rule for rule in RULES if rule.covers(file, field)), None)


def test_every_difference_is_known(look: Look) -> None:
    unknown = [
        f"{file} {field}: {look.ours[file].get(field)}, lxcfs {look.lxcfs[file].get(field)}"
        for file, field in look.differences()
        if _rule(file, field) is None
    ]
    assert not unknown


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.file} {rule.fields}"[:60])
def test_who_is_right(look: Look, rule: Rule) -> None:
    truth = rule.truth(look.before, look.after)
    fields = [field for file, field in look.differences() if rule.covers(file, field)]
    for field in fields:
        ours, lxcfs = (side[rule.file].get(field, 0) for side in (look.ours, look.lxcfs))
        assert holds(truth, ours), f"{field}: {ours} is not {truth}"
        right = rule.lxcfs_right(look.before)
        assert rule.by_chance or holds(truth, lxcfs) is right, (
            f"{field}: {lxcfs} of lxcfs, {truth} is true"
        )
    assert fields or not rule.differ(look.before), "they do not differ"


def test_what_is_the_same_is_the_kernels(look: Look) -> None:
    """Two who agree may both be wrong."""
    kernel, ours = look.before, look.ours["proc/meminfo"]
    assert ours["MemTotal"] == kernel.limit // 1024
    assert ours["MemFree"] == (kernel.limit - kernel.usage) // 1024
    for name, key in {
        "Cached": "total_cache",
        "Shmem": "total_shmem",
        "Mapped": "total_mapped_file",
        "Active(file)": "total_active_file",
        "Inactive(file)": "total_inactive_file",
        "Active(anon)": "total_active_anon",
        "Inactive(anon)": "total_inactive_anon",
        "Unevictable": "total_unevictable",
    }.items():
        assert ours[name] == kernel.memory[key] // 1024, name
        assert look.lxcfs["proc/meminfo"][name] == ours[name]
    assert look.ours["sys/devices/system/cpu/online"] == look.lxcfs["sys/devices/system/cpu/online"]


def test_each_kind_of_memory_was_there(look: Look) -> None:
    """Else the comparison would be of zeros."""
    for name in ("Shmem", "Mapped", "AnonPages", "Unevictable", "Inactive(file)"):
        assert look.ours["proc/meminfo"][name] != 0, name
