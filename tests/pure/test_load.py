"""Load averages: the kernel's arithmetic, and counting tasks on recorded trees."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.facts.load import (
    EXPONENTS,
    FIXED_1,
    RECOUNT_ROUNDS,
    KeptLoad,
    LoadSampler,
    Target,
    TaskCount,
    count_tasks,
    format_average,
    step,
)
from sysfsd.kernel.cgroups import Cgroup, CgroupTree, read_cgroup_paths

V2 = str(Path(__file__).parent / "fixtures/cgroup-v2")
SECOND = 1_000_000_000


def test_one_step_is_the_kernels() -> None:
    # calc_load(): (0 * 1884 + 1 * 2048 * (2048 - 1884) + 2047) >> 11
    assert step(0, EXPONENTS[0], 1) == 164
    assert step(164, EXPONENTS[0], 0) == 150
    assert format_average(164) == "0.08"


@given(st.integers(0, 64), st.integers(0, 64 * FIXED_1), st.sampled_from(EXPONENTS))
def test_averages_move_towards_the_load_and_never_past_it(
    active: int, average: int, factor: int
) -> None:
    target = active * FIXED_1
    after = step(average, factor, active)

    assert min(average, target) <= after <= max(average, target)


@given(st.integers(0, 64), st.integers(0, 64 * FIXED_1), st.integers(1, 30))
def test_catching_up_is_about_the_same_as_being_on_time(
    active: int, average: int, periods: int
) -> None:
    late = step(average, EXPONENTS[0], active, periods)
    for _ in range(periods):
        average = step(average, EXPONENTS[0], active)

    assert abs(late - average) <= FIXED_1 // 4


def test_a_steady_load_arrives() -> None:
    average = 0
    for _ in range(200):
        average = step(average, EXPONENTS[0], 3)
    assert format_average(average) == "3.00"


def container() -> Cgroup:
    return Cgroup(2, f"{V2}/sys/fs/cgroup", "/system.slice/docker-abc.scope")


def test_tasks_at_any_depth_are_counted_by_state() -> None:
    tasks = count_tasks(container(), proc=f"{V2}/proc", pid_depth=1)

    # 9999 ended meanwhile; 4301 is the newest and numbered 31 in the container.
    assert tasks == TaskCount(running=1, blocked=1, total=4, newest_pid=31, truncated=False)


@pytest.mark.parametrize("depth", [None, 7])
def test_no_pid_of_the_host_is_shown_where_the_containers_is_not_known(depth: int | None) -> None:
    assert count_tasks(container(), proc=f"{V2}/proc", pid_depth=depth).newest_pid == 0


def test_a_bound_that_was_hit_is_reported() -> None:
    tasks = count_tasks(container(), proc=f"{V2}/proc", pid_depth=1, limit=1)

    assert tasks.truncated
    assert tasks.total == 4


class Clock:
    def __init__(self) -> None:
        self.now = 100 * SECOND

    def __call__(self) -> int:
        return self.now


def sampler(clock: Clock, base: str = V2, *, per_round: int = 1000) -> LoadSampler:
    tree = CgroupTree.from_mountinfo(Path(f"{base}/proc/self/mountinfo").read_text(), base)
    return LoadSampler(tree, proc=f"{base}/proc", clock=clock, max_tasks_per_round=per_round)


def ran(base: str) -> None:
    """Have a task of the container use some CPU time."""
    stat = Path(base, "sys/fs/cgroup/system.slice/docker-abc.scope/cpu.stat")
    first, rest = stat.read_text().split("\n", 1)
    name, used = first.split()
    stat.write_text(f"{name} {int(used) + 1}\n{rest}")


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A tree of the test's own."""
    shutil.copytree(V2, tmp_path / "tree")
    return str(tmp_path / "tree")


def target(base: str = V2) -> Target:
    return Target(read_cgroup_paths(4242, f"{base}/proc"), pid_depth=1)


def test_the_first_read_is_sensible_and_later_samples_move_it(base: str) -> None:
    clock = Clock()
    loads = sampler(clock, base)
    loads.track("web", target(base))
    first = loads.load("web")
    assert first.averages == (0, 0, 0)
    assert (first.running, first.total, first.last_pid) == (1, 4, 31)

    clock.now += 5 * SECOND + 40_000_000  # a little late
    ran(base)
    report = loads.sample_all()
    assert (report.containers, report.counted, report.tasks, report.vanished) == (1, 1, 4, 0)
    assert loads.load("web").averages.one == step(0, EXPONENTS[0], 2)

    clock.now += 20 * SECOND  # slept through three rounds
    loads.sample_all()
    assert loads.load("web").averages.one == step(step(0, EXPONENTS[0], 2), EXPONENTS[0], 2, 4)


def test_where_nothing_ran_the_last_count_holds(base: str) -> None:
    clock = Clock()
    loads = sampler(clock, base)
    loads.track("web", target(base))
    loads.load("web")
    tasks = Path(base, "sys/fs/cgroup/system.slice/docker-abc.scope/cgroup.threads")
    before = tasks.read_text()

    # Nobody could see this happen without a task that runs.
    tasks.write_text("")
    clock.now += 5 * SECOND
    assert loads.sample_all().counted == 0
    assert loads.load("web").total == 4
    assert loads.load("web").averages.one == step(0, EXPONENTS[0], 2)  # it counts all the same

    ran(base)
    assert loads.sample_all().counted == 1
    assert loads.load("web").total == 3
    tasks.write_text(before)
    # Or an administrator moved a task in that sleeps: not for long.
    rounds = [loads.sample_all().counted for _ in range(2 * RECOUNT_ROUNDS)]
    assert rounds.count(1) == 2
    assert rounds.count(0) == 2 * RECOUNT_ROUNDS - 2
    assert loads.load("web").total == 4


def test_containers_take_turns_in_being_counted_again(base: str) -> None:
    loads = sampler(Clock(), base)
    for number in range(RECOUNT_ROUNDS):
        loads.track(number, target(base))
        loads.load(number)

    assert [loads.sample_all().counted for _ in range(RECOUNT_ROUNDS)] == [1] * RECOUNT_ROUNDS


def test_what_has_not_changed_is_not_kept_again(base: str) -> None:
    clock = Clock()
    kept: list[KeptLoad] = []
    tree = CgroupTree.from_mountinfo(Path(f"{base}/proc/self/mountinfo").read_text(), base)
    loads = LoadSampler(
        tree, proc=f"{base}/proc", clock=clock, keep=lambda _key, load: kept.append(load)
    )
    for stat in Path(base, "proc").glob("*/stat"):
        stat.write_text(stat.read_text().replace(" R ", " S ").replace(" D ", " S "))
    loads.track("web", target(base))
    loads.load("web")
    assert len(kept) == 1
    for _ in range(5):
        clock.now += 5 * SECOND
        loads.sample_all()
    assert len(kept) == 1

    # Who goes on from there an hour later has not had a load for an hour.
    successor = sampler(clock)
    successor.track("web", target(), kept[0])
    clock.now += 3600 * SECOND
    assert successor.load("web").averages == (0, 0, 0)


def test_the_last_pid_never_goes_back(base: str) -> None:
    loads = sampler(Clock(), base)
    loads.track("web", target(base))
    assert loads.load("web").last_pid == 31

    deep = Path(base, "sys/fs/cgroup/system.slice/docker-abc.scope/worker/deep")
    shutil.rmtree(deep)
    ran(base)
    loads.sample_all()
    assert loads.load("web").tasks.newest_pid == 9
    assert loads.load("web").last_pid == 31


def test_what_is_forgotten_is_gone_and_a_vanished_cgroup_does_not_stop_the_round(base: str) -> None:
    loads = sampler(Clock(), base)
    loads.track("web", target(base))
    shutil.rmtree(f"{base}/sys/fs/cgroup/system.slice/docker-abc.scope")
    assert loads.sample_all().vanished == 1

    loads.forget("web")
    assert loads.sample_all().containers == 0
    with pytest.raises(KeyError):
        loads.load("web")


def test_a_round_is_bounded_and_the_next_one_goes_on_from_there(base: str) -> None:
    clock = Clock()
    loads = sampler(clock, base, per_round=5)
    for name in "abc":
        loads.track(name, target(base))
    first = loads.sample_all()
    assert (first.tasks, first.postponed) == (8, 1)  # a and b; c was left out

    clock.now += 5 * SECOND
    ran(base)
    loads.sample_all()  # c and a
    clock.now += 5 * SECOND
    ran(base)
    assert loads.sample_all().postponed == 1  # b and c
    assert loads.load("b").averages.one == step(0, EXPONENTS[0], 2, 2)
