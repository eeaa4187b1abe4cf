"""Who waits when what can't be kept is asked for all the time."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest

from sysfsd.channel.allowance import LONG_NS, WINDOW_NS, Allowance
from sysfsd.channel.packets import MARK, Opcode, Request, is_bounded
from sysfsd.channel.turns import Turns

COST_NS = 70_000
AT_ONCE = 4


def owner(serial: int, *, uid: int = 100000, opcode: int = Opcode.READ) -> int:
    """Of a request in the second mount."""
    return Request(48, opcode, 1, MARK | serial << 32 | 7, uid).owner


class Machine:
    """A daemon that does nothing but answer, each request at the same cost, on one CPU."""

    def __init__(self, budget: float, *, cost: int = COST_NS) -> None:
        self.now = self.used = 0
        self.cost = cost
        allowance = Allowance(budget, clock=lambda: self.now, used=lambda: self.used)
        self.turns = Turns(AT_ONCE, allowance)
        self.numbers = count(1)
        self.answered: Counter[int] = Counter()
        self.waiting: dict[int, int] = {}
        self.waited: Counter[int] = Counter()

    def work(self, owner: int) -> None:
        self.now += self.cost
        self.used += self.cost
        self.answered[owner] += 1

    def ask(self, owner: int) -> bool:
        """Ask; returns whether that was answered at once."""
        if self.turns.is_next(owner):
            self.work(owner)
            self.turns.took(owner, self.cost)
            return True
        number = next(self.numbers)
        self.waiting[number] = self.now
        self.turns.push(owner, number, b"", 1)
        return False

    def answer(self) -> int | None:
        """Answer whoever has their turn; returns who that was."""
        chosen = self.turns.pop()
        if chosen is None:
            return None
        who, number, _ = chosen
        assert isinstance(who, int)
        self.work(who)
        self.turns.done(who, self.cost)
        self.waited[who] = max(self.waited[who], self.now - self.waiting.pop(number))
        return who

    def rest(self) -> None:
        """Have nothing to do until the next window."""
        assert self.turns.waits_for_window or not len(self.turns)
        self.now += max(1, int(self.turns.seconds_left() * 1e9))

    def hammer(self, owners: list[int], nanoseconds: int, *, depth: int = 1) -> None:
        """Have some ask all the time, so many requests at a time each."""
        end = self.now + nanoseconds
        asking = [owner for owner in owners for _ in range(depth)]
        while self.now < end:
            began = self.now
            asking = [each for each in asking if self.ask(each)]
            who = self.answer()
            if who in owners:
                asking.append(who)
            if self.now == began:
                self.rest()


@pytest.mark.parametrize("budget", [0.1, 0.5, 2])
@pytest.mark.parametrize("number", [1, 2, 20, 100])
@pytest.mark.parametrize("depth", [1, 2, 8])
def test_it_is_kept_to(budget: float, number: int, depth: int) -> None:
    machine = Machine(budget)
    owners = [owner(serial) for serial in range(1, number + 1)]
    machine.hammer(owners, 300 * WINDOW_NS, depth=depth)
    share = machine.used / machine.now
    assert min(budget * 0.6, 0.9) < share <= max(budget, 2 * COST_NS / WINDOW_NS)
    assert max(machine.answered.values()) <= 3 * min(machine.answered[each] for each in owners) + 9


@pytest.mark.parametrize(
    ("budget", "cost", "number"),
    [(0.01, 70_000, 30), (0.05, 70_000, 100), (0.5, 400_000, 200), (0.5, 70_000, 1000)],
)
def test_nobody_is_left_out_however_many_ask(budget: float, cost: int, number: int) -> None:
    machine = Machine(budget, cost=cost)
    owners = [owner(serial) for serial in range(1, number + 1)]
    machine.hammer(owners, 5_000_000_000, depth=2)
    assert min(machine.answered[each] for each in owners) * 3 > machine.answered.total() / number


def test_who_asks_now_and_then_hardly_waits() -> None:
    machine = Machine(0.5)
    other = owner(2)
    for _ in range(300):
        machine.hammer([owner(1)], WINDOW_NS // 3)
        for _ in range(6):
            machine.ask(other)
            while machine.answer() not in {None, other}:
                pass
    assert machine.answered[other] == 1800
    assert machine.waited[other] <= 3 * COST_NS


def test_what_takes_longer_counts_while_it_is_made() -> None:
    machine = Machine(0.5)
    begun = 0
    for number in range(64):
        machine.turns.push(owner(number % 16 + 1), 1000 + number, b"", 1)
    while machine.turns.pop() is not None:
        begun += 1
    assert 0 < begun * LONG_NS <= WINDOW_NS // 2 + LONG_NS
    # Not forgotten in the next one.
    machine.now += WINDOW_NS
    assert machine.turns.pop() is None


def test_those_who_have_had_little_are_not_let_on_without_end() -> None:
    machine = Machine(0.5)
    many = [owner(serial) for serial in range(2, 12)]
    for _ in range(100):
        machine.rest()
        while machine.ask(owner(1)):
            pass
        for _ in range(200):
            for each in many:
                machine.ask(each)
        while machine.answer() is not None:
            pass
    assert machine.used / machine.now <= 0.5


def test_who_asks_in_every_other_window_gets_little_more() -> None:
    machine = Machine(0.5)
    for number in range(100):
        while machine.ask(owner(number % 2 + 1)):
            pass
        machine.rest()
        while machine.answer() is not None:
            pass
    assert machine.used / machine.now < 0.5


def test_what_others_of_the_process_take_counts_as_well() -> None:
    machine = Machine(0.5)
    machine.used += WINDOW_NS
    owners = [owner(1), owner(2)]
    asked = [[machine.ask(each) for each in owners] for _ in range(100)]
    # They have a part of it nevertheless.
    assert asked[0] == [True, True]
    assert asked[-1] == [False, False]
    assert WINDOW_NS // 20 < machine.now < WINDOW_NS // 2


def test_whose_requests_are_bounded() -> None:
    assert is_bounded(owner(5))
    assert owner(5) != owner(6)
    # Of a user namespace whose root is the host's, too; but not what gives containers their files.
    assert is_bounded(owner(5, uid=0))
    assert not is_bounded(owner(5, uid=0, opcode=Opcode.LOOKUP))
    assert is_bounded(owner(5, opcode=Opcode.LOOKUP))
    assert not is_bounded(owner(0))
    assert not is_bounded(Request(48, Opcode.READ, 1, 5 << 32 | 7, 100000).owner)


def test_who_reads_views_does_not_wait_for_those() -> None:
    machine = Machine(0.5)
    while machine.ask(owner(1)):
        pass
    assert machine.turns.is_next(6)
    machine.turns.push(5, 1 << 20, b"view", 1)
    assert machine.turns.pop() == (5, 1 << 20, b"view")
    assert machine.turns.pop() is None
    assert machine.turns.waits_for_window
