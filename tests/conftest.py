"""Hooks and fixtures of all levels; what they do is in ``tests/support``."""

from __future__ import annotations

from hypothesis import settings

from tests.support.skips import pytest_make_collect_report, pytest_runtest_makereport
from tests.support.tidy import _tidy, expected_log

# The machines are noisy: how long an example takes says nothing about us.
settings.register_profile("noisy", deadline=None)
settings.load_profile("noisy")

__all__ = [
    "_tidy",
    "expected_log",
    "pytest_make_collect_report",
    "pytest_runtest_makereport",
]

# No test asserts a time: machines may be busy with something else.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
