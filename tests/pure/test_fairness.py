"""Whose turn it is."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sysfsd.channel.fairness import FairQueue


def owners(queue: FairQueue[str], count: int) -> str:
    """Whose turns the next ones are, each done at once."""
    found = ""
    for _ in range(count):
        chosen = queue.pop()
        assert chosen is not None
        found += str(chosen[0])
        queue.done(chosen[0])
    return found


def test_in_turns() -> None:
    queue: FairQueue[str] = FairQueue(4)
    for number, owner in enumerate("aaaabbc"):
        queue.push(owner, number, owner)
    assert owners(queue, 7) == "abcabaa"
    assert queue.pop() is None


def test_who_asks_little_does_not_wait() -> None:
    queue: FairQueue[str] = FairQueue(4)
    for number in range(300):
        queue.push(number % 100, number, "")
    for _ in range(150):
        chosen = queue.pop()
        assert chosen is not None
        queue.done(chosen[0])
    queue.push("new", 1000, "")
    chosen = queue.pop()
    assert chosen is not None
    assert chosen[0] == "new"


def test_those_that_are_always_new_do_not_keep_others_waiting_for_ever() -> None:
    """Whoever has many user ids is many owners of `sysfsd mount`."""
    queue: FairQueue[str] = FairQueue(4)
    for number in range(10):
        queue.push("old", number, "")
    found = []
    for number in range(100, 200):
        queue.push(number, number, "")
        chosen = queue.pop()
        assert chosen is not None
        found.append(chosen[0])
        queue.done(chosen[0])
    assert found.count("old") == 10


def test_who_has_most_waiting_does_without_the_youngest() -> None:
    queue: FairQueue[str] = FairQueue(1)
    for number in range(5):
        queue.push("a", number, "", 10)
    queue.push("a", 5, "", 0)
    queue.push("b", 6, "", 49)
    assert queue.weight == 99
    assert queue.shed(2) == [(4, ""), (3, "")]
    assert queue.shed(2) == [(6, "")]
    assert queue.weight == 30
    assert [queue.get(number) for number in (2, 3, 6)] == ["", None, None]
    first = queue.pop()
    assert first is not None
    assert first[1] == 5
    queue.done("a")
    assert owners(queue, 3) == "aaa"
    assert queue.pop() is None
    assert queue.weight == 0
    assert queue.shed(2) == []


def test_no_more_than_so_many_of_one_at_once() -> None:
    queue: FairQueue[str] = FairQueue(2)
    for number in range(5):
        queue.push("a", number, "")
    assert [queue.pop() is not None for _ in range(3)] == [True, True, False]
    queue.push("b", 9, "")
    chosen = queue.pop()
    assert chosen is not None
    assert chosen[0] == "b"
    queue.done("a")
    chosen = queue.pop()
    assert chosen is not None
    assert chosen[:2] == ("a", 2)


def test_given_up() -> None:
    queue: FairQueue[str] = FairQueue(1)
    queue.push("a", 1, "x")
    assert queue.give_up(1) == "x"
    assert queue.give_up(1) is None
    assert queue.pop() is None
    assert len(queue) == 0


@given(st.lists(st.tuples(st.sampled_from("push pop done give".split()), st.integers(0, 4))))
def test_nothing_is_lost_or_doubled(steps: list[tuple[str, int]]) -> None:
    queue: FairQueue[int] = FairQueue(2)
    waiting: dict[int, int] = {}
    at_work: Counter[int] = Counter()
    for number, (what, owner) in enumerate(steps):
        if what == "push":
            queue.push(owner, number, number)
            waiting[number] = owner
        elif what == "pop":
            chosen = queue.pop()
            free = {each for each in waiting.values() if at_work[each] < 2}
            assert (chosen is None) == (not free)
            if chosen is not None:
                assert waiting.pop(chosen[1]) == chosen[0]
                assert chosen[1] == chosen[2]
                assert at_work[chosen[0]] < 2
                at_work[chosen[0]] += 1
        elif what == "done" and at_work[owner]:
            at_work[owner] -= 1
            queue.done(owner)
        elif what == "give":
            for each in list(waiting)[:1]:
                assert queue.give_up(each) == each
                del waiting[each]
        assert len(queue) == len(waiting)


def test_work_that_did_not_wait_counts_as_well() -> None:
    queue: FairQueue[str] = FairQueue(2)
    assert queue.is_idle()
    assert queue.begin("a")
    assert queue.begin("a")
    assert not queue.begin("a")
    queue.push("a", 1, "one")
    assert queue.waits("a")
    assert not queue.waits("b")
    assert queue.pop() is None
    queue.done("a")
    assert not queue.is_idle()
    assert queue.pop() == ("a", 1, "one")
    for _ in range(2):
        queue.done("a")
    assert not queue.waits("a")
    assert queue.is_idle()
