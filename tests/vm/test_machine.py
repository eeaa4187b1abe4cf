"""This machine is what the other tests take it for, and sysfsd is at home on it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.vm.box import CGROUPS
from tests.vm.conftest import command


def test_the_machine_is_a_systemd_host_with_cgroup_v2_alone() -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    hierarchies = [
        line.split(" - ")[1].split()[0]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup" in line
    ]
    assert hierarchies == ["cgroup2"]
    enabled = (CGROUPS / "system.slice/cgroup.subtree_control").read_text().split()
    assert set(enabled) >= {"cpu", "cpuset", "io", "memory", "pids"}
    assert Path("/proc/pressure/memory").read_text().startswith("some avg10=")
    assert Path("/sys/devices/system/node/online").read_text() == "0-1\n"


def test_the_unit_starts_and_the_doctor_is_content(service: None) -> None:
    assert command("systemctl", "is-active", "sysfsd.service") == "active"
    assert command("findmnt", "--noheadings", "--output=FSTYPE", "/var/lib/sysfsd") == "fuse.sysfsd"
    checks = json.loads(command("sysfsd", "doctor", "--json"))["checks"]
    assert "daemon" in {check["name"] for check in checks}
    assert [check for check in checks if not check["ok"]] == []


def test_the_unit_keeps_within_its_bounds(service: None) -> None:
    show = command("systemctl", "show", "sysfsd.service", "--property=Result,TasksCurrent")
    values = dict(line.split("=") for line in show.splitlines())
    assert values["Result"] == "success"
    assert int(values["TasksCurrent"]) < 16
