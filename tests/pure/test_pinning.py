"""Which CPUs, whose value, and what a successor knows."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.kernel.cpusets import CpusetKey, CpusetState
from sysfsd.kernel.procfs import parse_cpu_list
from sysfsd.pinning.choice import Decision, Pin, choose, count_pins, decide, format_cpus
from sysfsd.pinning.remembered import decode, encode, load, save

if TYPE_CHECKING:
    from pathlib import Path

cpus = st.frozensets(st.integers(0, 63), min_size=1).map(lambda found: tuple(sorted(found)))
texts = st.just("") | cpus.map(format_cpus)
pins = st.builds(Pin, texts, cpus, st.just(()) | cpus)
counts = st.dictionaries(st.integers(0, 63), st.integers(0, 9))


@given(cpus, st.integers(1, 70), counts, cpus)
def test_as_many_as_there_may_be_and_none_that_is_not_allowed(
    allowed: tuple[int, ...], count: int, others: dict[int, int], current: tuple[int, ...]
) -> None:
    chosen = choose(allowed, count, others, current)

    assert set(chosen) <= set(allowed)
    assert len(chosen) == min(count, len(allowed)) == len(set(chosen))
    assert chosen == choose(reversed(allowed), count, others, current)
    # Nothing moves without need.
    stay = set(current) & set(allowed)
    assert stay <= set(chosen) or set(chosen) <= stay


@given(cpus, st.lists(st.integers(1, 4), max_size=30))
def test_pins_are_balanced(allowed: tuple[int, ...], sizes: list[int]) -> None:
    taken: Counter[int] = Counter()
    for size in sizes:
        taken.update(choose(allowed, size, taken, ()))
    load = [taken[cpu] for cpu in allowed]
    assert max(load) - min(load) <= 1


def test_the_fewest_pins_first_then_the_lowest_number() -> None:
    others = count_pins([Pin("", (0, 1)), Pin("", (0,))])

    assert others == {0: 2, 1: 1}
    assert choose((0, 1, 2, 3), 3, others, ()) == (1, 2, 3)
    assert choose((0, 1, 2, 3), 1, others, ()) == (2,)
    assert choose((0, 1, 2, 3), 2, others, (0,)) == (0, 2)
    assert choose((0, 1, 2, 3), 1, others, (0, 1)) == (1,)


ALL = (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("requested", "quota", "pin", "expected"),
    [
        # First seen, with and without something to pin.
        ("0-3", 1, None, Decision(Pin("0-3", (0,)), "0")),
        ("", 2, None, Decision(Pin("", (0, 1)), "0,1")),
        ("0-3", None, None, Decision(None, None)),
        ("0-3", 4, None, Decision(None, None)),
        ("2", 1, None, Decision(None, None)),
        # Ours, and right.
        ("1", 1, Pin("0-3", (1,)), Decision(Pin("0-3", (1,)), None)),
        # The quota grows, shrinks, goes.
        ("1", 2, Pin("0-3", (1,)), Decision(Pin("0-3", (0, 1), (1,)), "0,1")),
        ("0-1", 1, Pin("0-3", (0, 1)), Decision(Pin("0-3", (0,), (0, 1)), "0")),
        ("1", None, Pin("0-3", (1,)), Decision(None, "0-3")),
        ("1", None, Pin("", (1,)), Decision(None, "")),
        # The engine writes its own.
        ("2-3", 1, Pin("0-3", (1,)), Decision(Pin("2-3", (2,)), "2")),
        ("0-3", 1, Pin("0-3", (1,)), Decision(Pin("0-3", (0,)), "0")),
        ("2-3", None, Pin("0-3", (1,)), Decision(None, None)),
        # A successor of one that was killed between remembering and writing, or after it.
        ("1", 2, Pin("0-3", (0, 1), (1,)), Decision(Pin("0-3", (0, 1), (1,)), "0,1")),
        ("0-1", 2, Pin("0-3", (0, 1), (1,)), Decision(Pin("0-3", (0, 1)), None)),
        ("0-3", 1, Pin("0-3", (1,)), Decision(Pin("0-3", (0,)), "0")),
    ],
)
def test_decisions(requested: str, quota: int | None, pin: Pin | None, expected: Decision) -> None:
    counts = count_pins([pin] if pin is not None else [])
    assert decide(CpusetState(requested, ALL), quota, pin, counts) == expected


def test_what_hotplug_leaves_of_ours_is_ours() -> None:
    pin = Pin("0-3", (1, 2))
    assert decide(CpusetState("2", (0, 2, 3)), 2, pin, {1: 1, 2: 1}) == (
        Pin("0-3", (0, 2), (2,)), "0,2",
    )  # fmt: skip
    assert decide(CpusetState("", (0, 3)), None, pin, {}) == (None, "0-3")
    # But not what somebody wrote while all are there.
    assert decide(CpusetState("2", ALL), 1, pin, {}) == (None, None)


def test_cpus_that_the_parent_has_not_are_not_chosen() -> None:
    assert decide(CpusetState("0-7", (6, 7)), 1, None, {}).text == "6"
    assert decide(CpusetState("0-1", (6, 7)), 1, None, {}).text == "6"  # as v2 falls back


@given(texts, cpus, st.none() | st.integers(1, 70), st.none() | pins, counts)
def test_a_decision_is_allowed_and_stays(
    requested: str, above: tuple[int, ...], quota: int | None, pin: Pin | None,
    others: dict[int, int],
) -> None:  # fmt: skip
    first = decide(CpusetState(requested, above), quota, pin, others)
    after = requested if first.text is None else first.text
    if first.pin is not None:
        assert set(first.pin.wrote) <= set(above)
        assert parse_cpu_list(after) == first.pin.wrote
        assert len(first.pin.wrote) == quota
    second = decide(CpusetState(after, above), quota, first.pin, others)
    assert second.text is None
    assert (second.pin is None) == (first.pin is None)
    # And when there is nothing to pin any more, what was not ours is back.
    if first.pin is not None:
        assert decide(CpusetState(after, above), None, second.pin, {}).text == first.pin.user


KEY = CpusetKey(1, "/sys/fs/cgroup/cpuset", "/docker/abc", 33, 1 << 40)
keys = st.builds(
    CpusetKey,
    st.sampled_from((1, 2)),
    st.text(),
    st.text(min_size=1).map(lambda name: f"/x{name}"),
    st.integers(0),
    st.integers(0),
)


@given(st.dictionaries(keys, pins, max_size=4))
def test_there_and_back(known: dict[CpusetKey, Pin]) -> None:
    data = encode(known, "boot")
    assert decode(data, "boot") == known
    assert decode(data, "another") == {}


@given(st.binary())
def test_no_bytes_do_anything_worse(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data, "boot")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"/docker/abc"', '"/"'), ('"/docker/abc"', "7"), ('"version": 1', '"version": 3'),
        ('"wrote": [1]', '"wrote": "1"'), ('"wrote": [1]', '"wrote": [-1]'), ('"0-3"', '"x"'),
        ('"pins": [', '"pins": [7, '), ('"inode"', '"node"'),
    ],
)  # fmt: skip
def test_a_document_of_another_shape(old: str, new: str) -> None:
    data = encode({KEY: Pin("0-3", (1,))}, "boot").decode()
    assert old in data
    with pytest.raises(ValueError):
        decode(data.replace(old, new).encode(), "boot")


def test_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / "pins.json")
    assert load(path, "boot") == {}
    save(path, {KEY: Pin("0-3", (1,))}, "boot")
    save(path, {KEY: Pin("", (2,), (1,))}, "boot")
    assert load(path, "boot") == {KEY: Pin("", (2,), (1,))}
    assert os.listdir(tmp_path) == ["pins.json"]
    assert os.stat(path).st_mode & 0o777 == 0o600
    os.symlink(path, tmp_path / "link")
    with pytest.raises(OSError, match="symbolic"):
        load(str(tmp_path / "link"), "boot")
