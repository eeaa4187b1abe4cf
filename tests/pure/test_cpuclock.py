"""The CPU clock, under whatever a cgroup and an administrator can do to it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sysfsd.facts.cpuclock import CpuClock, CpuUsage, advance, start

SECOND = 1_000_000_000
steps = st.lists(
    st.tuples(
        st.integers(-SECOND, 10 * SECOND),  # time; a clock that goes back, too
        st.integers(-SECOND, 20 * SECOND),  # user; counters that are reset, too
        st.integers(-SECOND, 20 * SECOND),  # system
        st.integers(1, 9),  # visible CPUs
    ),
    max_size=30,
)


@given(steps, st.integers(0, 100 * SECOND), st.integers(1, 9))
def test_no_counter_runs_backwards_and_time_adds_up(
    moves: list[tuple[int, int, int, int]], born: int, visible: int
) -> None:
    now, usage = born + SECOND, CpuUsage(5, 7)
    clock = start(born, usage, now, visible)
    for time, user, system, count in moves:
        now += time
        usage = CpuUsage(max(0, usage.user + user), max(0, usage.system + system))
        after = advance(clock, usage, now, count)
        elapsed = after.now - clock.now
        assert elapsed == max(0, now - clock.now)
        assert after.carry.user >= 0 <= after.carry.system
        assert len(after.cpus) >= count
        for index, cpu in enumerate(after.cpus):
            before = clock.cpus[index] if index < len(clock.cpus) else (0, 0, 0)
            grown = [new - old for new, old in zip(cpu, before, strict=True)]
            assert min(grown) >= 0
            assert sum(grown) == (elapsed if index < count else 0)
        clock = after


@given(st.lists(st.tuples(st.integers(0, SECOND), st.integers(0, 100), st.integers(1, 4))))
def test_an_estimate_of_the_parts_may_go_back_but_nothing_that_is_shown(
    moves: list[tuple[int, int, int]],
) -> None:
    """cgroup v1: the sum is exact, and divided by samples."""
    total, now = 0, 0
    clock = start(0, CpuUsage(0, 0), now, 1)
    for used, percent, visible in moves:
        total += used
        now += SECOND
        system = total * percent // 100
        after = advance(clock, CpuUsage(total - system, system), now, visible)
        assert after.total.user >= clock.total.user
        assert after.total.system >= clock.total.system
        assert sum(after.usage) == total
        shown = after.total.user + after.total.system
        assert shown + sum(after.carry) == total
        clock = after


@given(
    st.lists(st.tuples(st.integers(0, SECOND), st.integers(0, SECOND), st.integers(1, 4))),
)
def test_all_that_is_used_is_shown_in_the_long_run(moves: list[tuple[int, int, int]]) -> None:
    usage, now = CpuUsage(0, 0), 0
    clock = start(0, usage, now, 1)
    for user, system, visible in moves:
        usage = CpuUsage(usage.user + user, usage.system + system)
        now += SECOND // 10
        clock = advance(clock, usage, now, visible)
        total = clock.total
        assert total.user + clock.carry.user == usage.user
        assert total.system + clock.carry.system == usage.system
    # Time enough for all that was carried over.
    clock = advance(clock, usage, now + 1000 * SECOND, 1)
    assert (clock.total.user, clock.total.system) == usage
    assert clock.carry == (0, 0)


@given(st.integers(1, 64), st.integers(0, 10**13), st.integers(0, 10**13), st.integers(0, 10**12))
def test_busy_and_idle_are_the_uptime_of_each_cpu(
    visible: int, user: int, system: int, uptime: int
) -> None:
    clock = start(40, CpuUsage(user, system), 40 + uptime, visible)

    assert all(sum(cpu) == uptime for cpu in clock.cpus)
    assert sum(clock.total) == visible * uptime


def test_time_is_spread_over_the_visible_cpus() -> None:
    clock = start(0, CpuUsage(3, 2), 10, 2)

    assert clock.cpus == ((2, 1, 7), (1, 1, 8))


def test_what_a_cgroup_did_before_the_container_is_left_out() -> None:
    clock = start(90 * SECOND, CpuUsage(1000 * SECOND, 0), 100 * SECOND, 1)
    later = advance(clock, CpuUsage(1001 * SECOND, 0), 110 * SECOND, 1)

    assert clock.total == (10 * SECOND, 0, 0)
    assert later.total == (11 * SECOND, 0, 9 * SECOND)


def test_a_hidden_cpu_stands_still_and_comes_back_where_it_was() -> None:
    two = start(0, CpuUsage(0, 0), SECOND, 2)
    one = advance(two, CpuUsage(0, 0), 2 * SECOND, 1)
    back = advance(one, CpuUsage(0, 0), 3 * SECOND, 2)

    assert [cpu.idle for cpu in one.cpus] == [2 * SECOND, SECOND]
    assert [cpu.idle for cpu in back.cpus] == [3 * SECOND, 2 * SECOND]
    assert isinstance(back, CpuClock)
