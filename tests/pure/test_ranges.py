"""Ranges of subordinate ids."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.containers import ranges
from sysfsd.containers.ranges import SIZE, IdRange
from sysfsd.containers.record import check_id
from sysfsd.errors import InvalidRequest, NoRangeLeft

TEXT = """\
# a comment
alice:100000:65536
sysfsd:1000000:131072
sysfsd : 5 : 6
sysfsd:1:2:3
sysfsd:x:65536
998:2000000:70000

sysfsd:3000000:65535
"""


def test_lines_of_a_user_by_name_or_uid() -> None:
    found = ranges.parse_subids(TEXT, {"sysfsd", "998"})
    assert found == [(1000000, 131072), (2000000, 70000), (3000000, 65535)]
    assert ranges.bases(found) == [1000000, 1065536, 2000000]
    assert ranges.parse_subids(TEXT, {"bob"}) == []


@given(st.lists(st.tuples(st.integers(0, 2**33), st.integers(0, 20 * SIZE)), max_size=8))
def test_containers_never_share_an_id(configured: list[tuple[int, int]]) -> None:
    bases = ranges.bases(configured)
    assert bases == sorted(bases)
    for one, other in pairwise(bases):
        assert one + SIZE <= other
    for base in bases:
        assert base >= SIZE, "the host's own"
        assert base + SIZE <= 2**32 - 1
    covered = {each for first, count in configured for each in (first, first + count)}
    assert not bases or min(covered) <= bases[0]


def test_uids_and_gids_are_paired() -> None:
    pairs = ranges.pair([100000, 200000, 300000], [700000, 800000])
    assert pairs == [IdRange(100000, 700000), IdRange(200000, 800000)]


def test_a_range_rests_as_long_as_it_can() -> None:
    known = ranges.pair([100000, 200000, 300000], [100000, 200000, 300000])
    order = []
    last = None
    for _ in range(4):
        last = ranges.choose(known, frozenset[IdRange]().__contains__, last)
        order.append(last)
    assert order == [*known, known[0]]
    assert ranges.choose(known, known[1:2].__contains__, known[0]) == known[2]


def test_none_left_and_what_to_do() -> None:
    known = ranges.pair([100000], [100000])
    with pytest.raises(NoRangeLeft):
        ranges.choose(known, known.__contains__, None)
    with pytest.raises(NoRangeLeft):
        ranges.choose([], known.__contains__, None)
    advice = ranges.advice("sysfsd", "none")
    assert "sysfsd:10000000:6553600" in advice
    assert "/etc/subuid /etc/subgid" in advice


@pytest.mark.parametrize(
    ("mapped", "expected"),
    [
        ((100000, 65536), True),
        ((99999, 1), False),
        ((99999, 2), True),
        ((165535, 1), True),
        ((165536, 1), False),
        ((0, 4294967295), True),
    ],
)
def test_ids_that_somebody_uses(mapped: tuple[int, int], expected: bool) -> None:
    assert ranges.overlaps(IdRange(100000, 100000), [mapped]) is expected


@pytest.mark.parametrize("value", ["web", "a" * 255, "A.b_c+d-0", "...", "-"])
def test_ids(value: str) -> None:
    assert check_id(value) == value


@pytest.mark.parametrize("value", ["", ".", "..", "a/b", "a\n", "\n", "a" * 256, "ä", None, 1])
def test_what_is_no_id(value: object) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_id(value)
    said = str(raised.value)
    assert said.startswith(repr(value)[:80] if isinstance(value, str) else "this is not")
    assert len(said) < 200
