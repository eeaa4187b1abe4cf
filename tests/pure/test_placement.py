"""Which cgroup is the container's: tables of where engines put containers, v1 and v2."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.facts.placement import (
    Placement,
    container_ancestor,
    is_within,
    outermost,
    place,
    placement_of,
)
from sysfsd.kernel.cgroup_namespaces import roots
from sysfsd.kernel.cgroups import CgroupPaths

ID = "2892f5bb456e9429ca4a2e42176e0abe599930a56a3b775d176d12752995e6df"
INNER = "d4" * 32
POD = "pod0b9dd1e5_44f4_4b0e_a0a4_6a25c1c6a1f2"


def unified(path: str) -> CgroupPaths:
    return CgroupPaths((("", path),))


@pytest.mark.parametrize(
    ("path", "container"),
    [
        # Docker, cgroupfs and systemd, with and without leaves inside
        (f"/docker/{ID}", f"/docker/{ID}"),
        (f"/docker/{ID}/init", f"/docker/{ID}"),
        (f"/ci/jobs/{ID}/system.slice/ssh.service", f"/ci/jobs/{ID}"),
        (f"/system.slice/docker-{ID}.scope", f"/system.slice/docker-{ID}.scope"),
        (f"/system.slice/docker-{ID}.scope/init.scope", f"/system.slice/docker-{ID}.scope"),
        # Docker in Docker
        (f"/docker/{ID}/docker/{INNER}/x", f"/docker/{ID}/docker/{INNER}"),
        # Podman
        (f"/machine.slice/libpod-{ID}.scope", f"/machine.slice/libpod-{ID}.scope"),
        (f"/machine.slice/libpod-{ID}.scope/container", f"/machine.slice/libpod-{ID}.scope"),
        (f"/libpod_parent/{INNER}/libpod-{ID}", f"/libpod_parent/{INNER}/libpod-{ID}"),
        (
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope",
        ),
        # Kubernetes
        (f"/kubepods/burstable/{POD}/{ID}", f"/kubepods/burstable/{POD}/{ID}"),
        (
            f"/kubepods.slice/kubepods-{POD}.slice/cri-containerd-{ID}.scope/init",
            f"/kubepods.slice/kubepods-{POD}.slice/cri-containerd-{ID}.scope",
        ),
        (
            f"/kubepods.slice/kubepods-{POD}.slice/crio-{ID}.scope",
            f"/kubepods.slice/kubepods-{POD}.slice/crio-{ID}.scope",
        ),
        (f"/kubepods/{POD}/crio-{ID}", f"/kubepods/{POD}/crio-{ID}"),
        (
            f"/system.slice/containerd.service/kubepods-{POD}.slice:cri-containerd:{ID}",
            f"/system.slice/containerd.service/kubepods-{POD}.slice:cri-containerd:{ID}",
        ),
        # LXC, LXD, Incus; systemd-nspawn; libvirt
        ("/lxc.payload.web/init.scope", "/lxc.payload.web"),
        ("/lxc.payload.web/lxc.payload.in/x", "/lxc.payload.web/lxc.payload.in"),
        ("/lxc.payload/web/x", "/lxc.payload/web"),
        ("/lxc/web/init.scope", "/lxc/web"),
        ("/machine.slice/machine-web.scope/payload", "/machine.slice/machine-web.scope"),
        (
            "/machine.slice/systemd-nspawn@web.service/payload/x.service",
            "/machine.slice/systemd-nspawn@web.service",
        ),
        (
            r"/machine.slice/machine-lxc\x2d12\x2dweb.scope",
            r"/machine.slice/machine-lxc\x2d12\x2dweb.scope",
        ),
        # No container's
        ("/", None),
        ("/init.scope", None),
        ("/user.slice/user-1000.slice/session-3.scope", None),
        ("/system.slice/docker.service", None),
        ("/lxc", None),
        ("/lxc.monitor.web", None),
        (f"/machine.slice/libpod-conmon-{ID}.scope", None),
        (f"/kubepods/{POD}/crio-conmon-{ID}", None),
        (f"/docker/{ID}0", None),
        (f"/docker/{ID[:-1]}", None),
        (f"/docker/{ID.upper()}", None),
        (f"/docker/x{ID}", None),
    ],
)
def test_the_names_that_engines_give(path: str, container: str | None) -> None:
    assert container_ancestor(path) == container
    # Without a cgroup namespace of its own that is all there is to go by.
    found = place(unified(path), None)
    assert found.bounded == (container is not None)
    assert container is None or found.cgroup == unified(container)


@pytest.mark.parametrize(
    ("path", "container", "found"),
    [
        ("/web", "web", "/web"),
        ("/batch/web/init", "web", "/batch/web"),
        ("/system.slice/runc-web.scope", "web", "/system.slice/runc-web.scope"),
        ("/x/conmon-web", "conmon-web", "/x/conmon-web"),
        ("/webs/x", "web", None),
        ("/cobweb", "web", None),
        ("/web.slice/x", "web", None),
    ],
)
def test_a_known_id_is_a_name_as_well(path: str, container: str, found: str | None) -> None:
    assert container_ancestor(path, container=container) == found


@pytest.mark.parametrize(
    ("path", "root", "found"),
    [
        # The namespace's root, whatever it is called, and whichever leaf the process is in.
        ("/a/b", "/a/b", "/a/b"),
        ("/a/b/init.scope", "/a/b", "/a/b"),
        ("/a/b/system.slice/x.service", "/a/b", "/a/b"),
        (f"/docker/{ID}/leaf", f"/docker/{ID}", f"/docker/{ID}"),
        # An engine inside, whose containers share the namespace.
        (f"/a/b/docker/{INNER}/x", "/a/b", f"/a/b/docker/{INNER}"),
        # A process that made itself a namespace further in sees less, and only that.
        (f"/docker/{ID}/leaf/x", f"/docker/{ID}/leaf", f"/docker/{ID}/leaf"),
        # The host's root bounds nothing.
        ("/a/b", "/", "/a/b"),
        ("/a/init.scope", "/", "/a"),
        # Outside of its namespace: its own names decide.
        (f"/docker/{ID}", f"/docker/{ID}/leaf", f"/docker/{ID}"),
        ("/a", "/a/b", "/a"),
        ("/ab/c", "/a", "/ab/c"),
    ],
)
def test_the_root_of_the_cgroup_namespace(path: str, root: str, found: str) -> None:
    assert place(unified(path), unified(root)).cgroup == unified(found)


def test_the_roots_of_v1_are_one_for_each_hierarchy() -> None:
    paths = CgroupPaths.parse(
        f"9:name=systemd:/docker/{ID}/init.scope\n4:memory:/docker/{ID}/x\n3:cpuset:/\n"
        f"2:cpu,cpuacct:/docker/{ID}\n0::/system.slice/containerd.service\n"
    )
    shared = place(paths, None)
    assert shared.bounded
    assert shared.cgroup.as_dict() == {
        "name=systemd": f"/docker/{ID}",
        "memory": f"/docker/{ID}",
        "cpuset": "/",
        "cpu": f"/docker/{ID}",
        "cpuacct": f"/docker/{ID}",
        # Not this container's alone
        "": "/",
    }
    service = CgroupPaths((*shared.cgroup.entries[:-1], ("", "/system.slice/containerd.service")))
    for root in (shared.cgroup, service):
        assert place(paths, root) == shared


def test_what_is_no_containers_is_its_own_save_for_inits_leaf() -> None:
    assert place(unified("/a/init.scope"), None).cgroup == unified("/a")
    assert place(unified("/user.slice/x.scope"), None).cgroup == unified("/user.slice/x.scope")


NAMES = st.lists(st.sampled_from(["a", "b", "init", "init.scope", ID, INNER]), max_size=6)


@given(top=NAMES, below=NAMES)
def test_a_container_cannot_make_itself_look_wider(top: list[str], below: list[str]) -> None:
    root = "/" + "/".join(top)
    path = "/" + "/".join(top + below)
    (found,) = place(unified(path), unified(root)).cgroup.entries
    assert is_within(path, found[1])
    assert root == "/" or is_within(found[1], root)


def climb(path: list[str], root: list[str]) -> str:
    """A path as the kernel writes it for a reader whose namespace is rooted elsewhere."""
    common = sum(
        1
        for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(path, root, strict=False))
    )
    return "/" + "/".join([".."] * (len(root) - common) + path[common:])


@given(own=NAMES, root=NAMES, path=NAMES)
def test_roots_of_namespaces(own: list[str], root: list[str], path: list[str]) -> None:
    def paths(names: list[str]) -> CgroupPaths:
        return unified("/" + "/".join(names))

    found = roots(paths(own), unified(climb(own, root)), paths(path), unified(climb(path, root)))
    if path[: len(root)] == root:
        assert found == paths(root)
    else:  # it sits outside
        assert found is None


@given(own=NAMES, root=NAMES, first=NAMES, second=NAMES)
def test_a_process_that_moves_while_it_is_looked_at(
    own: list[str], root: list[str], first: list[str], second: list[str]
) -> None:
    """What it can do is move between two reads within its namespace: nothing changes by that."""
    found = roots(
        unified("/" + "/".join(own)),
        unified(climb(own, root)),
        unified("/" + "/".join(root + first)),
        unified(climb(root + second, root)),
    )
    assert found == unified("/" + "/".join(root))


def test_we_who_are_outside_of_our_own_namespace_know_nothing() -> None:
    outside = unified("/../x")
    assert roots(outside, unified("/../../y/x"), unified("/a/b"), unified("/")) is None
    assert roots(unified("/x"), unified("/../y"), unified("/a/b"), unified("/")) is None
    assert roots(CgroupPaths(), CgroupPaths(), unified("/a"), unified("/")) is None


def test_our_own_placement_contains_us() -> None:
    place = placement_of(os.getpid())
    from sysfsd.kernel.cgroups import read_cgroup_paths

    for name, path in read_cgroup_paths(os.getpid()).entries:
        assert is_within(path, place.cgroup.get(name) or "")
    with pytest.raises(OSError):
        placement_of((1 << 22) + 1)


@pytest.mark.parametrize(
    ("path", "share"),
    [
        (f"/docker/{ID}", f"/docker/{ID}"),
        # What it makes itself, and however it calls that, is of its share
        (f"/docker/{ID}/docker/{INNER}/deep", f"/docker/{ID}"),
        (f"/system.slice/docker-{ID}.scope/init", f"/system.slice/docker-{ID}.scope"),
        (f"/kubepods/{POD}/{ID}/{INNER}", f"/kubepods/{POD}/{ID}"),
        ("/lxc.payload.web/system.slice/x", "/lxc.payload.web"),
        ("/user.slice/user-1000.slice/session-1.scope", "/user.slice/user-1000.slice"),
        ("/system.slice/ssh.service", "/system.slice/ssh.service"),
        ("/", "/"),
    ],
)
def test_whose_share_a_process_takes(path: str, share: str) -> None:
    assert outermost(unified(path)) == unified(share)


def test_on_a_hybrid_host_a_container_is_not_its_engines_service() -> None:
    service = "/user.slice/user-1000.slice/session-1.scope"
    paths = CgroupPaths((("memory", f"/docker/{ID}"), ("cpuset", "/"), ("", service)))
    container = CgroupPaths((("memory", f"/docker/{ID}"), ("cpuset", "/"), ("", "/")))
    assert place(paths, None) == Placement(container, bounded=True)
    both = CgroupPaths((*container.entries[:-1], ("", f"/docker/{ID}")))
    assert place(both, None).cgroup == both
    # Who is in no container stays where it is.
    alone = CgroupPaths((("memory", "/"), ("cpuset", "/"), ("", service)))
    assert place(alone, None) == Placement(alone, bounded=False)
