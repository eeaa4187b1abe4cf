"""Which skips CI accepts."""

from __future__ import annotations

from tests.support.skips import LIST, allowed

LINES = ["# a comment: not a rule", "", "tests/engine/*: this kernel has no *"]


def test_a_skip_on_the_list() -> None:
    assert allowed("tests/engine/test_a.py::test_b[c]", "this kernel has no overlayfs", LINES)


def test_another_reason_or_another_test() -> None:
    assert not allowed("tests/engine/test_a.py::test_b", "no time", LINES)
    assert not allowed("tests/runtime/test_a.py::test_b", "this kernel has no overlayfs", LINES)
    assert not allowed("# a comment", "not a rule", LINES)


def test_every_line_of_the_real_list_is_a_rule() -> None:
    for line in LIST.read_text().splitlines():
        assert not line or line.startswith("#") or ": " in line
