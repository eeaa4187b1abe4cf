"""Counting times, and what is said of them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.figures import Tally, bucket_of, middle_of, parse_answer, percentile, total

TIMES = st.integers(min_value=0, max_value=1 << 40)


@given(TIMES)
def test_a_bucket_stands_for_a_time_within_a_hundredth(nanoseconds: int) -> None:
    assert middle_of(bucket_of(nanoseconds)) == pytest.approx(nanoseconds, rel=0.01, abs=0.5)


@given(TIMES)
def test_a_longer_time_is_in_no_earlier_bucket(nanoseconds: int) -> None:
    assert bucket_of(nanoseconds) <= bucket_of(nanoseconds + 1) <= bucket_of(nanoseconds) + 1


@given(st.lists(TIMES, min_size=1), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_that_of_the_sorted_times(times: list[int], share: float) -> None:
    # The nearest rank: the first of which so many are not larger.
    wanted = next(time for rank, time in enumerate(sorted(times), 1) if rank >= share * len(times))
    found = percentile(Counter(map(bucket_of, times)), share)
    assert found == pytest.approx(wanted, rel=0.01, abs=0.5)


def test_of_nothing_there_is_no_percentile() -> None:
    with pytest.raises(ValueError, match="no times"):
        percentile({}, 0.5)


def test_rounds_add_up() -> None:
    first = Tally(10**9, 2, 20, Counter({1: 2}))
    second = Tally(3 * 10**9, 2, 20, Counter({1: 1, 5: 1}))
    whole = total([first, second])
    assert (whole.operations, whole.bytes, whole.buckets) == (4, 40, Counter({1: 3, 5: 1}))
    assert whole.per_second == 1
    assert first.operations == 2, "what was added up stays as it was"


def test_an_answer_is_read() -> None:
    tally = parse_answer("1000000 3 300 100:2 300:1")
    assert tally == Tally(1_000_000, 3, 300, Counter({100: 2, 300: 1}))
    assert tally.per_second == 3000


@pytest.mark.parametrize("line", ["", "error /nope: No such file or directory", "1 0 0", "1 2"])
def test_what_is_no_result_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match=line or "ended"):
        parse_answer(line)
