"""Who waits when what can't be kept is asked for all the time."""

from __future__ import annotations

from collections import Counter

import pytest

from sysfsd.channel.allowance import WINDOW_NS, Allowance

COST_NS = 70_000


class Machine:
    """A daemon that does nothing but answer, each request at the same cost."""

    def __init__(self, budget: float) -> None:
        self.now = self.used = 0
        self.allowance = Allowance(budget, clock=lambda: self.now, used=lambda: self.used)
        self.answered: Counter[str] = Counter()

    def ask(self, owner: str) -> bool:
        if not self.allowance.may_go(owner):
            return False
        self.now += COST_NS
        self.used += COST_NS
        self.allowance.took(owner, COST_NS)
        self.answered[owner] += 1
        return True

    def hammer(self, owners: list[str], nanoseconds: int) -> None:
        end = self.now + nanoseconds
        while self.now < end:
            answered = [self.ask(owner) for owner in owners]
            if not any(answered):
                self.now += max(1, int(self.allowance.seconds_left() * 1e9))


@pytest.mark.parametrize("budget", [0.1, 0.5, 2])
@pytest.mark.parametrize("count", [1, 2, 20, 100])
def test_it_is_kept_to(budget: float, count: int) -> None:
    machine = Machine(budget)
    machine.hammer([f"owner{number}" for number in range(count)], 100 * WINDOW_NS)
    assert (
        min(budget * 0.65, 0.9) < machine.used / machine.now <= max(budget, 2 * COST_NS / WINDOW_NS)
    )


def test_who_asks_now_and_then_never_waits() -> None:
    machine = Machine(0.5)
    held = 0
    for _ in range(300):
        machine.hammer(["hammer"], WINDOW_NS // 3)
        held += sum(not machine.ask("other") for _ in range(6))
    assert held == 0
    assert machine.answered["other"] == 1800


def test_it_begins_anew_after_a_while() -> None:
    machine = Machine(0.1)
    machine.hammer(["hammer"], 5 * WINDOW_NS)
    while machine.ask("hammer"):
        pass
    machine.now += 50 * WINDOW_NS
    assert machine.ask("hammer")


def test_what_others_of_the_process_take_counts_as_well() -> None:
    machine = Machine(0.5)
    machine.hammer(["one", "other"], WINDOW_NS)
    machine.now += int(machine.allowance.seconds_left() * 1e9)
    assert machine.ask("one")
    machine.used += WINDOW_NS // 2
    began = machine.now
    # They have a part of it nevertheless.
    asked = [[machine.ask(owner) for owner in ("one", "other")] for _ in range(50)]
    assert asked[0] == [True, True]
    assert asked[-1] == [False, False]
    assert WINDOW_NS // 20 < machine.now - began < WINDOW_NS // 4


def test_who_asks_in_every_other_window_gets_little_more() -> None:
    machine = Machine(0.5)
    for number in range(100):
        machine.hammer([f"owner{number % 2}"], int(machine.allowance.seconds_left() * 1e9) + 1)
    assert machine.used / machine.now < 0.5 * 1.25
