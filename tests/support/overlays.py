"""Two overlays over one upper layer, as an engine and sysfsd-runc make them.

They are mounted by a process in a mount namespace of its own, which ends at once: only descriptors
are left of them, and nothing of them is left when those are closed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sysfsd.kernel import mounts, syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parent.parent.parent


@dataclass
class Overlays:
    """O_PATH descriptors of the roots of the engine's overlay and of the container's."""

    directory: Path
    engine_root: int
    container_root: int

    @property
    def engine(self) -> Path:
        return Path(f"/proc/self/fd/{self.engine_root}")

    @property
    def container(self) -> Path:
        return Path(f"/proc/self/fd/{self.container_root}")

    def upper_is_in_use(self) -> bool:
        """Whether some superblock still has the upper layer: overlayfs wants it alone then."""
        (self.directory / "probe-work").mkdir(exist_ok=True)
        done = subprocess.run(
            [
                *("unshare", "--mount", "mount", "-t", "overlay", "probe"),
                *("-o", _options(self.directory, "probe-work") + ",index=on"),
                str(self.directory / "probe"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        # EBUSY in mount(8)'s words, which depend on what else is mounted on this host.
        busy = "busy" in done.stderr or "already mounted" in done.stderr
        assert done.returncode == 0 or busy, done.stderr
        return done.returncode != 0

    def close(self) -> None:
        for fd in (self.engine_root, self.container_root):
            if fd >= 0:
                os.close(fd)
        self.engine_root = self.container_root = -1


def make_overlays(directory: Path, *, lower_elsewhere: bool = False) -> Iterator[Overlays]:
    """Make overlays whose lower layer has ``tmp``, ``old`` and, of 9 bytes, ``file``.

    ``lower_elsewhere`` puts the lower layer on another file system than the upper one.
    """
    for name in ("lower", "upper", "work", "own-work", "engine", "container", "probe"):
        (directory / name).mkdir()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(
            [
                *(sys.executable, "-m", "tests.support.overlays"),
                *(str(directory), str(theirs.fileno()), str(int(lower_elsewhere))),
            ],
            pass_fds=[theirs.fileno()],
            cwd=REPOSITORY,
            check=True,
        )
        _, fds, _, _ = socket.recv_fds(ours, 1, 2)
    overlays = Overlays(directory, *fds)
    yield overlays
    overlays.close()


def _options(directory: Path, work: str) -> str:
    return f"lowerdir={directory}/lower,upperdir={directory}/upper,workdir={directory}/{work}"


def _mount(directory: Path, connection: int, *, lower_elsewhere: bool) -> None:
    mounts.make_private_namespace()
    lower = directory / "lower"
    if lower_elsewhere:
        syscalls.mount("lower", str(lower), "tmpfs", 0, None)
    (lower / "tmp").mkdir()
    (lower / "old").mkdir()
    (lower / "file").write_text("of image\n")
    roots = []
    for name, work in (("engine", "work"), ("container", "own-work")):
        options = _options(directory, work) + ",index=off"
        syscalls.mount("overlay", str(directory / name), "overlay", 0, options)
        roots.append(os.open(directory / name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    with socket.socket(fileno=connection) as sender:
        socket.send_fds(sender, [b"\0"], roots)


if __name__ == "__main__":
    _mount(Path(sys.argv[1]), int(sys.argv[2]), lower_elsewhere=sys.argv[3] == "1")
