"""Why a system container: the demo's table, as a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine import overhead, side_by_side

if TYPE_CHECKING:
    from tests.engine.docker import Docker
    from tests.engine.side_by_side import Comparison


@pytest.fixture(scope="module")
def comparison(docker: Docker) -> Comparison:
    return side_by_side.compare(docker)


def test_root_is_the_hosts_root_but_in_a_system_container(comparison: Comparison) -> None:
    assert comparison.privileged.host_uid == 0
    assert comparison.shared_socket.host_uid == 0
    assert comparison.system_container.host_uid > 1 << 16


def test_only_the_shared_socket_shows_the_hosts_containers(comparison: Comparison) -> None:
    assert comparison.shared_socket.sees_host_containers
    assert not comparison.system_container.sees_host_containers


def test_a_system_container_reaches_nothing_of_the_host(comparison: Comparison) -> None:
    assert set(comparison.system_container.reaches.values()) <= {"no", "missing"}


def test_the_other_two_do(comparison: Comparison) -> None:
    # Else the checks would show nothing.
    for way in (comparison.privileged, comparison.shared_socket):
        assert way.reaches["sysctl"] == "yes"
        assert way.reaches["disk"] == "yes"
        assert way.reaches["sysrq"] in {"yes", "missing"}
        assert way.reaches["module"] in {"yes", "missing"}


def test_numbers_are_the_containers_own(comparison: Comparison) -> None:
    ours, theirs = comparison.system_container, comparison.privileged
    assert (ours.memory_mib, ours.cpus) == (side_by_side.MEMORY_MIB, 1)
    assert ours.memory_mib < theirs.memory_mib
    assert ours.uptime < theirs.uptime


def test_it_can_be_read(comparison: Comparison) -> None:
    text = side_by_side.table(comparison)
    assert max(len(line) for line in text.splitlines()[:12]) <= 110
    assert "system container" in text


def test_overhead_is_printed(docker: Docker, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = 5
    plain, ours = overhead.measure(docker, rounds)
    assert plain > 0
    assert ours > 0
    with capsys.disabled():
        print(f"\n{overhead.report(plain, ours, rounds)}")
