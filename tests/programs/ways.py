"""Three ways for a container to get its files: from sysfsd, from lxcfs, from the kernel alone."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BUILD = Path(__file__).parent.parent / "images" / "programs.sh"

LXCFS_OPTIONS = ("--enable-loadavg", "--enable-cfs")
"""lxcfs at its best: without them (its package's default) load and quota are the host's."""

LXCFS_FILES = (
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/slabinfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "sys/devices/system/cpu",
)
"""What lxcfs's own hook for LXC (lxc.mount.hook) binds, where the container has it."""

LXCFS_INSIDE = "/lxcfs"
"""Where a container has lxcfs's tree, to bind from."""


class Way(Enum):
    """From whom a container has its files."""

    SYSFSD = "sysfsd"
    LXCFS = "lxcfs"
    NOTHING = "nothing"


def images() -> Path:
    """Return the directory that ``tests/images/programs.sh`` builds; builds it if need be."""
    subprocess.run(["sh", str(BUILD)], check=True, timeout=1800, stdin=subprocess.DEVNULL)
    where = subprocess.run(
        ["sh", str(BUILD), "--where"], check=True, capture_output=True, text=True
    )
    return Path(where.stdout.strip())


@dataclass(frozen=True)
class Lxcfs:
    """A running lxcfs."""

    mountpoint: Path
    version: str

    def bind_option(self) -> str:
        """The option of ``docker run`` that brings its tree into a container, for `cover`."""
        return f"--volume={self.mountpoint}:{LXCFS_INSIDE}:ro"

    @contextmanager
    def cover(self, pid: int) -> Iterator[None]:
        """Bind its files over those of the container whose init is ``pid``, for a while."""
        with ExitStack() as stack:
            for file in LXCFS_FILES:
                if not Path(f"/proc/{pid}/root/{file}").exists():
                    continue
                _mount(pid, "mount", "--bind", f"{LXCFS_INSIDE}/{file}", f"/{file}")
                stack.callback(_mount, pid, "umount", f"/{file}")
            yield


def _mount(pid: int, *command: str) -> None:
    # The container's own mount(8), with our privileges: it may not mount.
    enter = ["nsenter", f"--target={pid}", "--mount", "--pid", "--"]
    subprocess.run([*enter, *command], check=True, timeout=30, stdin=subprocess.DEVNULL)


@contextmanager
def lxcfs(directory: Path, options: Sequence[str] = LXCFS_OPTIONS) -> Iterator[Lxcfs]:
    """Run Debian's lxcfs with everything of its in ``directory``, but for what it keeps in /run."""
    program = images() / "lxcfs"
    mountpoint, log = directory / "lxcfs", directory / "lxcfs.log"
    mountpoint.mkdir()
    arguments = [*options, "--pidfile", str(directory / "lxcfs.pid"), str(mountpoint)]
    # It leaves empty directories there: in this place only if some lxcfs has been here before us.
    kept = Path("/run/lxcfs")
    ours = not kept.exists()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", str(program / "run"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def mounted() -> bool:
        assert process.poll() is None, f"lxcfs ended:\n{log.read_text(errors='replace')}"
        return (mountpoint / "proc/meminfo").exists()

    try:
        until(mounted, "lxcfs's mount")
        yield Lxcfs(mountpoint, (program / "version").read_text().strip())
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if os.path.ismount(mountpoint):
            subprocess.run(["umount", "--lazy", str(mountpoint)], check=False)
        if ours:
            with suppress(OSError):
                for each in (*kept.iterdir(), kept):
                    each.rmdir()
