"""Real containers for tests: a sleeping process in namespaces and cgroups of its own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sysfsd.kernel.cgroups import CgroupTree, read_cgroup_paths
from tests.support.wait import patient, until

if TYPE_CHECKING:
    from collections.abc import Iterator

UID_BASE = 1_500_000_000
_SOURCES = Path(__file__).parent.parent.parent
_numbers = itertools.count()

# Runs as the outer process; prints the pid of the container's init as soon as it exists.
_LAUNCHER = """
import os, signal, sys
from sysfsd.kernel import syscalls
kinds = int(sys.argv[1])
syscalls.unshare(kinds)
child = os.fork()
if child == 0:
    assert sys.stdin.readline()
    if sys.argv[2:]:
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    if kinds & syscalls.CLONE_NEWUSER:
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    else:
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE, None)
    syscalls.prctl(1, signal.SIGKILL)
    syscalls.mount("proc", "/proc", "proc", 0, None)
    print("ready", flush=True)
    os.execvp("sleep", ["sleep", "infinity"])
print(child, flush=True)
os.waitpid(child, 0)
"""


@dataclass(frozen=True)
class Container:
    """A container whose init is ``pid``."""

    pid: int
    launcher: subprocess.Popen[str]
    cgroups: tuple[Path, ...] = ()
    """Those that were made for it."""
    namespaces: tuple[str, ...] = ("mount", "pid", "user")
    """Its own ones."""
    joined: tuple[str, ...] = ()
    """Those that are another container's."""

    def run(self, *command: str, user: bool = True) -> str:
        """Run a command inside and return what it prints."""
        done = subprocess.run(
            [*self.enter(user=user), *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=patient(30),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def enter(self, *, user: bool = True) -> list[str]:
        """How a command line begins that is to run inside."""
        kinds = [f"--{kind}" for kind in self.namespaces if user or kind != "user"]
        # What is another user namespace's is for the host's root to enter.
        joined = [f"--{kind}=/proc/{self.pid}/ns/{kind}" for kind in self.joined]
        first = ["nsenter", *joined, "--"] if joined else []
        return [*first, "nsenter", "--target", str(self.pid), *kinds, "--"]

    def set(self, name: str, value: str) -> None:
        """Write a file of its cgroups, in whichever of them it is."""
        (path,) = [cgroup / name for cgroup in self.cgroups if (cgroup / name).exists()]
        path.write_text(value)

    def started(self, *command: str) -> subprocess.Popen[str]:
        """Begin with a command inside that is talked to; it ends with the container."""
        return subprocess.Popen(
            [*self.enter(), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @contextmanager
    def background(self, *command: str) -> Iterator[int]:
        """Run a command in its namespaces and its cgroups meanwhile; gives its pid, ours."""
        script = 'for file in $FILES; do echo $$ >$file; done; exec "$@"'
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--user"]
        files = " ".join(str(cgroup / "cgroup.procs") for cgroup in self.cgroups)
        with subprocess.Popen(
            ["sh", "-c", script, "sh", *enter, "--", *command],
            env=os.environ | {"FILES": files},
            start_new_session=True,
        ) as process:

            def child() -> int:
                path = f"/proc/{process.pid}/task/{process.pid}/children"
                return int(Path(path).read_text() or 0)

            try:
                yield until(child, "the process inside")
            finally:
                os.killpg(process.pid, 9)

    def kill(self) -> None:
        """SIGKILL its init."""
        os.kill(self.pid, 9)


@contextmanager
def container(
    *,
    memory: int | None = None,
    cpus: float | None = None,
    cpuset: str | None = None,
    unified: bool = False,
    cgroup_namespace: bool = False,
    user_namespace: bool = True,
    isolated: bool = False,
    network_of: Container | None = None,
    uts_of: Container | None = None,
) -> Iterator[Container]:
    """Run a container; ``memory`` in bytes, ``cpus`` and ``cpuset`` as Docker's.

    ``unified`` gives it a cgroup of its own in the v2 hierarchy, limited or not; ``isolated`` gives
    it network, UTS and IPC namespaces, too, as engines do; ``network_of`` and ``uts_of`` have
    it join another's.
    """
    from sysfsd.kernel import syscalls

    kinds = syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS
    if user_namespace:
        kinds |= syscalls.CLONE_NEWUSER
    own = ["mount", "pid", *(["user"] if user_namespace else [])]
    if isolated:
        kinds |= syscalls.CLONE_NEWNET | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC
        own += ["net", "uts", "ipc"]
    with ExitStack() as stack:
        limits = memory, cpus, cpuset, unified
        cgroups = stack.enter_context(_cgroups(*limits)) if any(limits) else []
        launcher = stack.enter_context(
            subprocess.Popen(
                [
                    *(["nsenter", f"--net=/proc/{network_of.pid}/ns/net"] if network_of else []),
                    *(["nsenter", f"--uts=/proc/{uts_of.pid}/ns/uts"] if uts_of else []),
                    *(sys.executable, "-c", _LAUNCHER, str(kinds)),
                    *["cgroup"] * cgroup_namespace,
                ],
                cwd=_SOURCES,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(launcher.kill)
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        stack.callback(_kill, pid)
        for cgroup in cgroups:
            (cgroup / "cgroup.procs").write_text(str(pid))
        if user_namespace:
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{name}").write_text(f"0 {UID_BASE} 65536\n")
        launcher.stdin.write("go\n")
        launcher.stdin.flush()
        assert launcher.stdout.readline() == "ready\n"
        joined = tuple(kind for kind, of in (("net", network_of), ("uts", uts_of)) if of)
        yield Container(pid, launcher, tuple(cgroups), tuple(own), joined)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, 9)


@contextmanager
def _cgroups(
    memory: int | None, cpus: float | None, cpuset: str | None, unified: bool
) -> Iterator[list[Path]]:
    """Make cgroups with limits, v1 or v2, as many as that takes."""
    name = f"sysfsd-test-{os.getpid()}-{next(_numbers)}"
    values: dict[str, dict[str, str]] = {}
    if memory is not None:
        values["memory"] = {"memory.limit_in_bytes": f"{memory}", "memory.max": f"{memory}"}
    if cpus is not None:
        quota = int(cpus * 100000)
        values["cpu"] = {"cpu.cfs_quota_us": f"{quota}", "cpu.max": f"{quota} 100000"}
    made: list[Path] = []
    tree, own = CgroupTree.of_host(), read_cgroup_paths(os.getpid())
    if cpus is not None and tree.controller(own, "cpuacct") is not None:  # v1
        values["cpuacct"] = {}
    if cpuset is not None:
        values["cpuset"] = {"cpuset.mems": "0", "cpuset.cpus": cpuset}
    with ExitStack() as stack:
        stack.callback(_remove, made)
        if unified:
            root = tree.unified(own)
            if root is None:
                pytest.skip("no cgroup v2 on this host")
            path = Path(root.mountpoint, name)
            path.mkdir()
            made.append(path)
        for controller, files in values.items():
            cgroup = tree.controller(own, controller)
            if cgroup is None:
                pytest.skip(f"no {controller} controller on this host")
            if cgroup.version == 2 and controller == "cpuset":
                stack.enter_context(_enabled(Path(cgroup.mountpoint), controller))
            path = Path(cgroup.mountpoint, name)
            if path not in made:
                path.mkdir()
                made.append(path)
            for file, value in files.items():
                if (path / file).exists():
                    (path / file).write_text(value)
        yield made


def _remove(cgroups: list[Path]) -> None:
    for path in cgroups:
        until(lambda path=path: not (path / "cgroup.procs").read_text(), "an empty cgroup")  # type: ignore[misc]
        path.rmdir()


@contextmanager
def _enabled(root: Path, controller: str) -> Iterator[None]:
    """Have a v2 controller enabled below the root meanwhile: systemd enables those it uses."""
    control = root / "cgroup.subtree_control"
    before = controller in control.read_text().split()
    control.write_text(f"+{controller}")
    yield
    if not before:
        control.write_text(f"-{controller}")
