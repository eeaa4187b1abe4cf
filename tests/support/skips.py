"""In CI, a skip must be on the short list ``tests/allowed-skips.txt``: others are failures.

A test that skips itself says that the machine lacks something. Where nobody looks at the output, a
list of what may be lacking keeps the tests from fading away unnoticed.
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

LIST = Path(__file__).parent.parent / "allowed-skips.txt"


def allowed(test: str, reason: str, lines: list[str]) -> bool:
    """Whether the list accepts that a test skips itself for this reason."""
    for line in lines:
        pattern, colon, accepted = line.partition(": ")
        if line.startswith("#") or not colon:
            continue
        if fnmatchcase(test, pattern.strip()) and fnmatchcase(reason, accepted.strip()):
            return True
    return False


def in_ci() -> bool:
    """Whether this is a CI run."""
    return os.environ.get("CI") == "true"


def _judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not in_ci() or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    # pytest's report of a skip: file, line, "Skipped: reason".
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not allowed(report.nodeid, reason, LIST.read_text().splitlines()):
        report.outcome = "failed"
        report.longrepr = f"skipped, and tests/allowed-skips.txt does not allow it: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge the skip of a test."""
    report = yield
    _judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge the skip of a whole file."""
    report = yield
    _judge(report)
    return report
