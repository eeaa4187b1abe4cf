"""Programs that nobody here wrote, in a limited container on cgroup v2.

What they printed is left with the results, as the documentation's tables of it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.programs.bench import IMAGE, INIT, KINDS, MEMORY, SCRIPT_DEADLINE, TAKE_BALLAST
from tests.programs.measure import measure, wrong
from tests.programs.neighbour import busy_neighbour
from tests.programs.table import table
from tests.support.wait import patient
from tests.vm.conftest import load_image

if TYPE_CHECKING:
    from tests.programs.bench import Kind
    from tests.vm.conftest import Start


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_programs_show_the_containers_own(start: Start, kind: Kind) -> None:
    load_image(IMAGE)
    started = time.monotonic()
    memory = (f"--memory={MEMORY}", f"--memory-swap={MEMORY}")
    box = start(*memory, *kind.options, image=IMAGE, command=INIT)
    box.docker.shell(box.name, TAKE_BALLAST)

    def run(script: str) -> str:
        deadline = patient(SCRIPT_DEADLINE)
        done = box.docker.attempt("exec", box.name, "sh", "-c", script, deadline=deadline)
        return (done.stdout + done.stderr).decode(errors="replace")

    expected = kind.expected(started)
    with busy_neighbour():
        cells = measure(run, expected)
    results = Path(os.environ["SYSFSD_RESULTS"], f"programs-{kind.name}.md")
    results.write_text(table(kind, expected, {"sysfsd": cells}, only_cpus=False))
    assert not wrong(cells, expected)
