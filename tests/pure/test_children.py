"""Something for each container, each in a process of its own."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from sysfsd import children
from sysfsd.children import in_children
from sysfsd.errors import SysfsdError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest


def test_who_makes_us_wait_does_not_take_the_place_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "_AT_ONCE", 2)
    hear, say = os.pipe()

    def work(each: Mapping[str, Any]) -> None:
        if each["id"] == "slow":
            assert os.read(hear, 1) == b"x"  # the last has been there
        elif each["id"] == "last":
            os.write(say, b"x")

    names = ["slow", "a", "b", "c", "last"]
    try:
        assert in_children([{"id": name} for name in names], work, 30) == []
    finally:
        os.close(hear)
        os.close(say)


def test_who_failed_and_who_never_ends() -> None:
    def work(each: Mapping[str, Any]) -> None:
        if each["id"] == "hangs":
            signal.pause()
        elif each["id"] == "fails":
            raise SysfsdError("no")
        elif each["id"] == "gone":
            raise ProcessLookupError

    names = ["hangs", "fails", "gone", "well"]
    left = in_children([{"id": name} for name in names], work, 1)
    assert sorted(left) == ["fails", "hangs"]
    assert in_children([], work, 1) == []
