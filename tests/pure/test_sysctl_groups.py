"""Ranges of groups, as a container numbers them and as the host does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.sysctls.groups import GID_MAX, NOBODYS, Extent, inwards, outwards, parse_map

ONE = (Extent(0, 100000, 65536),)
TWO = (Extent(0, 100000, 1000), Extent(5000, 300000, 10))


def test_a_map() -> None:
    assert parse_map("         0     100000      65536\n") == ONE
    assert parse_map("") == ()
    with pytest.raises(ValueError):
        parse_map("0 1\n")


@pytest.mark.parametrize(
    ("extents", "low", "high", "groups"),
    [
        (ONE, 0, 0x7FFFFFFF, (100000, 165535)),
        (ONE, 0, GID_MAX, (100000, 165535)),
        (ONE, 0, 0, (100000, 100000)),
        (ONE, 7, 8, (100007, 100008)),
        (ONE, 65535, 65536, (165535, 165535)),
        (ONE, 65536, 70000, None),
        (ONE, 1, 0, NOBODYS),
        (ONE, 70000, 0, None),
        (TWO, 0, 4999, (100000, 100999)),
        (TWO, 999, 5000, (100999, 300000)),
        (TWO, 1000, 9999, (300000, 300009)),
        (TWO, 1000, 4999, None),
        ((), 0, 1, None),
    ],
)
def test_of_those_it_has(
    extents: tuple[Extent, ...], low: int, high: int, groups: tuple[int, int] | None
) -> None:
    assert outwards(extents, low, high) == groups


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_there_and_back(low: int, high: int) -> None:
    groups = outwards(ONE, low, high)
    assert groups is not None
    if low <= high:
        assert tuple(inwards(ONE, each, 65534) for each in groups) == (low, high)
    else:
        assert tuple(inwards(ONE, each, 65534) for each in groups) == (65534, 65534)
