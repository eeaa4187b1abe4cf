"""Hooks and fixtures of all levels; what they do is in ``tests/support``."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.support.skips import pytest_make_collect_report, pytest_runtest_makereport
from tests.support.tidy import _tidy, expected_log

__all__ = [
    "_tidy",
    "expected_log",
    "pytest_make_collect_report",
    "pytest_runtest_makereport",
]

# No test asserts a time: machines may be busy with something else. Nor how long it takes to draw an
# example, for which hypothesis has a limit of its own.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
