"""Podman: views by the hook alone (``examples/hooks.d``), and system containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.conftest import IMAGES
from tests.engine.throwaway import installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.engine.throwaway import Throwaway

    Podman = Callable[..., str]

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
EXAMPLE = EXAMPLES / "hooks.d" / "sysfsd.json"
CDI_EXAMPLE = EXAMPLES / "cdi" / "sysfsd.json"


@pytest.fixture(scope="module")
def podman(own: Throwaway) -> Iterator[Podman]:
    """Run podman with everything of its in a directory of its own; returns its stdout."""
    directory = own.directory / "podman"
    hooks = directory / "hooks.d"
    hooks.mkdir(parents=True)
    hook = json.loads(EXAMPLE.read_text())
    hook["hook"]["path"] = installed("sysfsd-hook")
    hook["hook"]["args"] += ["--control", own.daemon.control]
    (hooks / "sysfsd.json").write_text(json.dumps(hook))
    options = ["--root", str(directory / "root"), "--runroot", str(directory / "run")]
    options += ["--tmpdir", str(directory / "tmp")]
    options += ["--cgroup-manager", "cgroupfs", "--events-backend", "file"]

    def run(
        *arguments: str,
        runtime: tuple[str, ...] = ("--runtime", "runc"),
        hooks: tuple[str, ...] = ("--hooks-dir", str(hooks)),
    ) -> str:
        command = ["podman", *options, *hooks, *runtime, *arguments]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return done.stdout.decode().strip()

    where = subprocess.run(
        ["sh", str(IMAGES / "build.sh"), "--where"], capture_output=True, text=True, check=True
    )
    run("import", f"{where.stdout.strip()}/busybox.tar", "busybox")
    yield run
    run("rm", "--all", "--force", "--time", "0")
    # It keeps its storage mounted, to have it private.
    subprocess.run(["umount", str(directory / "root" / "overlay")], check=False)
    shutil.rmtree(directory)


def in_a_container(
    own: Throwaway, podman: Podman, *options: str, command: str, **how: tuple[str, ...]
) -> list[str]:
    # No network, because Podman would set one up on the host; limits that need no privilege.
    fixed = ["--network", "none", "--cgroup-parent", f"/{own.cgroup}/podman"]
    fixed += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
    words = ["run", "--rm", *fixed, *options, "busybox", "sh", "-c", command]
    return podman(*words, **how).splitlines()


READ = """
awk '/^MemTotal/ { print $2 }' /proc/meminfo
cut -d. -f1 /proc/uptime
grep -c fuse /proc/mounts
"""


def test_the_hook_gives_the_views(own: Throwaway, podman: Podman) -> None:
    total, uptime, mounts = in_a_container(own, podman, "--memory", "64m", command=READ)
    assert int(total) == 64 << 10
    assert int(uptime) < float(Path("/proc/uptime").read_text().split()[0])
    assert int(mounts) > 5


def test_with_a_user_namespace_of_podmans(own: Throwaway, podman: Podman) -> None:
    options = [
        "--memory",
        "64m",
        "--uidmap",
        "0:2000000000:65536",
        "--gidmap",
        "0:2000000000:65536",
    ]
    script = f"{READ}stat -c %u:%g /proc/meminfo"
    total, _, mounts, owner = in_a_container(own, podman, *options, command=script)
    assert int(total) == 64 << 10
    assert int(mounts) > 5
    assert owner == "0:0"


@pytest.mark.parametrize(
    ("options", "first"),
    [((), None), (("--uidmap", "0:700000:65536", "--gidmap", "0:700000:65536"), 700000)],
    ids=["ids of ours", "ids of Podman's"],
)
def test_a_system_container(
    own: Throwaway, podman: Podman, options: tuple[str, ...], first: int | None
) -> None:
    """Podman may choose the ids; it then shifts the layers itself."""
    flags = (f"control={own.daemon.control}", f"config={own.daemon.config}")
    runtime: tuple[str, ...] = ("--runtime", installed("sysfsd-runc"))
    runtime += tuple(word for flag in flags for word in ("--runtime-flag", flag))
    command = f"cat /proc/self/uid_map; stat -c %u /etc/passwd; mount -t tmpfs none /tmp; {READ}"
    mapping, owner, total, *_ = in_a_container(
        own, podman, *options, "--memory", "64m", command=command, runtime=runtime
    )
    inside, outside, size = (int(word) for word in mapping.split())
    assert (inside, size) == (0, 65536)
    assert outside == first or (first is None and outside > 65535)
    assert int(owner) == 0
    assert int(total) == 64 << 10


@pytest.fixture
def cdi_kind(own: Throwaway) -> Iterator[str]:
    """``examples/cdi`` for the tests' daemon, where engines look for such files."""
    document = json.loads(CDI_EXAMPLE.read_text())
    document["kind"] = kind = f"test{os.getpid()}.{document['kind']}"
    (hook,) = document["devices"][0]["containerEdits"]["hooks"]
    hook["path"] = installed("sysfsd-hook")
    hook["args"] += ["--control", own.daemon.control]
    directory = Path("/var/run/cdi")
    made = not directory.exists()
    directory.mkdir(exist_ok=True)
    file = directory / f"sysfsd-test-{os.getpid()}.json"
    file.write_text(json.dumps(document))
    yield kind
    file.unlink()
    if made:
        directory.rmdir()


def test_a_cdi_device_gives_the_views(
    own: Throwaway, podman: Podman, cdi_kind: str, tmp_path: Path
) -> None:
    nothing = ("--hooks-dir", str(tmp_path))
    device = ("--device", f"{cdi_kind}=all")
    total, uptime, mounts = in_a_container(
        own, podman, *device, "--memory", "64m", command=READ, hooks=nothing
    )
    assert int(total) == 64 << 10
    assert int(uptime) < float(Path("/proc/uptime").read_text().split()[0])
    assert int(mounts) > 5
    *_, without = in_a_container(own, podman, command=f"{READ}true", hooks=nothing)
    assert int(without) == 0


def test_an_annotation_sets_the_policy(own: Throwaway, podman: Podman) -> None:
    online = "/sys/devices/system/cpu/online"
    host = Path(online).read_text().strip()
    for policy, seen in (("quota", "0"), ("cpuset", host)):
        options = ("--cpus", "0.5", "--annotation", f"dev.sysfsd.cpu-policy={policy}")
        assert in_a_container(own, podman, *options, command=f"cat {online}") == [seen]
