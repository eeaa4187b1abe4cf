"""The parts of ``sysfsd doctor`` that need no host."""

from __future__ import annotations

import pytest

from sysfsd.doctor import Setting, counted, kernel, kernel_version


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


def test_sysctls_in_one_line() -> None:
    states = ("emulated", "native", "emulated")
    settings = [Setting(f"vm/{at}", state, "container", "us") for at, state in enumerate(states)]
    check = counted(settings, None)
    assert (check.ok, check.found) == (True, "1 native, 2 emulated, 0 absent")
    check = counted([], "run it with sudo")
    assert (check.ok, check.found, check.fix) == (False, "not known", "run it with sudo")
