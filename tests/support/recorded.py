"""A container made of recorded files, which a test may change, and time, which it may let pass."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sysfsd.facts.collector import Facts, FactsCollector
from sysfsd.kernel.cgroups import CgroupPaths, CgroupTree, read_cgroup_paths
from sysfsd.policy import DEFAULT, Policy
from tests.support.views import EACH, view

FIXTURES = Path(__file__).parent.parent / "pure/fixtures"
V1, V2 = "cgroup-v1", "cgroup-v2"
TREES = (V1, V2)
PIDS = {V1: int((FIXTURES / V1 / "pid").read_text()), V2: 4242}
OWN = {V1: "engine/web", V2: "system.slice/docker-abc.scope"}
"""The container's cgroup: in every hierarchy of v1, in the one of v2."""

SECOND = 1_000_000_000
STARTED = 90.5
"""When the container was started, in seconds since boot."""


@dataclass(frozen=True)
class Record:
    """As much of a container's record as facts are made of."""

    serial: int
    pid: int
    started: float
    cgroup: CgroupPaths
    domain: int | None = None
    policy: Policy = DEFAULT


class Machine:
    """A copy of a recorded tree below a directory, with one container in it."""

    def __init__(self, base: Path, tree: str) -> None:
        shutil.copytree(FIXTURES / tree, base, dirs_exist_ok=True)
        self.base = base
        self.tree = tree
        self.restart()

    def restart(self) -> None:
        """Forget everything, as a daemon does that is restarted."""
        base = self.base
        self.now = 100 * SECOND
        self._collector = FactsCollector(
            tree=CgroupTree.from_mountinfo((base / "proc/self/mountinfo").read_text(), str(base)),
            proc=str(base / "proc"),
            sys=str(base / "sys"),
            clock=lambda: self.now,
            boot_time=lambda: 1_700_000_000.0,
            refresh_ns=lambda: 0,
        )
        pid = PIDS[self.tree]
        self.container = Record(1, pid, STARTED, read_cgroup_paths(pid, str(base / "proc")))

    def write(self, controller: str, name: str, text: str) -> None:
        """Change a file of the container's cgroup."""
        root = self.base / "sys/fs/cgroup"
        if self.tree == V1:
            root /= controller
        (root / OWN[self.tree] / name).write_text(text)

    def host(self, line: str, kilobytes: int) -> None:
        """Change a line of the host's meminfo."""
        path = self.base / "proc/meminfo"
        lines = path.read_text().splitlines(keepends=True)
        changed = f"{line}:{kilobytes:>20} kB\n"
        path.write_text("".join(changed if each.startswith(f"{line}:") else each for each in lines))

    def facts(self) -> Facts:
        """The facts as of now."""
        return self._collector.facts(self.container)

    def read(self, path: str) -> str:
        """One view, as of now."""
        return view(path).render(self.facts()).decode()

    def numbers(self, path: str) -> dict[str, int]:
        """One view of lines that are a name and a number, as of now."""
        lines = [line.split() for line in self.read(path).splitlines()]
        return {fields[0].rstrip(":"): int(fields[1]) for fields in lines if len(fields) > 1}

    def refresh(self, *names: str) -> Path:
        """Write files of the container's /proc, all of one set of facts; return its directory."""
        facts = self.facts()
        for each in EACH:
            if each.path.removeprefix("proc/") in names:
                path = self.base / "views" / each.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(each.render(facts))
        return self.base / "views/proc"
