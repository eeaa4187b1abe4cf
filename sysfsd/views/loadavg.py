"""/proc/loadavg: the container's own load averages, tasks and last pid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.facts.load import format_average
from sysfsd.views.view import Reserve, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sysfsd.facts.collector import Facts

RESERVE = Reserve(line=48)
"""Three averages, tasks and the last pid, however many there are."""


def sources(facts: Facts) -> list[Source]:
    """Return the five fields of proc_loadavg(5)."""
    load = facts.load
    average = f"running and blocked {load.source}, each 5 s"
    return [
        Source("1 minute", format_average(load.averages.one), average),
        Source("5 minutes", format_average(load.averages.five), average),
        Source("15 minutes", format_average(load.averages.fifteen), average),
        Source("running/tasks", f"{load.running}/{load.total}", load.source),
        Source("last pid", str(load.last_pid), f"newest of the {load.source}, as numbered inside"),
    ]


def text(items: Sequence[Source]) -> str:
    """Write the line."""
    return " ".join(item.value for item in items) + "\n"
