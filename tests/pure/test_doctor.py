"""The parts of ``sysfsd doctor`` that need no host."""

from __future__ import annotations

import pytest

from sysfsd.doctor import RaisedNow, Setting, counted, kernel, kernel_version, policy_cell


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.12.117+deb13-cloud-amd64", (6, 12)),
        ("6.1.0-37-amd64", (6, 1)),
        ("6.9-rc1", (6, 9)),
        ("6.8.0-60-generic", (6, 8)),
        ("5.15.167.4-microsoft-standard-WSL2", (5, 15)),
        ("10.0", (10, 0)),
        ("next-20261124", (0, 0)),
    ],
)
def test_kernel_version(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


@pytest.mark.parametrize(
    ("release", "ok"), [("5.18.19", False), ("5.19.0-50-generic", True), ("6.1.0-37-amd64", True)]
)
def test_a_kernel_that_idmaps_overlays(release: str, ok: bool) -> None:
    check = kernel(release)
    assert (check.ok, check.found) == (ok, release)
    assert "5.19" in check.fix


def setting(state: str, policy: str = "never", raised: RaisedNow | None = None) -> Setting:
    return Setting("vm/max_map_count", state, "container", policy, raised, "us")


@pytest.mark.parametrize(
    ("found", "cell"),
    [
        (setting("emulated"), ""),
        (setting("native"), ""),
        (setting("emulated", "forbid"), "forbid"),
        (setting("native", "max"), "max, no effect"),
        (setting("emulated", "max"), "max"),
        (setting("emulated", "max", RaisedNow(5, 9, 2)), "max: 5 -> 9 for 2 containers"),
        (setting("emulated", "never", RaisedNow(5, 9, 1)), "was max: 5 -> 9 for 1 container"),
    ],
)
def test_what_was_decided_and_what_came_of_it(found: Setting, cell: str) -> None:
    assert policy_cell(found) == cell


def test_sysctls_in_one_line() -> None:
    states = ("emulated", "native", "emulated")
    settings = [setting(state) for state in states]
    check = counted(settings, None)
    assert (check.ok, check.found) == (True, "1 native, 2 emulated, 0 added, 0 hidden, 0 absent")
    check = counted([], "run it with sudo")
    assert (check.ok, check.found, check.fix) == (False, "not known", "run it with sudo")
