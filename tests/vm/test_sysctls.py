"""Emulated sysctls where systemd runs the service, with no more than its unit allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.attached import attach
from tests.support.containers import container
from tests.support.daemon import serving
from tests.vm.conftest import command

if TYPE_CHECKING:
    from tests.vm.conftest import Start

_IPVS = ("conntrack", "conn_reuse_mode", "expire_nodest_conn", "expire_quiescent_template")
UUID = "/sys/class/dmi/id/product_uuid"


def test_the_installed_service_emulates_them(start: Start) -> None:
    box = start()
    before = Path("/proc/sys/vm/swappiness").read_text()
    box.docker.shell(box.name, "echo 17 >/proc/sys/vm/swappiness")
    assert box.docker.shell(box.name, "cat /proc/sys/vm/swappiness") == "17"
    assert Path("/proc/sys/vm/swappiness").read_text() == before
    box.docker.shell(box.name, "echo inner >/proc/sys/kernel/hostname")
    assert box.docker.shell(box.name, "hostname") == "inner"
    # Added, in a directory in which all else is the kernel's own.
    neigh = "/proc/sys/net/ipv4/neigh"
    box.docker.shell(box.name, f"echo 77 >{neigh}/default/gc_thresh1")
    box.docker.shell(box.name, f"echo 4242 >{neigh}/lo/gc_stale_time")
    assert "eth0" in box.docker.shell(box.name, f"ls {neigh}").split()
    shown = box.docker.shell(box.name, f"cat {neigh}/default/gc_thresh1 {neigh}/lo/gc_stale_time")
    assert shown.split() == ["77", "4242"]
    assert Path(f"{neigh}/default/gc_thresh1").read_text() != "77\n"


def test_each_container_is_a_machine_of_its_own(start: Start) -> None:
    host = Path(UUID).read_text().strip()
    uuids = []
    for box in (start(), start()):
        uuid = box.docker.shell(box.name, f"cat {UUID}")
        assert uuid == f"{host[:24]}{box.docker.inspect(box.name)['Id'][:12]}"
        assert box.docker.shell(box.name, f"stat -Lc '%a %u' {UUID}") == "400 0"
        uuids.append(uuid)
    assert len({host, *uuids}) == 3


def test_ipvs(tmp_path: Path) -> None:
    """The module's, some of which the kernel gives to namespaces and some it hides."""
    command("modprobe", "ip_vs")
    with container(isolated=True) as box, serving(tmp_path) as daemon:
        attach(daemon, "box", box)
        for name in _IPVS:
            path = Path("/proc/sys/net/ipv4/vs", name)
            before = path.read_text()
            box.run("sh", "-c", f"echo 7 >{path}")
            assert box.run("cat", str(path)) == "7\n"
            assert path.read_text() == before
