"""A running container of the engine, and what it shows of itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sysfsd.kernel.cgroups import parse_flat_keyed
from sysfsd.kernel.procfs import parse_cpu_list

if TYPE_CHECKING:
    from tests.engine.docker import Docker

CGROUPS = Path("/sys/fs/cgroup")
TICKS = 100
"""USER_HZ: ticks of /proc/stat in a second."""


@dataclass(frozen=True)
class CpuLine:
    """A line of /proc/stat, in ticks."""

    user: int
    system: int
    idle: int

    @property
    def busy(self) -> int:
        return self.user + self.system

    @property
    def total(self) -> int:
        return self.busy + self.idle


@dataclass(frozen=True)
class Box:
    """A container whose init is ``pid``."""

    docker: Docker
    name: str
    pid: int

    def path(self, path: str) -> Path:
        """A path of the container's, seen from here; its views are mounted there."""
        return Path(f"/proc/{self.pid}/root", path)

    def read(self, path: str) -> str:
        """What the container reads at a path, with one read(2).

        A second one, to see whether there is more, would find the end of a later refresh if that is
        longer: on an emulated machine, many milliseconds are between the two.
        """
        fd = os.open(self.path(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 1 << 20).decode()
        finally:
            os.close(fd)

    @property
    def cgroup(self) -> Path:
        """Its cgroup: of Docker's scope, also where an engine inside moved init to a leaf."""
        path = Path(f"/proc/{self.pid}/cgroup").read_text().strip().removeprefix("0::/")
        parts = Path(path).parts
        scope = next(index for index, part in enumerate(parts) if part.endswith(".scope"))
        return CGROUPS.joinpath(*parts[: scope + 1])

    def limit(self, file: str, value: str) -> None:
        """Write a file of its cgroup, as an engine or an administrator would."""
        (self.cgroup / file).write_text(value)

    def usage(self) -> float:
        """CPU time it has used, in seconds, by the kernel's word."""
        return parse_flat_keyed((self.cgroup / "cpu.stat").read_text())["usage_usec"] / 1e6

    def meminfo(self) -> dict[str, int]:
        """Its /proc/meminfo: kB, or pages of the few lines that have no unit."""
        lines = self.read("proc/meminfo").splitlines()
        return {line.partition(":")[0]: int(line.split()[1]) for line in lines}

    def cpu_lines(self) -> dict[str, CpuLine]:
        """The lines ``cpu``, ``cpu0``… of its /proc/stat."""
        lines = {}
        for line in self.read("proc/stat").splitlines():
            name, *numbers = line.split()
            if name.startswith("cpu"):
                user, nice, system, idle, *others = map(int, numbers)
                assert [nice, *others] == [0] * (len(others) + 1)
                lines[name] = CpuLine(user, system, idle)
        return lines

    def cpus(self) -> dict[str, tuple[int, ...]]:
        """The numbers of its CPUs as each of its files has them."""
        listed = [name.removeprefix("cpu") for name in self.cpu_lines() if name != "cpu"]
        processors = [
            line.split()[-1]
            for line in self.read("proc/cpuinfo").splitlines()
            if line.startswith("processor")
        ]
        directories = [
            entry.name.removeprefix("cpu")
            for entry in self.path("sys/devices/system/cpu").iterdir()
            if entry.name.removeprefix("cpu").isdigit()
        ]
        return {
            "stat": tuple(sorted(map(int, listed))),
            "cpuinfo": tuple(sorted(map(int, processors))),
            "cpuN": tuple(sorted(map(int, directories))),
            "online": parse_cpu_list(self.read("sys/devices/system/cpu/online")),
        }
