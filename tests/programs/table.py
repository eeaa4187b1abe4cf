"""Print what the programs show, as the table of the documentation.

    python -m tests.programs.table

takes about three minutes, as root, with an engine of its own.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.programs.bench import KINDS, bench
from tests.programs.lxcfs_rules import NOT_COUNTED, RULES, always
from tests.programs.measure import each_check
from tests.programs.rules import Quantity
from tests.programs.ways import LXCFS_OPTIONS, Way

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.programs.bench import Bench, Kind
    from tests.programs.catalogue import Check
    from tests.programs.measure import Cell
    from tests.programs.rules import Expected


def tables(bench: Bench) -> str:
    """Measure and lay out, in Markdown: all for a container with a quota; for one with a cpuset,
    where only the CPUs are another matter, these."""
    return "\n\n".join(
        [
            *(_table(bench, kind) for kind in KINDS if Way.LXCFS in kind.ways),
            _notes(bench),
        ]
    )


def _table(bench: Bench, kind: Kind) -> str:
    measured = bench.measured(kind)
    columns = {way.value: measured.cells[way] for way in Way}
    return table(kind, measured.expected, columns, only_cpus=kind is not KINDS[0])


def table(
    kind: Kind,
    expected: Expected,
    columns: Mapping[str, Mapping[tuple[str, str], Cell]],
    *,
    only_cpus: bool,
) -> str:
    """Lay out what was measured in one container: a column for each way of running it."""
    options = " ".join(("-m 300m", *(option.replace("=", " ") for option in kind.options)))
    lines = [
        f"`docker run {options}`:",
        "",
        f"| program | shows | right is | {' | '.join(columns)} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    name = ""
    for program, check in each_check():
        if only_cpus and check.quantity is not Quantity.CPUS:
            continue
        cells = [cells[program.name, check.name] for cells in columns.values()]
        first = f"`{program.name}`" if program.name != name else ""
        name = program.name
        row = [first, _mark(check), check.quantity.words(expected), *map(_cell, cells)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _mark(check: Check) -> str:
    return check.name + (" †" if check.unreachable else " ‡" if check.explained else "")


def _cell(cell: Cell) -> str:
    return cell.text if cell.right else f"**{cell.text}**"


def _notes(bench: Bench) -> str:
    unreachable: dict[str, list[str]] = {}
    notes = []
    for program, check in each_check():
        if check.unreachable:
            unreachable.setdefault(check.unreachable, []).append(f"`{program.name}` ({check.name})")
        if check.explained:
            notes.append(f"- ‡ `{program.name}` ({check.name}): {check.explained}.")
    calls = [
        f"- † `{call}(2)`, which no file system reaches: {', '.join(programs)}."
        for call, programs in unreachable.items()
    ]
    return "\n".join(
        [
            "**Bold** is wrong. The container is idle, has 48 MiB in its tmpfs, and a neighbour "
            "keeps all CPUs of the host busy.",
            f"lxcfs is Debian's {bench.lxcfs.version} with `{' '.join(LXCFS_OPTIONS)}`; without "
            "these options it shows the host's load, and the quota nowhere.",
            "",
            *calls,
            *notes,
        ]
    )


def differences() -> str:
    """Lay out where sysfsd and lxcfs differ, and who is right."""
    lines = ["| file | field | right is | why |", "|---|---|---|---|"]
    for rule in RULES:
        fields = re.sub(r"^(\\d\+|\d): |[()]|\.\*", "", rule.fields).replace("|", ", ")
        who = "both" if rule.lxcfs_right is always else "sysfsd"
        if rule.why is NOT_COUNTED:
            who = "neither"
        lines.append(f"| `/{rule.file}` | {fields or 'all'} | {who} | {rule.why} |")
    return "\n".join(lines)


def main() -> int:
    """Print the tables."""
    with (
        tempfile.TemporaryDirectory(prefix="sysfsd-programs-") as directory,
        bench(Path(directory)) as running,
    ):
        print(tables(running))
    print(f"\nFile by file, on cgroup v1:\n\n{differences()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
