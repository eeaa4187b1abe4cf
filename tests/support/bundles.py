"""OCI bundles for runc and crun: a root file system of busybox and a spec like an engine's."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.wait import patient

BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static

APPLETS = (
    "sh cat echo id ls stat touch chown mkdir sleep mount umount grep readlink ping rm".split()
)

# What Docker and Podman give unasked.
CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "
        "NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"
    ).split()
]


def spec(*args: str, memory: int | None = None, cgroup: str) -> dict[str, Any]:
    """Return a spec as an engine would write it for an ordinary container."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")
            },
        },
        "root": {"path": "rootfs"},
        "hostname": "bundle",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"],
            },
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
            {
                "destination": "/sys/fs/cgroup",
                "type": "cgroup",
                "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                "memory": {"limit": memory} if memory else {},
                "pids": {"limit": 100},
            },
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
        },
    }


@dataclass
class Bundle:
    """A bundle on disk."""

    path: Path
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def rootfs(self) -> Path:
        """Where its root file system is."""
        return self.path / "rootfs"

    def save(self) -> None:
        """Write config.json as the spec is now."""
        (self.path / "config.json").write_text(json.dumps(self.spec))


def make_bundle(path: Path, spec_: dict[str, Any]) -> Bundle:
    """Make a bundle whose root file system holds a static busybox and nothing else."""
    binaries = path / "rootfs" / "bin"
    binaries.mkdir(parents=True)
    path.chmod(0o700)
    shutil.copy(BUSYBOX, binaries / "busybox")
    for applet in APPLETS:
        (binaries / applet).symlink_to("busybox")
    for name in ("proc", "sys", "dev", "tmp", "etc", "data"):
        (path / "rootfs" / name).mkdir()
    bundle = Bundle(path, spec_)
    bundle.save()
    return bundle


def run(
    arguments: list[str], *, stdin: bytes = b"", timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run a program and return what came of it; a hang is a failure."""
    done = subprocess.run(
        arguments, input=stdin, capture_output=True, timeout=patient(timeout), check=False
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace")
    )
