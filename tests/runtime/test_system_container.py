"""What sysfsd-runc makes of a bundle, with the real runc and the real crun."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.bundles import run
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.runtime.conftest import Runtime
    from tests.support.bundles import Bundle

MEMORY = 64 << 20


def once(runtime: Runtime, bundle: Bundle) -> str:
    return runtime("run", "--bundle", str(bundle.path), bundle.path.name)


def test_its_root_is_nobody_on_the_host(
    runtime: Runtime, new_bundle: Callable[..., Bundle]
) -> None:
    output = once(runtime, new_bundle("sh", "-c", "id -u; cat /proc/self/uid_map"))
    inside, mapping = output.splitlines()
    first, outside, size = (int(word) for word in mapping.split())

    assert inside == "0"
    assert (first, size) == (0, 65536)
    assert outside >= 65536


def test_it_sees_its_own_memory_and_age(
    runtime: Runtime, new_bundle: Callable[..., Bundle]
) -> None:
    bundle = new_bundle("sh", "-c", "cat /proc/meminfo; cat /proc/uptime", memory=MEMORY)
    *meminfo, uptime = once(runtime, bundle).splitlines()

    assert meminfo[0].split() == ["MemTotal:", str(MEMORY // 1024), "kB"]
    with open("/proc/uptime", encoding="ascii") as host:
        assert float(uptime.split()[0]) < float(host.read().split()[0]) / 2


def test_files_keep_their_ids_on_disk(runtime: Runtime, new_bundle: Callable[..., Bundle]) -> None:
    bundle = new_bundle("sh", "-c", "stat -c %u:%g /etc; touch /etc/a /etc/b; chown 1000:7 /etc/b")
    output = once(runtime, bundle)

    assert output.split() == ["0:0"]
    assert (bundle.rootfs / "etc" / "a").stat().st_uid == 0
    status = (bundle.rootfs / "etc" / "b").stat()
    assert (status.st_uid, status.st_gid) == (1000, 7)


def test_volumes_have_the_right_owner_inside_and_on_disk(
    runtime: Runtime, new_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "theirs").touch()
    os.chown(volume / "theirs", 1000, 1000)
    bundle = new_bundle("sh", "-c", "stat -c %u /data /data/theirs; touch /data/mine")
    bundle.spec["mounts"].append(
        {"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind"]}
    )
    bundle.save()

    assert once(runtime, bundle).split() == ["0", "1000"]
    assert (volume / "mine").stat().st_uid == 0


def test_the_bundle_on_disk_stays_as_its_owner_wrote_it(
    runtime: Runtime, new_bundle: Callable[..., Bundle]
) -> None:
    bundle = new_bundle("id")
    before = (bundle.path / "config.json").read_bytes()
    once(runtime, bundle)
    once(runtime, bundle)

    assert (bundle.path / "config.json").read_bytes() == before


def test_the_bundle_is_the_one_that_the_kernel_finds(
    runtime: Runtime, new_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """``LINK/..`` is the parent of what the link leads to, not the link's own."""
    bundle, other = new_bundle("echo", "this"), new_bundle("echo", "other")
    inside = bundle.path / "inside"
    inside.mkdir()
    link = other.path / "link"
    link.symlink_to(inside)
    output = runtime("run", f"--bundle={link}/..", bundle.path.name)

    assert output.split() == ["this"]


def test_limits_cannot_be_raised_from_inside(
    runtime: Runtime, new_bundle: Callable[..., Bundle]
) -> None:
    script = (
        "for file in /sys/fs/cgroup/memory*/memory.* /sys/fs/cgroup/pids*/pids.* "
        "/sys/fs/cgroup/*.max; do [ -f $file ] || continue; echo -1 2>/dev/null >$file && "
        "echo wrote $file; echo max 2>/dev/null >$file && echo wrote $file; done; "
        "cd /sys/fs/cgroup/memory 2>/dev/null || cd /sys/fs/cgroup; "
        "mkdir inner && echo delegated"
    )
    output = once(runtime, new_bundle("sh", "-c", script, memory=MEMORY))

    assert output.split() == ["delegated"]


def test_no_descriptor_of_ours_reaches_the_container(
    runtime: Runtime, new_bundle: Callable[..., Bundle]
) -> None:
    """CVE-2024-21626 was a leaked descriptor of a host directory."""
    output = once(
        runtime, new_bundle("sh", "-c", "for f in /proc/1/fd/*; do readlink $f; done; true")
    )

    assert all(line.startswith(("/dev/null", "pipe:", "/proc/")) for line in output.splitlines())


def test_nothing_of_the_image_runs_in_the_hook(
    runtime: Runtime, new_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """CVE-2025-23266 was a hook that ran under the image's environment, in the image's files."""
    marker = tmp_path / "escaped"
    evil = f"open({str(marker)!r}, 'w')"
    bundle = new_bundle("echo", "started")
    bundle.spec["process"]["env"] += [
        "LD_PRELOAD=/evil.so", "PYTHONPATH=/", "PYTHONSTARTUP=/evil.py", "PYTHONHOME=/",
    ]  # fmt: skip
    bundle.save()
    for name in ("json", "socket", "sysfsd", "site", "encodings", "tomllib", "ctypes", "evil"):
        (bundle.rootfs / f"{name}.py").write_text(evil)
    (bundle.rootfs / "evil.so").write_bytes(b"no library")
    # busybox is static: LD_PRELOAD means nothing to the process itself.

    assert once(runtime, bundle).split() == ["started"]
    assert not marker.exists()


class TestExec:
    def test_root_gets_the_capabilities_of_its_user_namespace(
        self,
        runtime: Runtime,
        new_bundle: Callable[..., Bundle],
        container: Callable[[Bundle], str],
    ) -> None:
        name = container(new_bundle("sleep", "600"))
        output = runtime("exec", name, "grep", "CapEff", "/proc/self/status")
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            everything = (1 << (int(file.read()) + 1)) - 1

        assert int(output.split()[1], 16) == everything

    @pytest.mark.parametrize(("uid", "effective"), [(0, True), (1000, False)])
    def test_as_an_engine_does_it(
        self,
        runtime: Runtime,
        new_bundle: Callable[..., Bundle],
        container: Callable[[Bundle], str],
        tmp_path: Path,
        uid: int,
        effective: bool,
    ) -> None:
        name = container(new_bundle("sleep", "600"))
        process = tmp_path / "process.json"
        document = {
            "user": {"uid": uid, "gid": uid},
            "args": ["grep", "Cap", "/proc/self/status"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_SETUID"]},
        }
        process.write_text(json.dumps(document))
        output = runtime("exec", "--process", str(process), name)
        sets = {line.split(":")[0]: int(line.split()[1], 16) for line in output.splitlines()}

        assert bool(sets["CapEff"]) is effective
        assert bool(sets["CapBnd"])
        assert sets["CapAmb"] == 0


class TestLifeOfARange:
    def test_each_container_has_its_own_until_it_goes(
        self,
        runtime: Runtime,
        new_bundle: Callable[..., Bundle],
        container: Callable[[Bundle], str],
    ) -> None:
        first, second = (container(new_bundle("sleep", "600")) for _ in range(2))
        listed = json.loads(runtime.daemon.command("ps", "--json"))
        bases = {entry["id"]: entry["uid_base"] for entry in _containers(listed)}

        assert bases[first] != bases[second]
        runtime("delete", "--force", first)
        runtime("delete", "--force", second)
        until(
            lambda: (
                not {first, second}
                & {e["id"] for e in _containers(json.loads(runtime.daemon.command("ps", "--json")))}
            ),
            "the records to go with their containers",
        )

    def test_a_spec_with_mappings_of_its_own_keeps_them(
        self, runtime: Runtime, new_bundle: Callable[..., Bundle]
    ) -> None:
        bundle = new_bundle("cat", "/proc/self/uid_map")
        mapping = [{"containerID": 0, "hostID": 3_000_000, "size": 1000}]
        linux = bundle.spec["linux"]
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = linux["gidMappings"] = mapping
        bundle.save()
        # An engine with userns-remap has given the files to these ids, and leave to reach them.
        bundle.path.chmod(0o711)
        for path in [bundle.rootfs, *bundle.rootfs.rglob("*")]:
            os.chown(path, 3_000_000, 3_000_000, follow_symlinks=False)
        # Podman's way: the directory of the bundle as well, but not what is written in there.
        os.chown(bundle.path, 3_000_000, 3_000_000)

        assert [int(word) for word in once(runtime, bundle).split()] == [0, 3_000_000, 1000]


class TestRefusals:
    def refused(self, runtime: Runtime, bundle: Bundle, control: str | None = None) -> str:
        arguments = ["run", "--bundle", str(bundle.path), bundle.path.name]
        done = run(runtime.command(*arguments, control=control))
        assert done.returncode != 0
        (line,) = done.stderr.splitlines()
        return line

    def test_privileged(self, runtime: Runtime, new_bundle: Callable[..., Bundle]) -> None:
        bundle = new_bundle("id")
        bundle.spec["linux"]["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
        bundle.save()

        assert "--privileged" in self.refused(runtime, bundle)

    def test_a_bundle_that_belongs_to_somebody_else(
        self, runtime: Runtime, new_bundle: Callable[..., Bundle]
    ) -> None:
        bundle = new_bundle("id")
        os.chown(bundle.path, 1000, 1000)

        assert "belongs to uid 1000" in self.refused(runtime, bundle)

    def test_a_config_that_others_can_write(
        self, runtime: Runtime, new_bundle: Callable[..., Bundle]
    ) -> None:
        bundle = new_bundle("id")
        (bundle.path / "config.json").chmod(0o666)

        assert "can be written by others" in self.refused(runtime, bundle)

    @pytest.mark.parametrize("kind", ["link", "pipe"])
    def test_a_config_that_is_no_file(
        self, runtime: Runtime, new_bundle: Callable[..., Bundle], kind: str
    ) -> None:
        bundle = new_bundle("id")
        config = bundle.path / "config.json"
        if kind == "link":
            config.rename(bundle.path / "elsewhere.json")
            config.symlink_to("elsewhere.json")
        else:
            config.unlink()
            os.mkfifo(config)

        assert "config.json" in self.refused(runtime, bundle)

    @pytest.mark.parametrize(
        "change",
        [
            {"root": {}},
            {"mounts": [None]},
            {"LINUX": {"namespaces": []}},
            {"linux": {"namespaces": ["x"]}},
            {"process": 7},
        ],
        ids=str,
    )
    def test_a_spec_that_is_none(
        self, runtime: Runtime, new_bundle: Callable[..., Bundle], change: dict[str, object]
    ) -> None:
        bundle = new_bundle("id")
        bundle.spec.update(change)
        bundle.save()

        assert self.refused(runtime, bundle).startswith("sysfsd-runc: ")

    def test_no_daemon(
        self, runtime: Runtime, new_bundle: Callable[..., Bundle], tmp_path: Path
    ) -> None:
        line = self.refused(runtime, new_bundle("id"), control=str(tmp_path / "nobody.sock"))

        assert "systemctl start sysfsd" in line

    def test_the_reason_goes_where_an_engine_looks(
        self, runtime: Runtime, new_bundle: Callable[..., Bundle], tmp_path: Path
    ) -> None:
        bundle = new_bundle("id")
        bundle.spec["linux"]["namespaces"] = []
        bundle.save()
        log = tmp_path / "log.json"
        arguments = ["--log", str(log), "--log-format", "json"]
        run(runtime.command(*arguments, "create", "--bundle", str(bundle.path), "x"))

        assert "--pid=host" in json.loads(log.read_text())["msg"]


def _containers(listed: object) -> list[dict[str, object]]:
    """``sysfsd ps --json`` is a list, or an object that holds one."""
    if isinstance(listed, dict):
        listed = listed["containers"]
    assert isinstance(listed, list)
    return listed
