"""What sysfsd-runc makes of specs that real engines wrote (fixtures/specs, recorded)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sysfsd.errors import Refused
from sysfsd.runtime import capabilities, refusals
from sysfsd.runtime.spec import (
    IdRange,
    has_own_user_namespace,
    is_bind,
    make_system_container,
    make_system_process,
    mapped_ids,
    wants_docker_data,
)

SPECS = Path(__file__).parent / "fixtures" / "specs"
HOOK = {"path": "/usr/bin/python3", "args": ["python3", "hook"]}
RANGE = IdRange(165536, 231072, 65536)
LAST_CAPABILITY = 40


def recorded(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads((SPECS / f"{name}.json").read_text())
    return spec


@pytest.fixture
def docker() -> dict[str, Any]:
    """``docker run -m 64m --cpus 1 -v /srv/data:/mnt:ro``, Docker 20.10 of Debian 12."""
    return recorded("docker-20.10")


def edited(spec: dict[str, Any], ids: IdRange | None = RANGE) -> dict[str, Any]:
    result = copy.deepcopy(spec)
    make_system_container(result, ids=ids, hook=HOOK, last_capability=LAST_CAPABILITY)
    return result


class TestEdit:
    def test_adds_user_and_cgroup_namespaces_and_maps_the_range(
        self, docker: dict[str, Any]
    ) -> None:
        linux = edited(docker)["linux"]

        assert {"user", "cgroup", "pid", "network", "mount", "ipc", "uts"} == {
            namespace["type"] for namespace in linux["namespaces"]
        }
        assert linux["uidMappings"] == [{"containerID": 0, "hostID": 165536, "size": 65536}]
        assert linux["gidMappings"] == [{"containerID": 0, "hostID": 231072, "size": 65536}]

    def test_kernel_file_systems_are_writable_and_nothing_is_masked(
        self, docker: dict[str, Any]
    ) -> None:
        spec = edited(docker)

        for mount in spec["mounts"]:
            if mount["type"] in {"proc", "sysfs", "cgroup"}:
                assert "ro" not in mount["options"]
                assert "nosuid" in mount["options"]
        assert spec["linux"]["maskedPaths"] == []
        assert spec["linux"]["readonlyPaths"] == []

    def test_a_read_only_volume_stays_read_only(self, docker: dict[str, Any]) -> None:
        (volume,) = [mount for mount in edited(docker)["mounts"] if mount["destination"] == "/mnt"]

        assert volume["options"] == ["rbind", "ro", "rprivate"]

    def test_limits_are_not_touched(self, docker: dict[str, Any]) -> None:
        assert docker["linux"]["resources"] == edited(docker)["linux"]["resources"]
        assert docker["linux"]["cgroupsPath"] == edited(docker)["linux"]["cgroupsPath"]

    def test_fields_that_nobody_knows_survive(self, docker: dict[str, Any]) -> None:
        docker["future"] = {"a": [1, {"b": None}]}
        docker["linux"]["netDevices"] = {"eth1": {"name": "x"}}
        docker["mounts"][0]["uidMappings"] = []
        spec = edited(docker)

        assert spec["future"] == {"a": [1, {"b": None}]}
        assert spec["linux"]["netDevices"] == {"eth1": {"name": "x"}}
        assert spec["mounts"][0]["uidMappings"] == []

    def test_the_hook_comes_after_those_of_the_engine(self, docker: dict[str, Any]) -> None:
        docker["hooks"]["createRuntime"] = [{"path": "/first"}]
        hooks = edited(docker)["hooks"]

        assert hooks["createRuntime"] == [{"path": "/first"}, HOOK]
        assert docker["hooks"]["prestart"] == hooks["prestart"]

    def test_ping_groups_end_where_the_mapping_does(self, docker: dict[str, Any]) -> None:
        sysctls = edited(docker)["linux"]["sysctl"]

        assert sysctls["net.ipv4.ping_group_range"] == "0 65535"
        assert sysctls["net.ipv4.ip_unprivileged_port_start"] == "0"

    def test_ping_groups_within_the_mapping_stay(self, docker: dict[str, Any]) -> None:
        docker["linux"]["sysctl"]["net.ipv4.ping_group_range"] = "0 1000"

        assert edited(docker)["linux"]["sysctl"]["net.ipv4.ping_group_range"] == "0 1000"

    def test_a_spec_with_its_own_mappings_keeps_them(self, docker: dict[str, Any]) -> None:
        own = [{"containerID": 0, "hostID": 900000, "size": 70000}]
        docker["linux"]["namespaces"].append({"type": "user"})
        docker["linux"]["uidMappings"] = docker["linux"]["gidMappings"] = own
        assert has_own_user_namespace(docker)
        linux = edited(docker, ids=None)["linux"]

        assert own == linux["uidMappings"] == linux["gidMappings"]
        assert [namespace["type"] for namespace in linux["namespaces"]].count("user") == 1
        ids = mapped_ids(docker)
        assert ids is not None
        assert (ids.uid, ids.gid, ids.size) == (900000, 900000, 70000)

    def test_an_existing_user_namespace_is_the_specs_own(self, docker: dict[str, Any]) -> None:
        assert not has_own_user_namespace(docker)
        docker["linux"]["namespaces"].append({"type": "user", "path": "/proc/77/ns/user"})

        assert has_own_user_namespace(docker)
        assert mapped_ids(docker) is None

    @pytest.mark.parametrize("destination", ["/var/lib/docker", "/var/lib/docker/", "/var/lib"])
    def test_a_users_volume_serves_an_inner_engine(
        self, docker: dict[str, Any], destination: str
    ) -> None:
        assert wants_docker_data(docker)
        docker["mounts"].append({"destination": destination, "type": "bind", "source": "/x"})

        assert not wants_docker_data(docker)

    def test_binds_are_known_by_type_or_option(self) -> None:
        assert is_bind({"type": "bind"})
        assert is_bind({"options": ["rbind", "ro"]})
        assert not is_bind({"type": "tmpfs", "options": ["ro"]})


class TestProcess:
    def test_root_holds_every_capability_the_kernel_knows(self, docker: dict[str, Any]) -> None:
        sets = edited(docker)["process"]["capabilities"]

        assert len(sets["bounding"]) == 41
        assert sets["bounding"] == sets["effective"] == sets["permitted"]
        assert [] == sets["inheritable"] == sets["ambient"]

    def test_other_users_can_only_gain_them(self, docker: dict[str, Any]) -> None:
        process = docker["process"]
        process["user"] = {"uid": 1000, "gid": 1000}
        make_system_process(process, LAST_CAPABILITY)

        assert len(process["capabilities"]["bounding"]) == 41
        assert [] == process["capabilities"]["effective"] == process["capabilities"]["permitted"]

    def test_an_older_kernel_is_not_asked_for_newer_ones(self) -> None:
        assert "CAP_BPF" not in capabilities.granted(capabilities.ENGINE_DEFAULTS, 37)

    def test_what_the_user_dropped_stays_dropped(self) -> None:
        asked = capabilities.ENGINE_DEFAULTS - {"CAP_SETUID"}

        assert set(capabilities.ALL) - {"CAP_SETUID"} == set(capabilities.granted(asked, 40))

    def test_without_any_of_the_defaults_nothing_is_added(self) -> None:
        assert capabilities.granted([], 40) == []
        assert capabilities.granted(["CAP_NET_RAW"], 40) == ["CAP_NET_RAW"]

    def test_the_engines_apparmor_profile_goes_and_the_users_stays(self) -> None:
        engine: dict[str, Any] = {"apparmorProfile": "docker-default"}
        user: dict[str, Any] = {"apparmorProfile": "my-profile"}
        make_system_process(engine, 40)
        make_system_process(user, 40)

        assert "apparmorProfile" not in engine
        assert user["apparmorProfile"] == "my-profile"


class TestSeccomp:
    def test_system_software_may_mount_and_every_name_stands_once(
        self, docker: dict[str, Any]
    ) -> None:
        actions: dict[str, set[str]] = {}
        for rule in edited(docker)["linux"]["seccomp"]["syscalls"]:
            for name in rule["names"]:
                actions.setdefault(name, set()).add(rule["action"])

        assert {"SCMP_ACT_ALLOW"} == actions["mount"] == actions["unshare"] == actions["clone3"]

    def test_what_acts_on_the_whole_machine_stays_forbidden(self, docker: dict[str, Any]) -> None:
        allowed = {
            name
            for rule in edited(docker)["linux"]["seccomp"]["syscalls"]
            for name in rule["names"]
        }

        assert not allowed & {"kexec_load", "init_module", "finit_module", "swapon", "settimeofday"}
        assert not allowed & {"bpf", "perf_event_open", "userfaultfd", "iopl"}

    def test_other_rules_keep_their_conditions(self, docker: dict[str, Any]) -> None:
        before = [r for r in docker["linux"]["seccomp"]["syscalls"] if r.get("args")]
        after = [r for r in edited(docker)["linux"]["seccomp"]["syscalls"] if r.get("args")]

        assert [r for r in before if "clone" not in r["names"]] == after

    def test_no_filter_stays_no_filter(self, docker: dict[str, Any]) -> None:
        del docker["linux"]["seccomp"]

        assert "seccomp" not in edited(docker)["linux"]


class TestRefusals:
    HOST = (4, 1)

    def check(self, spec: dict[str, Any], owner: tuple[int, int] = (4, 99)) -> None:
        def key(path: str) -> tuple[int, int]:
            return self.HOST if path.startswith(("/proc/self/ns/", "/host")) else (4, 2)

        refusals.check(spec, key, lambda _path: owner)

    def test_an_ordinary_container_passes(self, docker: dict[str, Any]) -> None:
        self.check(docker)

    def test_privileged(self) -> None:
        with pytest.raises(Refused, match="--privileged"):
            self.check(recorded("docker-20.10-privileged"))

    @pytest.mark.parametrize("kind", ["pid", "network", "ipc", "uts", "mount"])
    def test_a_namespace_of_the_hosts(self, docker: dict[str, Any], kind: str) -> None:
        linux = docker["linux"]
        linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != kind]
        with pytest.raises(Refused, match="host"):
            self.check(docker)
        linux["namespaces"].append({"type": kind, "path": "/host/ns"})
        with pytest.raises(Refused, match="host"):
            self.check(docker)

    def test_the_hosts_user_namespace(self, docker: dict[str, Any]) -> None:
        docker["linux"]["namespaces"].append({"type": "user", "path": "/host/user"})
        with pytest.raises(Refused, match="user namespace"):
            self.check(docker)

    @pytest.mark.parametrize(
        "rules",
        [
            [{"allow": True, "access": "rwm"}],
            [{"allow": True, "type": "", "access": "rw"}],
            [{"allow": True, "type": "a", "major": -1, "minor": -1, "access": "rwm"}],
            [{"allow": True, "type": "b", "access": "r"}],
        ],
    )
    def test_all_devices_however_spelled(
        self, docker: dict[str, Any], rules: list[dict[str, Any]]
    ) -> None:
        docker["linux"]["resources"]["devices"] = rules
        with pytest.raises(Refused, match="all devices"):
            self.check(docker)

    def test_leave_to_make_nodes_is_not_leave_to_use_them(self, docker: dict[str, Any]) -> None:
        docker["linux"]["resources"]["devices"] = [{"allow": True, "type": "c", "access": "m"}]
        self.check(docker)

    def test_a_mapping_without_a_host_id(self, docker: dict[str, Any]) -> None:
        docker["linux"]["uidMappings"] = [{"containerID": 0, "size": 10}]
        with pytest.raises(Refused, match="host's root"):
            self.check(docker)

    @pytest.mark.parametrize("key", ["uidMappings", "gidMappings"])
    def test_mappings_onto_the_hosts_root(self, docker: dict[str, Any], key: str) -> None:
        docker["linux"][key] = [
            {"containerID": 0, "hostID": 100000, "size": 10},
            {"containerID": 10, "hostID": 0, "size": 1},
        ]
        with pytest.raises(Refused, match="host's root"):
            self.check(docker)

    def test_a_network_that_the_hosts_root_owns(self, docker: dict[str, Any]) -> None:
        (network,) = [n for n in docker["linux"]["namespaces"] if n["type"] == "network"]
        network["path"] = "/run/netns/x"
        self.check(docker)
        with pytest.raises(Refused, match="network namespace"):
            self.check(docker, owner=self.HOST)


def test_busy_directories_parents_first() -> None:
    from sysfsd.runtime.spec import busy_directories

    spec = {
        "process": {"cwd": "/srv/app"},
        "mounts": [
            {"destination": "/proc"},
            {"destination": "/etc/hosts"},
            {"destination": "/var/lib/docker/"},
            {"destination": "relative"},
        ],
    }

    assert busy_directories(spec) == ["/etc", "/srv", "/srv/app", "/var", "/var/lib"]
    assert busy_directories({}) == []
