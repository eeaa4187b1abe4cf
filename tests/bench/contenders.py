"""Four containers that are alike but for where their files come from, and what serves those.

Each has a ``/proc/meminfo`` of its own, at the same path, and a load generator that belongs to it:
the way through the file system is as long for all, and who tells callers apart has to.
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.generator import compiled, generating_in, inside
from tests.bench.processes import tree
from tests.programs.ways import lxcfs
from tests.support.attached import attach
from tests.support.containers import container
from tests.support.daemon import serving, started
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.generator import Generator
    from tests.support.containers import Container
    from tests.support.daemon import Serving

FILES = ("meminfo", "stat", "cpuinfo", "uptime", "loadavg")
MEMORY = 512 << 20


class Kind(Enum):
    """Where a container's files come from."""

    KERNEL = "kernel"
    LXCFS = "lxcfs"
    MOUNT = "sysfsd mount"
    MOUNT_REGISTERED = "sysfsd mount, registered"
    """The same for a container that a daemon knows, which then is asked for its views."""
    PINNED = "sysfsd pinned"


@dataclass(frozen=True)
class Contender:
    """A container, and who serves it."""

    kind: Kind
    container: Container
    generator: Generator
    servers: tuple[int, ...]
    """Pids of the processes without which it had no such files."""


@dataclass(frozen=True)
class Contest:
    """All of them, at once."""

    contenders: tuple[Contender, ...]
    lxcfs_version: str
    serving: Serving
    program: Path
    """The load generator."""


@contextmanager
def contest(directory: Path) -> Iterator[Contest]:
    """Start everything."""
    program = compiled("load.c", directory)
    with ExitStack() as stack:
        # Before the containers, which have then inherited their mounts to bind from. As Debian's
        # package starts it: what `LXCFS_OPTIONS` add would only make it slower.
        other = stack.enter_context(lxcfs(_made(directory / "other"), options=()))
        serve = stack.enter_context(serving(_made(directory / "serve")))
        alone = stack.enter_context(_mounting(_made(directory / "alone"), "/nowhere"))
        beside = stack.enter_context(_mounting(_made(directory / "beside"), serve.control))
        sources = {
            Kind.LXCFS: (
                other.mountpoint,
                tree(int((directory / "other" / "lxcfs.pid").read_text())),
            ),
            Kind.MOUNT: alone,
            Kind.MOUNT_REGISTERED: (beside[0], (*beside[1], *tree(serve.process.pid))),
        }
        contenders = []
        for kind in Kind:
            one = stack.enter_context(alike())
            servers: tuple[int, ...] = ()
            if kind in sources:
                mountpoint, servers = sources[kind]
                _bind(one.pid, mountpoint)
            if kind is Kind.MOUNT_REGISTERED:
                serve.register("registered", one.pid)
            if kind is Kind.PINNED:
                attach(serve, "pinned", one)
                servers = tree(serve.process.pid)
            _check(kind, one)
            generator = stack.enter_context(generating_in(one, program))
            contenders.append(Contender(kind, one, generator, servers))
        yield Contest(tuple(contenders), other.version, serve, program)


@contextmanager
def alike() -> Iterator[Container]:
    """One of the containers. Its quota is the whole machine: it has one, and is never throttled."""
    cpus = os.cpu_count() or 1
    with container(memory=MEMORY, cpus=cpus, cgroup_namespace=True) as one:
        yield one


@contextmanager
def _mounting(directory: Path, control: str) -> Iterator[tuple[Path, tuple[int, ...]]]:
    mountpoint = _made(directory / "mount")
    arguments = ["mount", str(mountpoint), "--control", control]
    log = directory / "log"
    with started(arguments, log) as process:

        def there() -> bool:
            assert process.poll() is None, f"sysfsd mount ended:\n{log.read_text()}"
            return (mountpoint / "proc/meminfo").exists()

        until(there, "sysfsd mount")
        yield mountpoint, tree(process.pid)


def _bind(pid: int, mountpoint: Path) -> None:
    script = "for each; do shift; mount --bind $FROM/proc/$each /proc/$each; done"
    subprocess.run(
        ["nsenter", f"--target={pid}", "--mount", "--", "sh", "-euc", script, "sh", *FILES],
        env=os.environ | {"FROM": str(mountpoint)},
        check=True,
        timeout=30,
    )


def _check(kind: Kind, one: Container) -> None:
    """See that it is told its own memory, or else the host's."""
    pattern = r"MemTotal: +(\d+) kB"
    command = [*inside(one), "cat", "/proc/meminfo"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    told = re.search(pattern, text)
    host = re.search(pattern, Path("/proc/meminfo").read_text())
    assert told is not None
    assert host is not None
    right = host[1] if kind is Kind.KERNEL else str(MEMORY >> 10)
    assert told[1] == right, f"{kind.value}: {told[1]} kB, and {right} kB would be right"


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o711)
    return directory
