"""Which registered container a process belongs to."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sysfsd.containers.belonging import RecordsByCgroup, innermost
from sysfsd.containers.record import ContainerRecord
from sysfsd.facts.placement import Placement
from sysfsd.kernel.cgroups import CgroupPaths


def record(name: str, cgroup: str, userns: int | None = None) -> ContainerRecord:
    return ContainerRecord(
        id=name,
        pid=1,
        userns=None if userns is None else (4, userns),
        uid_base=0,
        gid_base=0,
        started=1.0,
        cgroup=CgroupPaths((("memory", cgroup), ("cpuset", "/"))),
        serial=1,
        registered_ns=1,
    )


def at(path: str, *, bounded: bool = False, cpuset: str = "/") -> Placement:
    return Placement(CgroupPaths((("memory", path), ("cpuset", cpuset))), bounded)


SYSTEM = record("system", "/docker/s", 7)
PLAIN = record("plain", "/docker/p")
ALL = [SYSTEM, PLAIN]


def test_the_user_namespace_decides_wherever_the_process_sits() -> None:
    assert innermost([[], [SYSTEM], []], ALL, at("/user.slice")) is SYSTEM
    assert innermost([[SYSTEM]], ALL, at("/docker/p")) is SYSTEM
    outer = record("outer", "/docker/o", 8)
    assert innermost([[SYSTEM], [outer]], [outer, *ALL], at("/x")) is SYSTEM


def test_containers_that_share_the_hosts_are_known_by_their_cgroups() -> None:
    for path in ("/docker/p", "/docker/p/a/b"):
        assert innermost([[]], ALL, at(path)) is PLAIN
    for path in ("/docker/px", "/docker", "/", "/docker/q"):
        assert innermost([[]], ALL, at(path)) is None


def test_a_container_at_the_root_is_nobodys_surroundings() -> None:
    assert innermost([[]], [record("host", "/")], at("/a")) is None


def test_containers_of_one_user_namespace_are_told_apart() -> None:
    one, two = record("one", "/pod/one", 7), record("two", "/pod/two", 7)
    assert innermost([[one, two]], [one, two], at("/pod/one/x")) is one
    assert innermost([[one, two]], [one, two], at("/pod/two")) is two
    assert innermost([[one, two]], [one, two], at("/elsewhere")) is two


def test_the_innermost_wins() -> None:
    within = record("within", "/docker/s/docker/i", 7)
    shares_the_hosts = record("odd", "/docker/s/x")
    for inner in (within, shares_the_hosts):
        records = [inner, *ALL]
        sharing = [each for each in records if each.userns == SYSTEM.userns]
        path = inner.cgroup.get("memory") or ""
        assert innermost([sharing], records, at(path)) is inner
        assert innermost([sharing], records, at("/docker/s/init")) is SYSTEM


def test_an_inner_container_that_is_not_registered_is_its_own() -> None:
    inner = at("/docker/s/docker/i", bounded=True)
    assert innermost([[SYSTEM]], ALL, inner) is None
    # A leaf that nobody made a container of is not one.
    assert innermost([[SYSTEM]], ALL, at("/docker/s/init")) is SYSTEM
    # Nor is a hierarchy that says nothing about the container.
    assert innermost([[SYSTEM]], ALL, at("/docker/s", bounded=True, cpuset="/x")) is SYSTEM


def test_paths_contain_paths() -> None:
    own = CgroupPaths((("memory", "/a"), ("cpu", "/b"), ("", "/")))
    for inside in ("4:memory:/a\n3:cpu:/b\n", "4:memory:/a/x\n3:cpu:/b\n0::/y\n"):
        assert own.contains(CgroupPaths.parse(inside))
    for outside in ("4:memory:/a\n", "4:memory:/a\n3:cpu:/\n", "4:memory:/ab\n3:cpu:/b\n", ""):
        assert not own.contains(CgroupPaths.parse(outside))
    assert not CgroupPaths.parse("0::/\n").contains(CgroupPaths.parse("0::/a\n"))
    assert (own.depth, CgroupPaths().depth, CgroupPaths.parse("0::/a/b\n").depth) == (1, 0, 2)


_PATHS = st.sampled_from(["/", "/a", "/a/b", "/a/b/c", "/ab", "/a/bc", "/x"])
_CGROUPS = st.tuples(_PATHS, _PATHS).map(
    lambda paths: CgroupPaths((("memory", paths[0]), ("cpuset", paths[1])))
)


@given(st.lists(_CGROUPS, max_size=8), st.sets(st.integers(0, 7)), _CGROUPS)
def test_by_cgroup_all_are_found_that_a_walk_over_all_finds(
    cgroups: list[CgroupPaths], gone: set[int], asked: CgroupPaths
) -> None:
    records = [replace(SYSTEM, cgroup=each, serial=at) for at, each in enumerate(cgroups)]
    index = RecordsByCgroup()
    for each in records:
        index.put(each)
        index.put(replace(each, id="renamed"))
    for serial in gone & set(range(len(records))):
        index.remove(records[serial])

    assert index.containing(asked) == [
        replace(each, id="renamed")
        for each in records
        if each.serial not in gone and each.cgroup.contains(asked)
    ]
