"""io of a real disk, as cgroup v2 counts it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.support.wait import until
from tests.vm.conftest import SCRATCH

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.box import Box
    from tests.vm.conftest import Start

WRITTEN = 24 << 20

CHECKOUT = SCRATCH.with_name("virtio-checkout")


def written(box: Box, device: int) -> int:
    """Bytes that a container wrote to a disk, by the kernel's word."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in (box.cgroup / "io.stat").read_text().splitlines():
        name, *pairs = line.split()
        if name == number:
            return int(dict(pair.split("=") for pair in pairs)["wbytes"])
    return 0


def shown(box: Box, device: int) -> int:
    """The same by the container's /proc/diskstats; the tenth column counts sectors."""
    for line in box.read("proc/diskstats").splitlines():
        major, minor, _, *numbers = line.split()
        if (int(major), int(minor)) == (os.major(device), os.minor(device)):
            return int(numbers[6]) * 512
    return 0


def test_writes_are_charged_to_the_container(start: Start, disk: Path) -> None:
    box = start("--volume", f"{disk}:/data")
    box.docker.shell(box.name, f"yes data | head -c {WRITTEN} >/data/file && sync /data/file")
    device = disk.stat().st_dev
    until(lambda: written(box, device) >= WRITTEN, "the write in io.stat")
    assert written(box, device) < 2 * WRITTEN
    until(lambda: shown(box, device) == written(box, device), "the same in its diskstats")
    names = {line.split()[2] for line in box.read("proc/diskstats").splitlines()}
    assert SCRATCH.resolve().name in names
    assert CHECKOUT.resolve().name not in names  # nothing of it was read in there
    # Dirty pages were written: none of them is left over in its memory.
    memory = box.meminfo()
    assert memory["Dirty"] + memory["Writeback"] < WRITTEN // 1024
    assert memory["Cached"] >= WRITTEN // 1024
