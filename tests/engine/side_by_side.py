"""Why: the same checks with ``--privileged``, with a shared ``docker.sock``, in a system container.

    python -m tests.engine.side_by_side

prints the table; the demo does, and the tests look at the same rows. It talks to the engine that
``DOCKER_HOST`` names, which must know the runtime ``sysfsd`` and have the image
``sysfsd-dind:bookworm``. Nothing is changed on the host: what could be written is opened and closed
again, or written back as it was.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.engine.docker import Docker, DockerFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "sysfsd-dind:bookworm"
MEMORY_MIB = 512
LIMITS = ("--memory", f"{MEMORY_MIB}m", "--cpus", "1", "--cpuset-cpus", "0")

# What --privileged is made of, less the one capability that this machine may lack.
_PRIVILEGED_BY_HAND = (
    "--cap-add=ALL --cap-drop=SYS_RESOURCE --security-opt=seccomp=unconfined "
    "--security-opt=apparmor=unconfined --security-opt=systempaths=unconfined"
).split()
_ALL_DEVICES = "--device-cgroup-rule=a *:* rwm"

# One line "NAME VALUE" a check. init_module(2) with nothing in it: EPERM is the answer to those who
# may not load modules, ENOSYS of a kernel that has none, anything else comes later in the kernel.
_CHECKS = r"""
writable() { if [ ! -e "$1" ]; then echo missing; elif (eval "$2") 2>/dev/null
  then echo yes; else echo no; fi; }
cd /proc/sys/kernel
echo sysctl $(writable sched_rt_period_us \
  'old=$(cat sched_rt_period_us) && echo $old >sched_rt_period_us')
cd /
echo sysrq $(writable /proc/sysrq-trigger ': >>/proc/sysrq-trigger')
echo module $(perl -e 'syscall(175, 0, 0, 0); use Errno; print $!{EPERM} ? "no"
  : $!{ENOSYS} ? "missing" : "yes"')
rm -f /tmp/disk
echo disk $( (mknod /tmp/disk b DISK && dd if=/tmp/disk of=/dev/null bs=4096 count=1) 2>/dev/null \
  && echo yes || echo no)
rm -f /tmp/disk
"""

_NUMBERS = r"""
echo memory $(free -m | awk '$1 == "Mem:" { print $2 }')
echo cpus $(nproc --all)
echo uptime $(cut -d. -f1 /proc/uptime)
"""


@dataclass(frozen=True)
class Way:
    """One way to have an engine in a container, and what it came to."""

    name: str
    host_uid: int
    sees_host_containers: bool
    reaches: dict[str, str]
    """sysctl, sysrq, module, disk: ``yes``, ``no``, or ``missing`` on this host."""
    memory_mib: int
    cpus: int
    uptime: int


@dataclass(frozen=True)
class Comparison:
    """All three ways, and how to read them."""

    ways: tuple[Way, ...]
    notes: tuple[str, ...]

    @property
    def privileged(self) -> Way:
        """``--privileged``."""
        return self.ways[0]

    @property
    def shared_socket(self) -> Way:
        """``-v docker.sock``."""
        return self.ways[1]

    @property
    def system_container(self) -> Way:
        """``--runtime=sysfsd``."""
        return self.ways[2]


def privileged_options(docker: Docker) -> tuple[list[str], str | None]:
    """Return options that make a privileged container here, and a note when they are a stand-in."""
    try:
        docker("run", "--rm", "--privileged", "--entrypoint", "true", IMAGE)
    except DockerFailed as error:
        if "unable to apply caps" not in error.output:
            raise
        return [*_PRIVILEGED_BY_HAND, _ALL_DEVICES], (
            "--privileged itself fails on this machine (CAP_SYS_RESOURCE is not to be had): "
            "the column shows all else that it gives, asked for one by one"
        )
    return ["--privileged"], None


def compare(docker: Docker) -> Comparison:
    """Make the three containers, run the checks, remove them."""
    mark = f"side-by-side-{os.getpid()}"
    names = {way: f"{mark}-{way}" for way in ("privileged", "socket", "system", "bystander")}
    idle = ("--entrypoint", "sleep")
    options, note = privileged_options(docker)
    socket = f"{docker.socket}:/var/run/docker.sock"
    with _host_disk() as disk:
        checks = _CHECKS.replace("DISK", disk)
        try:
            docker("run", "-d", "--name", names["bystander"], *idle, IMAGE, "600")
            docker(
                "run", "-d", "--name", names["privileged"], *options, *LIMITS, *idle, IMAGE, "600"
            )
            docker(
                "run", "-d", "--name", names["socket"], "-v", socket, *LIMITS, *idle, IMAGE, "600"
            )
            docker("run", "-d", "--name", names["system"], "--runtime=sysfsd", *LIMITS, IMAGE)
            docker.inside(names["system"]).wait_for_engine()
            start = ["docker", "run", "--rm", *options, "--entrypoint", "sh", IMAGE, "-c", checks]
            here = ["sh", "-c", checks]
            ways = (
                _look(docker, "--privileged", names["privileged"], here, names),
                _look(docker, "shared docker.sock", names["socket"], start, names),
                _look(docker, "system container", names["system"], here, names),
            )
        finally:
            docker.attempt("rm", "--force", "--volumes", *names.values())
    notes = [f"In capitals: where the host is open. Each has the limits {' '.join(LIMITS)}."]
    if note:
        notes.append(f"{note}.")
    notes.append(
        "Shared docker.sock: the middle rows show what a container reaches that the one with the "
        "socket starts; nobody can keep it from starting one."
    )
    return Comparison(ways, tuple(notes))


def _look(
    docker: Docker, way: str, container: str, checks: list[str], names: dict[str, str]
) -> Way:
    reaches = _values(docker("exec", container, *checks))
    numbers = _values(docker.shell(container, _NUMBERS))
    listed = docker.shell(container, "docker ps --format '{{.Names}}' 2>/dev/null || true").split()
    return Way(
        name=way,
        host_uid=_uid(docker.pid(container)),
        sees_host_containers=names["bystander"] in listed,
        reaches=reaches,
        memory_mib=int(numbers["memory"]),
        cpus=int(numbers["cpus"]),
        uptime=int(numbers["uptime"]),
    )


def _values(output: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in output.splitlines())


def _uid(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    raise AssertionError(f"/proc/{pid}/status has no Uid")


@contextmanager
def _host_disk() -> Iterator[str]:
    """Make a block device of the host for a while and yield its number, as mknod(1) takes it.

    A loop device: as good a disk of the host as any, and one with nothing on it.
    """
    with tempfile.NamedTemporaryFile(prefix="sysfsd-disk-", dir="/var/tmp") as file:
        file.truncate(1 << 20)
        made = subprocess.run(
            ["losetup", "--find", "--show", file.name], capture_output=True, text=True, check=True
        )
        device = made.stdout.strip()
        try:
            number = os.stat(device).st_rdev
            yield f"{os.major(number)} {os.minor(number)}"
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)


def table(comparison: Comparison) -> str:
    """Lay the comparison out as text."""
    rows: list[tuple[str, list[str]]] = [
        ("", [way.name for way in comparison.ways]),
        ("root in the container is, on the host", [_user(way) for way in comparison.ways]),
        (
            "sees the host's containers",
            ["YES" if way.sees_host_containers else "no" for way in comparison.ways],
        ),
    ]
    for check, title in (
        ("sysctl", "writes a setting of the host's kernel"),
        ("sysrq", "writes the host's /proc/sysrq-trigger"),
        ("module", "loads modules into the host's kernel"),
        ("disk", "reads a disk of the host"),
    ):
        rows.append((title, [_reach(way.reaches[check]) for way in comparison.ways]))
    rows += [
        (
            f"free: memory (limit {MEMORY_MIB} MiB)",
            [f"{w.memory_mib} MiB" for w in comparison.ways],
        ),
        ("nproc --all (limit 1)", [str(way.cpus) for way in comparison.ways]),
        ("uptime (just started)", [_seconds(way.uptime) for way in comparison.ways]),
    ]
    first = max(len(title) for title, _ in rows)
    width = max(len(cell) for _, cells in rows for cell in cells)
    lines = [
        f"{title:<{first}}  " + "  ".join(f"{cell:<{width}}" for cell in cells)
        for title, cells in rows
    ]
    lines.insert(1, "-" * (first + 3 * (width + 2)))
    notes = [textwrap.fill(note, first + 3 * (width + 2)) for note in comparison.notes]
    return "\n".join([line.rstrip() for line in lines] + ["", *notes])


def _user(way: Way) -> str:
    return "ROOT (uid 0)" if way.host_uid == 0 else f"uid {way.host_uid}"


def _reach(value: str) -> str:
    return {"yes": "YES", "no": "no", "missing": "(not in this kernel)"}[value]


def _seconds(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def main() -> int:
    """Print the table."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    try:
        print(table(compare(Docker(host.removeprefix("unix://")))))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
