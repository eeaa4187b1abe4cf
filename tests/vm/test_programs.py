"""Programs that nobody here wrote, in a limited container on cgroup v2."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.programs.bench import IMAGE, INIT, KINDS, MEMORY, SCRIPT_DEADLINE, TAKE_BALLAST
from tests.programs.measure import measure, wrong
from tests.programs.neighbour import busy_neighbour
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
    assert not wrong(cells, expected)
