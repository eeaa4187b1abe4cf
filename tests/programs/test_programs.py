"""Programs that nobody here wrote print the container's own numbers."""

from __future__ import annotations

import re
import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.programs import host
from tests.programs.bench import KINDS
from tests.programs.measure import each_check
from tests.programs.rules import Quantity
from tests.programs.ways import Way
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.programs.bench import Bench, Box, Kind, Measured
    from tests.programs.catalogue import Check, Program


def _parameters(*, unreachable: bool) -> list[object]:
    return [
        pytest.param(program, check, id=f"{program.name}-{check.name}".replace(" ", "_"))
        for program, check in each_check()
        if bool(check.unreachable) is unreachable
    ]


@pytest.mark.parametrize(("program", "check"), _parameters(unreachable=False))
def test_a_program_shows_the_containers_own(
    measured: Measured, program: Program, check: Check
) -> None:
    cell = measured.cells[Way.SYSFSD][program.name, check.name]
    if check.explained and check.quantity is not Quantity.HOST_BOOT:
        assert not cell.right, "right, and need not be explained any more"
    else:
        wanted = check.quantity.words(measured.expected)
        assert cell.right, f"{cell.text}, not {wanted}:\n{cell.output}"


def test_without_us_each_kind_of_number_is_wrong_somewhere(running: Bench) -> None:
    """Else a check could not fail."""
    cells = running.measured(KINDS[0]).cells[Way.NOTHING]
    wrong = {check.quantity for p, check in each_check() if not cells[p.name, check.name].right}
    # The host may have no swap, like the container; its time of boot is what is to be shown.
    alike = {Quantity.SWAP_TOTAL, Quantity.HOST_BOOT}
    if host.cpus() == 1:
        alike.add(Quantity.CPUS)
    assert set(Quantity) - wrong <= alike


def test_lxcfs_is_at_its_best_where_we_compare(running: Bench) -> None:
    """Its files are in place, and its options on."""
    cells = running.measured(KINDS[0]).cells[Way.LXCFS]
    for program, check in (
        ("free", "total"),
        ("uptime", "load"),
        ("getconf", "_NPROCESSORS_ONLN"),
        ("mpstat", "CPUs"),
    ):
        assert cells[program, check].right


def test_a_busy_container_looks_busy(box: Box) -> None:
    """Whoever always says "idle" would pass the other checks.

    How busy is another matter: a busy machine may give the container little.
    """
    shares = {Quantity.IDLE_PERCENT, Quantity.BUSY_PERCENT}
    checks = [(p, check) for p, check in each_check() if check.quantity in shares]
    assert len(checks) >= 5
    with _burning(box):
        for program, check in checks:

            def busy(program: Program = program, check: Check = check) -> bool:
                value = check.read(box.run(program.script))
                share = value if check.quantity is Quantity.BUSY_PERCENT else 100 - value
                return share > 8

            until(busy, f"{program.name} to see the CPU busy", deadline=120)
        load = "awk '$1 > 0 { print $1 }' /proc/loadavg"
        until(lambda: box.run(load).strip(), "a load average")


@contextmanager
def _burning(box: Box) -> Iterator[None]:
    script = "echo $$ >/tmp/burner; while :; do :; done"
    box.own.docker("exec", "--detach", box.name, "sh", "-c", script)
    try:
        yield
    finally:
        box.run("kill $(cat /tmp/burner)")


# --- What no file system reaches -----------------------------------------------------------------


@pytest.mark.parametrize(("program", "check"), _parameters(unreachable=True))
def test_what_is_said_to_be_unreachable_is(box: Box, program: Program, check: Check) -> None:
    """The number that the program prints is what the system call gave it."""
    calls = _traced(box, program.script, check.unreachable)
    printed = check.read(calls.output)
    answers = [_answer(check, line) for line in calls.lines]
    assert answers, f"{program.name} does not call {check.unreachable}"
    assert any(abs(printed - answer) <= max(check.precision, 0.01) for answer in answers), (
        f"{printed} is none of {answers}: it has another source, which may be reached"
    )


def test_go_asks_the_scheduler_how_many_cpus_there_are(box: Box) -> None:
    # Its runtime does so before main: for runtime.NumCPU, which is what GOMAXPROCS starts with.
    calls = _traced(box, "prometheus-node-exporter --version", "sched_getaffinity")
    assert "go version" in calls.output
    assert calls.lines


class _Calls:
    """What a program printed, and its calls of one system call."""

    def __init__(self, output: str, trace: str) -> None:
        self.output = output
        self.lines = [line for line in trace.splitlines() if "(" in line and " = -1 " not in line]


def _traced(box: Box, script: str, call: str) -> _Calls:
    trace = (
        f"strace -f -qq -e trace={call} -e signal=none -o /tmp/trace sh -c {shlex.quote(script)}"
    )
    output = box.run(trace)
    return _Calls(output, box.run("cat /tmp/trace"))


def _answer(check: Check, line: str) -> float:
    """What a call answered, as the quantity that the check is about."""
    if check.unreachable == "sched_getaffinity":
        mask = re.search(r"\[([\d ,-]*)\]", line)
        assert mask is not None, line
        return len(mask[1].split())
    field = {
        Quantity.MEMORY_TOTAL: r"totalram=(\d+)",
        Quantity.UPTIME: r"uptime=(\d+)",
        Quantity.LOAD: r"loads=\[(\d+)",
    }[check.quantity]
    found = re.search(field, line)
    assert found is not None, line
    value = float(found[1])
    return value / 65536 if check.quantity is Quantity.LOAD else value  # SI_LOAD_SHIFT


@pytest.mark.parametrize("kind", KINDS[:1], ids=lambda kind: kind.name)
def test_a_cpuset_beside_the_quota_settles_what_asks_the_scheduler(
    running: Bench, kind: Kind
) -> None:
    """What the README advises: give both."""
    both = running.measured(KINDS[-1])
    assert both.expected.affinity == both.expected.cpus
    for program, check in each_check():
        if check.unreachable == "sched_getaffinity":
            assert both.cells[Way.SYSFSD][program.name, check.name].right
            assert running.measured(kind).cells[Way.SYSFSD][program.name, check.name].value == (
                kind.affinity
            )
