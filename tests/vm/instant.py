"""A pytest plugin: prints failures at once, for a machine that may be switched off meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class _Instant:
    config: pytest.Config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            writer = self.config.get_terminal_writer()
            writer.line()
            writer.sep("_", f"{report.when} of {report.nodeid}")
            writer.line(report.longreprtext)


def pytest_configure(config: pytest.Config) -> None:
    """Take part."""
    config.pluginmanager.register(_Instant(config))
