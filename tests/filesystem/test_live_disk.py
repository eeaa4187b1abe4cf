"""The disk I/O of a real cgroup on a real block device, v1 or v2 (needs root, no FUSE)."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from sysfsd.containers.record import ContainerRecord
from sysfsd.facts.collector import FactsCollector
from sysfsd.facts.cpu import TICKS_PER_SECOND
from sysfsd.facts.keeper import Keeper
from sysfsd.kernel.cgroups import CgroupTree, read_cgroup_paths
from sysfsd.kernel.procfs import parse_task_stat, read_text
from sysfsd.log import RateLimit
from tests.support.views import view
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOP_CTL_ADD, LOOP_CTL_REMOVE = 0x4C80, 0x4C81
SIZE = 16 << 20
KIB = 1024

# Writes and reads a device, past every cache, as often as it is told to.
WORKER = """
import mmap, os, sys
block = mmap.mmap(-1, 64 << 10)
block.write(os.urandom(len(block)))
device = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
for line in sys.stdin:
    writes, reads = map(int, line.split())
    for number in range(writes):
        os.pwritev(device, [block], number * len(block))
    for number in range(reads):
        os.preadv(device, [block], number * len(block))
    print("done", flush=True)
"""


class Disk(NamedTuple):
    number: str
    name: str


def _removed(control: int, minor: int) -> bool:
    try:
        fcntl.ioctl(control, LOOP_CTL_REMOVE, minor)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@contextmanager
def loop_device(image: Path) -> Iterator[Disk]:
    """A block device of our own."""
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("no loop devices on this host")
    with image.open("wb") as file:
        file.truncate(SIZE)
    minor = 512 + os.getpid() % 1024
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, LOOP_CTL_ADD, minor)
        try:
            path = f"/dev/loop{minor}"
            until(lambda: os.path.exists(path), path)
            subprocess.run(["losetup", path, str(image)], check=True)
            device = os.stat(path).st_rdev
            yield Disk(f"{os.major(device)}:{os.minor(device)}", f"loop{minor}")
            subprocess.run(["losetup", "--detach", path], check=True)
        finally:
            until(lambda: _removed(control, minor), "the end of what udev looks for in it")
    finally:
        os.close(control)


@contextmanager
def cgroup(disk: Disk) -> Iterator[Path]:
    """A cgroup whose I/O is counted."""
    tree, own = CgroupTree.of_host(), read_cgroup_paths(os.getpid())
    found = tree.controller(own, "io" if own.get("blkio") is None else "blkio")
    if found is None:
        pytest.skip("no io controller on this host")
    path = Path(found.mountpoint, f"sysfsd-test-{os.getpid()}")
    if found.version == 2:
        enabled = Path(found.mountpoint, "cgroup.subtree_control").read_text().split()
        if "io" not in enabled:
            pytest.skip("the io controller is not enabled for cgroups of this host")
    path.mkdir()
    try:
        if found.version == 1:
            # Since Linux 6.10, v1 counts on devices on which there is a limit.
            limit = path / "blkio.throttle.read_bps_device"
            if not limit.exists():
                pytest.skip("this kernel does not throttle I/O, and so does not count it")
            limit.write_text(f"{disk.number} {1 << 40}")
        yield path
    finally:
        until(lambda: not (path / "cgroup.procs").read_text(), "an empty cgroup")
        path.rmdir()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with loop_device(tmp_path / "image") as made:
        yield made


@pytest.fixture
def worker(disk: Disk) -> Iterator[subprocess.Popen[str]]:
    with ExitStack() as stack:
        path = stack.enter_context(cgroup(disk))
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, f"/dev/{disk.name}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(process.kill)
        (path / "cgroup.procs").write_text(str(process.pid))
        yield process


def test_what_it_did_and_nothing_of_what_others_did(
    worker: subprocess.Popen[str], disk: Disk
) -> None:
    collector = FactsCollector(tree=CgroupTree.of_host(), refresh_ns=lambda: 0)

    caller = collector.callers.identify(worker.pid)

    def shown(path: str) -> list[list[str]]:
        text = view(path).render(collector.facts_of_caller(caller)).decode()
        return [line.split() for line in text.splitlines()]

    def work(writes: int, reads: int) -> None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        print(writes, reads, file=worker.stdin, flush=True)
        assert worker.stdout.readline() == "done\n"

    # Our own: udev's look at a new device, or this.
    subprocess.run(
        ["dd", f"if=/dev/{disk.name}", "of=/dev/null", "bs=1M", "count=1", "iflag=direct"],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    assert shown("proc/diskstats") == []
    assert len(shown("proc/partitions")) == 2  # a header and an empty line

    work(writes=8, reads=3)
    [line] = shown("proc/diskstats")
    major, minor = disk.number.split(":")
    assert line[:3] == [major, minor, disk.name]
    numbers = [int(field) for field in line[3:]]
    assert [numbers[column] for column in (0, 2, 4, 6)] == [3, 3 * 128, 8, 8 * 128]
    assert shown("proc/partitions")[2:] == [[major, minor, str(SIZE // KIB), disk.name]]
    events = {row[0]: int(row[1]) for row in shown("proc/vmstat")}
    assert (events["pgpgin"], events["pgpgout"]) == (3 * 64, 8 * 64)

    work(writes=0, reads=5)
    assert shown("proc/diskstats")[0][3:6] == ["8", "0", str(8 * 128)]


def test_counters_go_on_in_the_next_daemon(disk: Disk, tmp_path: Path) -> None:
    """v1 forgets what cgroups did that were removed; what was shown of it stays."""
    with cgroup(disk) as path, subprocess.Popen(["sleep", "infinity"]) as init:
        try:
            (path / "cgroup.procs").write_text(str(init.pid))
            started = parse_task_stat(read_text(f"/proc/{init.pid}/stat")).start_ticks
            box = ContainerRecord(
                id="disks",
                pid=init.pid,
                userns=None,
                uid_base=0,
                gid_base=0,
                started=started / TICKS_PER_SECOND,
                cgroup=read_cgroup_paths(init.pid),
                serial=1,
                registered_ns=0,
            )
            inner = path / "inner"
            inner.mkdir()
            move = f"echo $$ > {inner}/cgroup.procs; exec dd if=/dev/{disk.name} of=/dev/null "
            dd = f"{move} bs=64k count=4 iflag=direct"
            subprocess.run(["sh", "-c", dd], check=True, stderr=subprocess.DEVNULL)
            before = counted(box, tmp_path)
            until(lambda: not (inner / "cgroup.procs").read_text(), "an empty cgroup")
            inner.rmdir()
            after = counted(box, tmp_path)
        finally:
            init.kill()
            init.wait()
    assert before == after == (4, 4 * 128, 4 * 64)


def counted(box: ContainerRecord, directory: Path) -> tuple[int, int, int]:
    """Return reads, sectors read and pgpgin, as a new daemon shows them."""
    keeper = Keeper(str(directory / "clocks"), RateLimit())
    try:
        facts = FactsCollector(tree=CgroupTree.of_host(), keeper=keeper).facts(box)
        [line] = view("proc/diskstats").render(facts).decode().splitlines()
        events = dict(
            each.split() for each in view("proc/vmstat").render(facts).decode().splitlines()
        )
    finally:
        keeper.close_all()
    return int(line.split()[3]), int(line.split()[5]), int(events["pgpgin"])
