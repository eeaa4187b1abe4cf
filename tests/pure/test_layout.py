"""Layouts of moving files: where lines are, and that they stay there."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.filesystem.layout import BLOCK_BYTES, laid_out
from sysfsd.views import VIEWS
from sysfsd.views.view import Reserve
from tests.support.views import EACH, bare

STAT = Reserve(line=64)
COUNTERS = Reserve(digits=16)


def offsets(data: bytes) -> list[int]:
    return [at for at, byte in enumerate(data) if byte == ord("\n")]


words = st.text("abc(_)0=:", min_size=1, max_size=30).map(lambda text: "x" + text)
files = st.lists(st.tuples(words, st.lists(st.integers(0, 10**16 - 1), max_size=4)), max_size=200)


def write(lines: list[tuple[str, list[int]]]) -> bytes:
    texts = (f"{name} {' '.join(map(str, each))}".rstrip() for name, each in lines)
    return "".join(f"{text}\n" for text in texts).encode()


@given(files)
def test_no_text_is_lost(lines: list[tuple[str, list[int]]]) -> None:
    data = write(lines)
    for reserve in (STAT, COUNTERS, Reserve(), Reserve(line=40, only=(b"xa", b"xb"))):
        filled, layout = laid_out(data, reserve, None)
        assert bare(filled) == data
        assert layout.size == len(filled)
        assert laid_out(filled, reserve, layout) == (filled, layout)


@given(files, st.randoms())
def test_numbers_that_fit_move_no_line(lines: list[tuple[str, list[int]]], random: object) -> None:
    """Also for a daemon that did not see the former ones."""
    other = [(name, [random.randrange(10**16) for _ in each]) for name, each in lines]  # type: ignore[attr-defined]
    first, layout = laid_out(write(lines), COUNTERS, None)
    again, _ = laid_out(write(other), COUNTERS, None)
    kept, same = laid_out(write(other), COUNTERS, layout)
    assert offsets(first) == offsets(again)
    assert kept == again
    assert same is layout


@given(files)
def test_no_line_that_moves_lies_across_two_blocks(lines: list[tuple[str, list[int]]]) -> None:
    ends = [-1, *offsets(laid_out(write(lines), COUNTERS, None)[0])]
    for before, end in pairwise(ends):
        assert (before + 1) // BLOCK_BYTES == end // BLOCK_BYTES


def test_a_line_before_the_next_block_fills_its_own() -> None:
    data = b"a 1\n" * 300
    filled, _ = laid_out(data, COUNTERS, None)
    assert filled[BLOCK_BYTES - 1] == ord("\n")
    assert bare(filled) == data


def test_longer_than_a_block() -> None:
    data = b"a 1\n" + b"x" * 5000 + b"\nb 2\n"
    filled, _ = laid_out(data, COUNTERS, None)
    assert bare(filled) == data


def test_outgrown_room_stays_taken() -> None:
    small, large = b"total 1\n", b"total 12345\n"
    reserve = Reserve(line=8)
    _, first = laid_out(small, reserve, None)
    grown, second = laid_out(large, reserve, first)
    assert grown == large
    assert second != first
    assert laid_out(small, reserve, second) == (b"total 1    \n", second)


def test_another_number_of_lines_is_another_layout() -> None:
    _, layout = laid_out(b"cpu 1\ncpu0 1\n", STAT, None)
    filled, other = laid_out(b"cpu 1\ncpu0 1\ncpu1 0\n", STAT, layout)
    assert len(filled) == 3 * 65
    assert other != layout


def test_only_the_lines_that_move_get_room() -> None:
    text = b"processor\t: 0\nflags\t\t: a b\ncpu MHz\t\t: 2100.000\n\n"
    filled, _ = laid_out(text, Reserve(line=32, only=(b"cpu MHz",)), None)
    assert filled == text.replace(b"000\n", b"000" + b" " * 13 + b"\n")


def test_paragraphs_stay_apart() -> None:
    """An empty line is none any more if it has blanks; then rather across two pages."""
    line = b"cpu MHz\t\t: 2100.000"
    text = b"x" * 1017 + b"\n\n" + line + b"\n"
    assert laid_out(text, Reserve(only=(b"cpu",)), None)[0] == text


@pytest.mark.parametrize("data", [b"", b"\n", b"no end", b"a 1\nno end"])
def test_odd_texts(data: bytes) -> None:
    filled, _ = laid_out(data, STAT, None)
    assert bare(filled).rstrip() == data.rstrip()
    assert laid_out(b"", STAT, None)[0] == b""


MOVING = [view for view in EACH if view.moves is not None]


def test_which_views_move() -> None:
    static = {entry.path for entry in VIEWS if entry.moves is None}
    assert {path for path in static if path.startswith("proc/")} == {"proc/slabinfo"}
    assert [path for path in (view.path for view in MOVING) if path.startswith("sys/")] == [
        "sys/devices/system/node/node0/meminfo"
    ]


HUGE = {
    "proc/uptime": "315360000.25 40366080000.75\n",
    "proc/loadavg": "1234.56 1234.56 1234.56 4194304/4194304 4194304\n",
    "proc/meminfo": "MemTotal:       9999999999 kB\nHardwareCorrupted: 9999999999 kB\n",
    "proc/stat": "cpu1023 9999999999999 0 999999999999 99999999999999 0 0 0 0 0 0\n",
    "proc/swaps": f"{'none':<40}virtual\t\t9999999999\t9999999999\t0\n",
    "proc/pressure/cpu": "some avg10=100.00 avg60=100.00 avg300=100.00 total=999999999999999\n",
    "proc/cpuinfo": "cpu MHz\t\t: 12345.678\n",
    "proc/vmstat": "workingset_activate_file 9999999999999999\n",
    "proc/diskstats": " 254       0 vda" + " 999999999999" * 17 + "\n",
    "sys/devices/system/node/node0/meminfo": "Node 1023 Inactive(anon):  99999999999 kB\n",
}


@pytest.mark.parametrize("view", MOVING, ids=lambda view: view.path)
def test_there_is_room_for_the_largest_numbers(view: object) -> None:
    """Those of a machine that is larger than any, after ten years."""
    path, reserve = view.path, view.moves  # type: ignore[attr-defined]
    if path == "proc/partitions":
        assert reserve == Reserve()
        return
    text = HUGE["proc/pressure/cpu" if path.startswith("proc/pressure/") else path].encode()
    digits = bytes.maketrans(b"23456789", b"11111111")
    small = b"\n".join(
        b" ".join(
            word[:4] if word.isdigit() and reserve.digits else word for word in line.split(b" ")
        )
        for line in text.translate(digits).split(b"\n")
    )
    assert len(laid_out(text, reserve, None)[0]) == len(laid_out(small, reserve, None)[0])
    if reserve.line:
        assert all(len(line) <= reserve.line for line in text.split(b"\n")), text
