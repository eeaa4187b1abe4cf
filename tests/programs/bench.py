"""An engine, lxcfs, a busy neighbour, and containers in which the programs are run."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.engine.throwaway import throwaway
from tests.programs import host
from tests.programs.measure import measure
from tests.programs.neighbour import busy_neighbour
from tests.programs.rules import MIB, Expected
from tests.programs.ways import Way, lxcfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.engine.throwaway import Throwaway
    from tests.programs.measure import Cell, Key
    from tests.programs.ways import Lxcfs

IMAGE = "sysfsd-programs:bookworm"
LOAD = Path(__file__).parent.parent / "images" / "load.sh"
MEMORY = 300 * MIB
BALLAST = 48 * MIB
"""In the container's /dev/shm, of which Docker gives 64 MiB."""

TAKE_BALLAST = f"head -c {BALLAST} /dev/zero >/dev/shm/ballast"

SCRIPT_DEADLINE = 120.0
"""Seconds that a program may take, on a slow machine."""

# sh as init, not sleep: it takes in the orphans of what runs here, else they would be tasks.
INIT = ("sh", "-c", "while :; do sleep 1000 & wait; done")

_LAST_CPU = host.cpus() - 1


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of container."""

    name: str
    options: tuple[str, ...]
    """Of ``docker run``, besides the memory."""
    cpus: int
    affinity: int
    runtime: str = "runc"
    ways: tuple[Way, ...] = (Way.SYSFSD, Way.LXCFS, Way.NOTHING)

    def expected(self, started: float) -> Expected:
        """What is right in one that was started then, of ``time.monotonic``, and has ballast."""
        return Expected(
            memory=MEMORY,
            ballast=BALLAST,
            cpus=self.cpus,
            affinity=self.affinity,
            started=started,
            host_boot=host.boot(),
        )


KINDS = (
    Kind("quota", ("--cpus=1",), cpus=1, affinity=host.cpus()),
    # Not CPU 0: whoever forgets to number its CPUs anew shows.
    Kind("cpuset", (f"--cpuset-cpus={_LAST_CPU}",), cpus=1, affinity=1),
    Kind(
        "system-container",
        ("--cpus=1", "--cpuset-cpus=0"),
        cpus=1,
        affinity=1,
        runtime="sysfsd",
        ways=(Way.SYSFSD,),
    ),
)
"""Ordinary containers get their views by ``sysfsd attach``, a system container at its start."""


@dataclass(frozen=True)
class Box:
    """A running container."""

    kind: Kind
    name: str
    identifier: str
    pid: int
    expected: Expected
    own: Throwaway

    def run(self, script: str) -> str:
        """Run a shell script in it; returns what it printed. A failing one is one that prints
        nothing to look at."""
        done = self.own.docker.attempt(
            "exec", self.name, "sh", "-c", script, deadline=SCRIPT_DEADLINE
        )
        return (done.stdout + done.stderr).decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Measured:
    """What the programs print in one container, in each way that it gets its files."""

    expected: Expected
    cells: Mapping[Way, Mapping[Key, Cell]]


@dataclass(frozen=True)
class Bench:
    """All that is needed to measure."""

    own: Throwaway
    lxcfs: Lxcfs
    _measured: dict[str, Measured] = field(default_factory=dict)

    @contextmanager
    def box(self, kind: Kind) -> Iterator[Box]:
        """Start a container of a kind, with something in its memory; without views, if it is an
        ordinary one."""
        docker, name = self.own.docker, f"programs-{kind.name}"
        options = [f"--memory={MEMORY}", f"--memory-swap={MEMORY}", *kind.options]
        if Way.LXCFS in kind.ways:
            options.append(self.lxcfs.bind_option())
        started = time.monotonic()
        with ExitStack() as stack:
            stack.callback(docker.attempt, "rm", "--force", "--volumes", name)
            docker(
                *("run", "-d", "--name", name, f"--runtime={kind.runtime}", *options, IMAGE, *INIT)
            )
            expected = kind.expected(started)
            identifier = docker.inspect(name)["Id"]
            box = Box(kind, name, identifier, docker.pid(name), expected, self.own)
            docker.shell(name, TAKE_BALLAST)
            yield box

    @contextmanager
    def way(self, box: Box, way: Way) -> Iterator[None]:
        """Give a container its files in one way, for a while."""
        with ExitStack() as stack:
            if way is Way.LXCFS:
                stack.enter_context(self.lxcfs.cover(box.pid))
            if way is Way.SYSFSD and box.kind.runtime == "runc":
                self.own.daemon.command("attach", str(box.pid))
                stack.callback(self.own.daemon.command, "detach", str(box.pid))
            yield

    def measured(self, kind: Kind) -> Measured:
        """What the programs print in one container, each way; measured once."""
        if kind.name not in self._measured:
            with self.box(kind) as box, busy_neighbour():
                cells = {}
                for way in kind.ways:
                    with self.way(box, way):
                        cells[way] = measure(box.run, box.expected)
            self._measured[kind.name] = Measured(box.expected, cells)
        return self._measured[kind.name]


@contextmanager
def bench(directory: Path) -> Iterator[Bench]:
    """An engine with the image, and lxcfs, which puts its things into ``directory``."""
    with throwaway() as own, lxcfs(directory) as running:
        subprocess.run(
            ["sh", str(LOAD), IMAGE],
            env=own.environment(),
            check=True,
            capture_output=True,
            timeout=1800,  # it builds the image, if need be
        )
        yield Bench(own, running)
