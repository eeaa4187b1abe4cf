"""Very many containers: what each of them costs, in descriptors, tasks and memory; no times."""

from __future__ import annotations

import os
from operator import itemgetter
from typing import TYPE_CHECKING

import psutil
import pytest

from sysfsd.control.client import Client
from tests.support.many import many
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Serving
    from tests.support.many import Cheap

COUNT = 200

DESCRIPTORS = 18
"""Of one container: its init, three namespaces, the file of its counters, and those of its cgroups
that were read (`kernel.openfiles`, bounded for all of them together); some to spare."""

MEMORY = 100 << 10
"""Bytes of one container whose main files have been read: a thousand of them, and the daemon
itself, must do with 150 MB."""

VIEWS = ("proc/meminfo", "proc/stat", "proc/loadavg", "proc/sys/vm/swappiness")


@pytest.fixture
def crowd(daemon: Serving) -> Iterator[list[Cheap]]:
    with many(COUNT) as containers:
        yield containers
    until(lambda: not daemon.ids(), "an empty registry")


def _register(daemon: Serving, crowd: list[Cheap]) -> None:
    with Client(daemon.control) as client:
        for number, each in enumerate(crowd):
            pidfd = os.pidfd_open(each.pid)
            client.call("register", {"id": f"many-{number}"}, [pidfd])
            os.close(pidfd)


def test_each_costs_little_and_leaves_nothing(daemon: Serving, crowd: list[Cheap]) -> None:
    process = psutil.Process(daemon.process.pid)

    def cost() -> tuple[int, int, int]:
        tasks = daemon.call("stats")["tasks"]
        return process.num_fds(), tasks, process.memory_info().rss

    # One before the rest, with all of what the first one needs once.
    _register(daemon, crowd[:1])
    for view in VIEWS:
        assert (daemon.containers / "many-0" / view).read_bytes()
    # The task of a connection may outlive it for a moment.
    descriptors, tasks, memory = min((cost() for _ in range(5)), key=itemgetter(1))

    _register(daemon, crowd)
    for number in range(COUNT):
        for view in VIEWS:
            assert (daemon.containers / f"many-{number}" / view).read_bytes()
    others = COUNT - 1
    until(lambda: cost()[1] - tasks == others, "a task for each, and no other")
    more_descriptors, _, more_memory = cost()

    assert others <= more_descriptors - descriptors <= DESCRIPTORS * others
    assert more_memory - memory <= MEMORY * others
    assert len(daemon.ids()) == len(os.listdir(daemon.containers)) == COUNT

    for number in range(1, COUNT):
        daemon.call("release", id=f"many-{number}")

    def given_back() -> bool:
        # No fewer tasks than before, and no more descriptors; memory is Python's to keep.
        after = cost()
        return after[0] <= descriptors and after[1] == tasks

    until(given_back, "descriptors and tasks")
    stats = daemon.call("stats")
    assert (stats["containers"], stats["sysctls"]["containers"]) == (1, 1)
    assert stats["snapshots"] <= len(VIEWS)


def test_each_has_its_own_numbers(daemon: Serving, crowd: list[Cheap]) -> None:
    for number, each in enumerate(crowd):
        for cgroup in each.cgroups:
            for file in ("memory.limit_in_bytes", "memory.max"):
                if (cgroup / file).exists():
                    (cgroup / file).write_text(str((64 + number) << 20))
    _register(daemon, crowd)

    for number in range(COUNT):
        path = daemon.containers / f"many-{number}" / "proc/meminfo"
        assert int(path.read_text().split()[1]) == (64 + number) << 10


def test_those_that_sleep_are_not_counted_again(daemon: Serving, crowd: list[Cheap]) -> None:
    """A round over containers in which nothing runs must not look at all of their tasks."""
    _register(daemon, crowd)

    def leaves_most_out() -> bool:
        last = daemon.call("stats")["load_sampler"]
        assert last["tasks"] <= last["counted"] * 2
        return bool(last["containers"] == COUNT and last["counted"] < COUNT // 4)

    # The first round after they came counts all; then they take turns.
    until(leaves_most_out, "a round that leaves most of them out")


def test_times_of_requests_are_in_the_counters(daemon: Serving, crowd: list[Cheap]) -> None:
    before = daemon.call("stats")["control"]["methods"].get("register", {"requests": 0})
    _register(daemon, crowd[:5])

    after = daemon.call("stats")["control"]["methods"]["register"]
    assert after["requests"] - before["requests"] == 5
    assert 0 < after["mean_ms"] <= after["longest_ms"]
