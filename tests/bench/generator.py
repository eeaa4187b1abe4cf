"""The load generator, ``load.c``, as a process of a container."""

from __future__ import annotations

import select
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tests.bench.figures import parse_answer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bench.figures import Tally
    from tests.support.containers import Container

HERE = Path(__file__).parent
THREADS = "threads"
PROCESSES = "processes"
CAT = "cat"
PREAD = "pread"

PATIENCE = 20.0
"""Seconds; whoever has not answered by then will not."""


@contextmanager
def workplace() -> Iterator[Path]:
    """Make a directory that everybody may enter, because containers run programs from it.

    Not in /tmp, which may be noexec.
    """
    directory = Path(tempfile.mkdtemp(prefix="sysfsd-bench-", dir="/var/lib"))
    try:
        directory.chmod(0o711)
        yield directory
    finally:
        shutil.rmtree(directory)


def compiled(source: str, directory: Path) -> Path:
    """Compile one of our C programs into a directory."""
    program = directory / source.removesuffix(".c")
    command = ["cc", "-O2", "-Wall", "-pthread", "-o", str(program), str(HERE / source)]
    subprocess.run(command, check=True, timeout=60)
    return program


@dataclass(frozen=True)
class Generator:
    """A running one."""

    orders: IO[str]
    answers: IO[str]

    def run(self, way: str, path: str, *, clients: int, kind: str, seconds: float) -> Tally:
        """Read a file for a while.

        Raises ``ValueError`` when a read fails, ``TimeoutError`` when one takes for ever.
        """
        self.orders.write(f"{way} {kind} {clients} {round(seconds * 1000)} {path}\n")
        self.orders.flush()
        if not select.select([self.answers], [], [], seconds + PATIENCE)[0]:
            raise TimeoutError(f"{way} {path}: no end of it after {PATIENCE:.0f} s more")
        return parse_answer(self.answers.readline().rstrip("\n"))


@contextmanager
def generating(program: Path, prefix: Sequence[str] = ()) -> Iterator[Generator]:
    """Run it, wherever ``prefix`` leads."""
    process = subprocess.Popen(
        [*prefix, str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Generator(process.stdin, process.stdout)
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()  # which it takes for the end
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            # It waits for an answer to a read, and dies with nsenter when that is given up.
            process.kill()
            process.wait()
        process.stdout.close()


@contextmanager
def generating_in(container: Container, program: Path) -> Iterator[Generator]:
    """Run it in a container."""
    with generating(program, inside(container)) as generator:
        yield generator


def inside(container: Container) -> list[str]:
    """How a command line begins that is to run as a container's programs do.

    In its namespaces and in its cgroups: `Container.run` leaves it in ours.
    """
    procs = [str(cgroup / "cgroup.procs") for cgroup in container.cgroups]
    into = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'
    return ["sh", "-euc", into, "sh", *procs, "--", *container.enter()]
