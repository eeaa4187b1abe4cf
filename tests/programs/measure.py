"""Run the programs in a container and judge what they print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.programs.catalogue import PROGRAMS
from tests.programs.rules import Quantity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.programs.catalogue import Check, Program
    from tests.programs.rules import Expected

Run = Callable[[str], str]
"""Runs a shell script in the container, waits for it, and returns what it printed."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One number as a program printed it."""

    value: float
    right: bool
    text: str
    output: str
    """All that the program printed, for a failing test to show."""


Key = tuple[str, str]
"""A program's name and a check's."""


def measure(
    run: Run, expected: Expected, programs: Sequence[Program] = PROGRAMS
) -> Mapping[Key, Cell]:
    """Run the programs, one after another: each must find an idle container."""
    cells: dict[Key, Cell] = {}
    for program in programs:
        hosts = {check.name: check.host() for check in program.checks if check.host}
        output = run(program.script)
        for check in program.checks:
            value = check.read(output)
            right = check.quantity.right(value, check.precision, expected)
            if check.quantity is Quantity.LESS_THAN_HOST:
                right = right and _less(value, hosts[check.name])
            shown = check.quantity.show(value)
            cells[program.name, check.name] = Cell(value, right, shown, output)
    return cells


def _less(value: float, host: float) -> bool:
    # Counters only grow: whoever shows the host's shows at least what was there before.
    return value == 0 or value < host


def wrong(cells: Mapping[Key, Cell], expected: Expected) -> list[str]:
    """Say what is wrong though a file system could set it right, in a container with our views."""
    return [
        f"{program.name}, {check.name}: {cell.text}, not {check.quantity.words(expected)}"
        for program, check in each_check()
        if (cell := cells.get((program.name, check.name))) is not None
        and not (cell.right or check.unreachable or check.explained)
    ]


def each_check() -> list[tuple[Program, Check]]:
    """All checks of all programs."""
    return [(program, check) for program in PROGRAMS for check in program.checks]
