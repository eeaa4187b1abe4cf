"""Finding and reading cgroups, on recorded trees of v1 and v2 and on small made-up ones."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sysfsd.kernel.cgroups import (
    Cgroup,
    CgroupPaths,
    CgroupTree,
    Limit,
    parse_limit,
    read_cgroup_paths,
    smallest_limit,
)

FIXTURES = Path(__file__).parent / "fixtures"
V1, V2 = str(FIXTURES / "cgroup-v1"), str(FIXTURES / "cgroup-v2")
V1_PID = int((FIXTURES / "cgroup-v1/pid").read_text())


def tree(base: str) -> CgroupTree:
    return CgroupTree.from_mountinfo(Path(f"{base}/proc/self/mountinfo").read_text(), base)


def test_paths_of_a_v1_process() -> None:
    paths = read_cgroup_paths(V1_PID, f"{V1}/proc")

    assert paths.get("memory") == "/engine/web"
    assert paths.get("") == "/"
    assert paths.get("hugetlb") is None
    assert paths.as_dict()["name=systemd"] == "/"


def test_co_mounted_controllers_and_colons_in_names() -> None:
    paths = CgroupPaths.parse("4:cpu,cpuacct:/a:b\n0::/init.scope\nnonsense\n")

    assert paths.entries == (("cpu", "/a:b"), ("cpuacct", "/a:b"), ("", "/init.scope"))


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/lxc/c/init.scope", "/lxc/c"),
        ("/init.scope", "/"),
        ("/init.scope/x", "/init.scope/x"),
        ("/system.slice/docker-abc.scope/init", "/system.slice/docker-abc.scope"),
        ("/docker/abc/init/x", "/docker/abc/init/x"),
        ("/init", "/init"),
        ("/", "/"),
    ],
)
def test_the_container_is_above_its_inits_leaf(path: str, root: str) -> None:
    assert CgroupPaths((("", path),)).without_init_scope() == CgroupPaths((("", root),))


def test_v1_controllers() -> None:
    paths = read_cgroup_paths(V1_PID, f"{V1}/proc")
    memory = tree(V1).controller(paths, "memory")

    assert memory == Cgroup(1, f"{V1}/sys/fs/cgroup/memory", "/engine/web")
    assert tree(V1).controller(CgroupPaths(), "memory") is None


def test_v2_controller_counts_in_the_nearest_cgroup_that_has_it() -> None:
    paths = read_cgroup_paths(4242, f"{V2}/proc")
    found = {name: tree(V2).controller(paths, name) for name in ("memory", "cpuset", "freezer")}

    assert found["memory"] == Cgroup(2, f"{V2}/sys/fs/cgroup", "/system.slice/docker-abc.scope")
    assert found["cpuset"] == Cgroup(2, f"{V2}/sys/fs/cgroup", "/")
    assert found["freezer"] is None


def test_hybrid_takes_each_controller_where_it_is_bound(tmp_path: Path) -> None:
    (tmp_path / "unified/c").mkdir(parents=True)
    (tmp_path / "unified/cgroup.controllers").write_text("cpu pids\n")
    (tmp_path / "unified/c/cgroup.controllers").write_text("pids\n")
    mounts = (
        "30 1 0:1 / /memory rw - cgroup cgroup rw,memory\n"
        "31 1 0:2 / /cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpuacct\n"
        "32 1 0:3 / /unified rw - cgroup2 cgroup2 rw\n"
    )
    paths = CgroupPaths.parse("5:memory:/c\n2:cpuacct:/c\n0::/c\n")
    found = {
        name: CgroupTree.from_mountinfo(mounts, str(tmp_path)).controller(paths, name)
        for name in ("memory", "cpuacct", "pids", "cpu")
    }

    assert found["memory"] == Cgroup(1, f"{tmp_path}/memory", "/c")
    assert found["cpuacct"] == Cgroup(1, f"{tmp_path}/cpu,cpuacct", "/c")
    assert found["pids"] == Cgroup(2, f"{tmp_path}/unified", "/c")
    assert found["cpu"] == Cgroup(2, f"{tmp_path}/unified", "/")


def test_a_mount_of_a_part_of_the_tree() -> None:
    part = CgroupTree.from_mountinfo("30 1 0:1 /a/b /mnt\\040x rw - cgroup cgroup rw,memory\n")

    def path_of(path: str) -> Cgroup | None:
        return part.controller(CgroupPaths((("memory", path),)), "memory")

    assert path_of("/a/b/c") == Cgroup(1, "/mnt x", "/c")
    assert path_of("/a/b") == Cgroup(1, "/mnt x", "/")
    assert path_of("/a/bc") is None


@pytest.mark.parametrize("path", ["/../x", "/a/../../x", "/a/./b", "relative"])
def test_paths_that_lead_out_are_refused(path: str) -> None:
    with pytest.raises(OSError) as caught:
        tree(V1).controller(CgroupPaths((("memory", path),)), "memory")
    assert caught.value.errno == errno.EXDEV


def test_symlinks_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/memory.max").write_text("1\n")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/memory.high").symlink_to("memory.max")

    with pytest.raises(OSError) as caught, Cgroup(2, str(tmp_path), "/link").levels():
        pass
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    with pytest.raises(OSError) as caught:
        Cgroup(2, str(tmp_path), "/real").read("memory.high")
    assert caught.value.errno == errno.ELOOP


def test_a_cgroup_that_is_gone_is_an_error_and_a_missing_file_is_not() -> None:
    with pytest.raises(FileNotFoundError):
        Cgroup(1, f"{V1}/sys/fs/cgroup/memory", "/engine/gone").read("memory.stat")
    assert Cgroup(1, f"{V1}/sys/fs/cgroup/memory", "/engine").read("memory.none") is None


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("max\n", None),
        ("-1\n", None),
        ("9223372036854771712\n", None),
        ("9223372036854710272\n", None),  # 64 KiB pages
        (None, None),
        ("0\n", 0),
        ("536870912\n", 536870912),
    ],
)
def test_limits(text: str | None, limit: int | None) -> None:
    assert parse_limit(text) == limit


def test_the_ancestors_smaller_limit_wins() -> None:
    with Cgroup(1, f"{V1}/sys/fs/cgroup/memory", "/engine/web").levels() as levels:
        assert [level.path for level in levels] == ["/engine/web", "/engine", "/"]
        name = "memory.limit_in_bytes"
        assert smallest_limit(levels, name) == Limit(512 << 20, name, "/engine")
        assert smallest_limit(levels[2:], name) is None


def test_the_subtree_has_any_depth_and_is_bounded() -> None:
    cgroup = Cgroup(2, f"{V2}/sys/fs/cgroup", "/system.slice/docker-abc.scope")
    paths = [level.path for level in cgroup.subtree(100)]

    assert paths[0] == cgroup.path
    assert f"{cgroup.path}/worker/deep/deeper/deepest" in paths
    assert len(list(cgroup.subtree(2))) == 2


def test_membership_is_the_deepest_cgroup() -> None:
    paths = CgroupPaths.parse("3:memory:/\n2:cpu:/engine/web\n1:name=systemd:/a\n0::/\n")
    best = tree(V1).membership(paths)

    assert best is not None
    assert best.path == "/engine/web"


def test_no_descriptor_is_left_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for level in Cgroup(2, f"{V2}/sys/fs/cgroup", "/system.slice").subtree(100):
        level.read("cgroup.threads")
    with pytest.raises(FileNotFoundError):
        Cgroup(1, f"{V1}/sys/fs/cgroup/memory", "/engine/gone/x").read("x")
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\r", "\x1c", "\x85", "\u2028"])
def test_a_container_names_its_cgroups(odd: str) -> None:
    """Nothing but a newline ends a line, and that the kernel refuses in a name."""
    text = f"8:pids:/docker/own/x{odd}4:memory:/docker/victim\n4:memory:/docker/own\n"
    paths = CgroupPaths.parse(text)

    assert paths.get("memory") == "/docker/own"
    assert len(paths.entries) == 2
