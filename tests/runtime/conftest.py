"""Bundles for the real runc and the real crun, and a daemon of one's own."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.throwaway import Daemon, installed, serving, subordinate_ids
from tests.support.bundles import Bundle, make_bundle, run, spec
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_numbers = itertools.count()

CGROUP = f"sysfsd-runtime-{os.getpid()}"


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """A directory on a real disk, where layers can be idmapped."""
    path = Path(tempfile.mkdtemp(prefix="sysfsd-runtime-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def daemon(directory: Path) -> Iterator[Daemon]:
    """``sysfsd serve`` for this level."""
    with subordinate_ids("sysfsd", containers=20), serving(directory / "daemon") as running:
        yield running


@dataclass
class Runtime:
    """sysfsd-runc over one of the real runtimes."""

    name: str
    daemon: Daemon
    directory: Path
    config: Path

    @property
    def prefix(self) -> list[str]:
        """Command line up to the runtime's own arguments.

        crun 1.8 runs nothing on a host that has both cgroup versions mounted. Without the second
        one, in a mount namespace of its own, this is a cgroup v1 host to it.
        """
        hide = (
            "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; "
            'exec "$@"'
        )
        return ["unshare", "--mount", "sh", "-c", hide, "sh"] if self.name == "crun" else []

    def command(self, *arguments: str, control: str | None = None) -> list[str]:
        """Return the command line of a call."""
        return [
            *self.prefix,
            installed("sysfsd-runc"),
            *("--control", control or self.daemon.control, "--config", str(self.config)),
            *("--root", str(self.directory / f"state-{self.name}")),
            *arguments,
        ]

    def plain(self, *arguments: str) -> list[str]:
        """Return the command line of the real runtime without us."""
        return [
            *(*self.prefix, self.name, "--root", str(self.directory / f"state-{self.name}")),
            *arguments,
        ]

    def __call__(self, *arguments: str, control: str | None = None) -> str:
        """Run a call that must succeed; returns its stdout."""
        done = run(self.command(*arguments, control=control))
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session", params=["runc", "crun"])
def runtime(request: pytest.FixtureRequest, daemon: Daemon, directory: Path) -> Runtime:
    """sysfsd-runc, configured to become each of the real runtimes."""
    name: str = request.param
    config = directory / f"{name}.toml"
    config.write_text(f'runtime = "{name}"\n')
    return Runtime(name, daemon, directory, config)


@pytest.fixture
def new_bundle(directory: Path) -> Iterator[Callable[..., Bundle]]:
    """Make bundles: arguments of the process, and ``memory`` in bytes."""
    made: list[Path] = []

    def make(*args: str, memory: int | None = None) -> Bundle:
        name = f"bundle-{os.getpid()}-{next(_numbers)}"
        made.append(directory / name)
        return make_bundle(directory / name, spec(*args, memory=memory, cgroup=f"/{CGROUP}/{name}"))

    yield make
    for path in made:
        shutil.rmtree(path)
    # A container's last process leaves its cgroups a moment after its runtime has ended.
    until(lambda: not [path for path in _cgroups() if not _removed(path)], "empty cgroups")


def _cgroups() -> list[Path]:
    """Our cgroups, the deepest first."""
    return sorted(Path("/sys/fs/cgroup").glob(f"*/{CGROUP}/**/"), reverse=True)


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError:
        return False
    return True


@pytest.fixture
def container(runtime: Runtime, directory: Path) -> Iterator[Callable[[Bundle], str]]:
    """Start containers in the background and return their ids."""
    started: list[str] = []

    def start(bundle: Bundle) -> str:
        name = bundle.path.name
        started.append(name)
        # To a file: the container keeps the runtime's stderr, and a pipe would never end.
        errors = directory / f"{name}.stderr"
        with errors.open("wb") as file:
            done = subprocess.run(
                runtime.command("run", "--detach", "--bundle", str(bundle.path), name),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                timeout=30,
                check=False,
            )
        assert done.returncode == 0, errors.read_text()
        return name

    yield start
    for name in started:
        run(runtime.command("delete", "--force", name))
