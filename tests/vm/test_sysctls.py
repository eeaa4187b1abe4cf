"""Emulated sysctls where systemd runs the service, with no more than its unit allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.vm.conftest import Start

UUID = "/sys/class/dmi/id/product_uuid"


def test_the_installed_service_emulates_them(start: Start) -> None:
    box = start()
    before = Path("/proc/sys/vm/swappiness").read_text()
    box.docker.shell(box.name, "echo 17 >/proc/sys/vm/swappiness")
    assert box.docker.shell(box.name, "cat /proc/sys/vm/swappiness") == "17"
    assert Path("/proc/sys/vm/swappiness").read_text() == before
    box.docker.shell(box.name, "echo inner >/proc/sys/kernel/hostname")
    assert box.docker.shell(box.name, "hostname") == "inner"


def test_each_container_is_a_machine_of_its_own(start: Start) -> None:
    host = Path(UUID).read_text().strip()
    uuids = []
    for box in (start(), start()):
        uuid = box.docker.shell(box.name, f"cat {UUID}")
        assert uuid == f"{host[:24]}{box.docker.inspect(box.name)['Id'][:12]}"
        assert box.docker.shell(box.name, f"stat -Lc '%a %u' {UUID}") == "400 0"
        uuids.append(uuid)
    assert len({host, *uuids}) == 3
