"""How long answers live, under whatever load."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.freshness import LONGEST_LIMITS_NS, LONGEST_NS, WINDOW_NS, Freshness, stretched

shares = st.floats(0, 8)


class Machine:
    """A clock, and a process that takes `demand` of a CPU unstretched."""

    def __init__(self) -> None:
        self.now = 5 * 10**9
        self.used = 0

    def freshness(self, budget: float = 0.5) -> Freshness:
        return Freshness(budget=budget, clock=lambda: self.now, used=lambda: self.used)

    def run(self, freshness: Freshness, demand: float, windows: int) -> list[float]:
        """Let some windows pass; returns the shares that were used."""
        shares = []
        for _ in range(windows):
            share = demand / freshness.stats()["stretch"]
            shares.append(share)
            self.now += WINDOW_NS
            self.used += int(share * WINDOW_NS)
            assert freshness.moving_ns
        return shares


def test_nothing_is_stretched_without_load() -> None:
    machine = Machine()
    freshness = machine.freshness()
    machine.run(freshness, 0.3, 50)
    assert freshness.moving_ns == 50_000_000
    assert freshness.limits_ns == 1_000_000_000
    assert freshness.stats()["cpu_used"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("budget", [0.05, 0.5, 2])
@pytest.mark.parametrize("over", [1.2, 3, 15])
def test_use_settles_within_the_budget(budget: float, over: float) -> None:
    machine = Machine()
    freshness = machine.freshness(budget)
    machine.run(freshness, budget * over, 60)
    settled = machine.run(freshness, budget * over, 30)
    assert max(settled) <= budget
    # And not far below: fresh numbers are what the budget is for.
    assert min(settled) > budget * 0.6


def test_there_is_an_end_to_it() -> None:
    machine = Machine()
    freshness = machine.freshness()
    machine.run(freshness, 1000, 100)
    assert freshness.moving_ns == LONGEST_NS
    assert freshness.limits_ns == LONGEST_LIMITS_NS
    assert freshness.stats()["stretch"] == 20


def test_a_rest_is_enough_to_recover() -> None:
    machine = Machine()
    freshness = machine.freshness()
    machine.run(freshness, 1000, 100)
    machine.now += 100 * WINDOW_NS
    assert freshness.moving_ns == 50_000_000


def test_within_a_window_nothing_changes() -> None:
    machine = Machine()
    freshness = machine.freshness()
    machine.now += WINDOW_NS - 1
    machine.used += 10 * WINDOW_NS
    assert freshness.moving_ns == 50_000_000


@given(st.floats(1, 20), shares, st.floats(0.01, 8), st.floats(1, 1e6))
def test_bounds(stretch: float, used: float, budget: float, windows: float) -> None:
    after = stretched(stretch, used, budget, windows, 20)
    assert 1 <= after <= 20
    assert after <= stretch * 2
    if used > budget:
        assert after > stretch or after == 20
    if used < budget / 2:
        assert after < stretch or after == 1


def test_a_second_of_life_is_never_stretched() -> None:
    assert stretched(1, 8, 0.5, 1, LONGEST_NS / LONGEST_NS) == 1
