"""Inode numbers, snapshots and what they promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.errors import NoSuchView
from sysfsd.filesystem import tree as trees
from sysfsd.filesystem.snapshots import (
    MAX_PER_CONTAINER,
    UNIT_BYTES,
    Opened,
    PinnedSnapshots,
    Recent,
)
from sysfsd.filesystem.tree import ROOT_NODE, Node, Tree, inode_of, parts_of
from sysfsd.views import VIEWS, Family, Links, View, attach_points, known_by

if TYPE_CHECKING:
    from sysfsd.filesystem.tree import Members


def view(path: str) -> View:
    return View(path, lambda _facts: [], lambda _sources: "")


def family(path: str) -> Family:
    return Family(path, "online", lambda _facts, _member: [], lambda _sources: "")


def nobody(_listed: str) -> tuple[int, ...]:
    return ()


names = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=4).map("/".join),
    max_size=12,
    unique=True,
).map(
    # A path that is a file cannot be a directory as well.
    lambda paths: [p for p in paths if not any(q.startswith(p + "/") for q in paths)]
)


def numbers(tree: Tree, node: int = ROOT_NODE, members: Members = nobody) -> dict[str, int]:
    """All paths and their node numbers, found by walking as the kernel does."""
    found = {}
    here = tree.node(node)
    assert here is not None
    for name, number in tree.children(here, members):
        assert tree.child(here, name, members) == number
        child = tree.node(number)
        assert child is not None
        assert child.path.rpartition("/")[2] == name.decode()
        assert tree.exists(child, members)
        found[child.path] = number
        found |= numbers(tree, number, members)
    return found


@given(names)
def test_every_view_is_found_by_walking_and_by_path(paths: list[str]) -> None:
    tree = Tree([view(path) for path in paths])
    found = numbers(tree)
    assert set(paths) <= set(found)
    assert len(set(found.values())) == len(found)
    for path in paths:
        assert tree.view(f"/{path}", nobody).path == path
        assert 0 < found[path] < 1 << trees.NODE_BITS


@given(names, names, names)
def test_another_version_changes_no_number(
    first: list[str], second: list[str], third: list[str]
) -> None:
    """Whatever comes, goes, comes back or changes its place: the kernel knows files by numbers."""
    known: dict[str, int] = {}
    seen: dict[str, int] = {}
    for paths in (first, second, third):
        tree = Tree([view(path) for path in paths], numbers=known)
        known = dict(tree.numbers)
        for path, number in numbers(tree).items():
            kind = "" if path in paths else "/"
            assert seen.setdefault(path + kind, number) == number
    assert len(set(seen.values())) == len(seen)


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**trees.NODE_BITS - 1))
def test_inodes_come_apart_again(serial: int, node: int) -> None:
    inode = inode_of(serial, node)
    assert parts_of(inode) == (serial, node)
    assert parts_of(trees.EXACT | inode) == (serial, node)
    assert inode < 1 << 64


FAMILIES: list[View | Family] = [
    view("online"),
    family("set/cpu{}/a"),
    view("set/fixed"),
    family("set/cpu{}/deep/b"),
]


@given(st.sets(st.integers(0, 5000), max_size=8), st.sets(st.integers(0, 5000), max_size=8))
def test_members_come_and_go(before: set[int], after: set[int]) -> None:
    tree = Tree(FAMILIES)
    first = numbers(tree, members=lambda _: sorted(before))
    second = numbers(tree, members=lambda _: sorted(after))
    for members, found in ((before, first), (after, second)):
        expected = {"online", "set", "set/fixed"}
        for each in members:
            expected |= {f"set/cpu{each}{rest}" for rest in ("", "/a", "/deep", "/deep/b")}
        assert set(found) == expected
        assert len(set(found.values())) == len(found)
    for path in first.keys() & second.keys():
        assert first[path] == second[path]
    gone = [tree.node(first[path]) for path in first.keys() - second.keys()]
    assert not any(node is None or tree.exists(node, lambda _: sorted(after)) for node in gone)


@pytest.mark.parametrize(
    "name", [b"cpu", b"cpu{}", b"cpu01", b"cpu-1", b"cpu+1", b"cpu1 ", b"cpu\xb2", b"cpu9999999999"]
)
def test_odd_names_of_members_are_nobodys(name: bytes) -> None:
    tree = Tree(FAMILIES)
    parent = directory(tree, "set")
    with pytest.raises(NoSuchView):
        tree.child(parent, name, lambda _: range(100))


def directory(tree: Tree, path: str) -> Node:
    node = tree.node(numbers(tree)[path])
    assert node is not None
    return node


def test_a_directory_says_whose_members_it_has() -> None:
    tree = Tree(FAMILIES)
    assert directory(tree, "set").lists == ("online",)
    member = tree.node(tree.child(directory(tree, "set"), b"cpu7", lambda _: (7,)))
    assert member is not None
    assert (member.path, member.listed, member.lists) == ("set/cpu7", "online", ())
    assert tree.node(member.number & 0xFFF) is None  # nobody's directory


def test_links_are_those_that_each_members_own_list_names() -> None:
    links = [Links("set/cpu{}", "peer", "set/cpu{}/a", "../cpu{}")]
    tree = Tree(FAMILIES, links=links)
    listed = {"online": (0, 4), "set/cpu0/a": (4,), "set/cpu4/a": ()}
    members = listed.__getitem__
    zero, four = (
        tree.node(tree.child(directory(tree, "set"), name, members)) for name in (b"cpu0", b"cpu4")
    )
    assert zero is not None
    assert four is not None
    assert zero.lists == ("set/cpu0/a",)
    assert [name for name, _ in tree.children(zero, members)] == [b"a", b"deep", b"peer4"]
    assert [name for name, _ in tree.children(four, members)] == [b"a", b"deep"]
    link = tree.node(tree.child(zero, b"peer4", members))
    assert link is not None
    assert (link.link, link.view, link.listed) == ("../cpu4", None, None)
    for parent, name in ((zero, b"peer0"), (four, b"peer4"), (zero, b"peer04")):
        with pytest.raises(NoSuchView):
            tree.child(parent, name, members)


def test_what_the_host_does_not_have_is_not_there() -> None:
    tree = Tree(FAMILIES, lambda view: view.path != "set/fixed")
    assert set(numbers(tree)) == {"online", "set"}
    assert numbers(tree)["online"] == numbers(Tree(FAMILIES, numbers=tree.numbers))["online"]


def test_the_real_table() -> None:
    tree = Tree(VIEWS)
    root = tree.node(ROOT_NODE)
    assert root is not None
    assert [name for name, _ in tree.children(root, nobody)] == [b"proc", b"sys"]
    with pytest.raises(NoSuchView, match="proc/meminfo"):
        tree.view("/proc/cmdline", nobody)
    with pytest.raises(NoSuchView, match=r"is no file; name one in it: .*\bonline\b"):
        tree.view("sys/devices/system/cpu", nobody)
    for each in VIEWS:
        if isinstance(each, Family):
            assert each.members in {view.path for view in VIEWS}


def test_what_is_covered_in_a_container() -> None:
    points = attach_points(VIEWS)
    assert points[:6] == [
        f"proc/{name}" for name in ("uptime", "meminfo", "cpuinfo", "stat", "loadavg", "swaps")
    ]
    assert {point for point in points if point.startswith("sys/")} == {
        "sys/devices/system/cpu",
        "sys/devices/system/node",
        "sys/devices/system/memory",
    }


def test_the_first_member_tells_whether_a_host_has_a_family() -> None:
    paths = {known_by(view, 3, 1) for view in VIEWS}
    assert "sys/devices/system/cpu/cpu3/topology/core_id" in paths
    assert "sys/devices/system/node/node1/meminfo" in paths
    assert not any("{}" in path or "memory0" in path for path in paths)


class Clock:
    def __init__(self) -> None:
        self.now = 10**12

    def __call__(self) -> int:
        return self.now


@given(st.lists(st.tuples(st.integers(0, 200), st.sampled_from([b"a", b"b", b"cc"])), max_size=30))
def test_attributes_and_bytes_always_come_from_one_refresh(
    steps: list[tuple[int, bytes]],
) -> None:
    clock = Clock()
    snapshots = PinnedSnapshots(clock)
    rendered = 0
    former = None
    for milliseconds, content in steps:
        clock.now += milliseconds * 10**6

        def render(content: bytes = content) -> tuple[bytes, int]:
            nonlocal rendered
            rendered += 1
            return content, clock.now + 50 * 10**6

        snapshot, lifetime = snapshots.refresh(1, 5, render)
        assert 0 < lifetime <= 0.05
        assert snapshots.last(1, 5, render) is snapshot
        assert snapshot.read(0, 100) == snapshot.data
        if former is not None:
            assert (former.data != snapshot.data) == (former.changed_ns != snapshot.changed_ns)
            assert snapshot.changed_ns >= former.changed_ns
        former = snapshot
    assert rendered <= 1 + sum(milliseconds for milliseconds, _ in steps) // 50


def test_snapshots_of_a_container_go_with_it() -> None:
    snapshots = PinnedSnapshots()
    for serial in (1, 2):
        for node in (4096, 4097):
            snapshots.refresh(serial, node, lambda: (b"x", 0))
    snapshots.forget(1)
    snapshots.forget(3)
    assert len(snapshots) == 2


def test_snapshots_of_a_container_are_bounded() -> None:
    snapshots = PinnedSnapshots(lambda: 0)
    for node in range(MAX_PER_CONTAINER + 10):
        snapshots.refresh(1, node, lambda: (b"x", 1))
        snapshots.refresh(1, 0, lambda: (b"used", 1))
        snapshots.refresh(2, node % 5, lambda: (b"other", 1))
    assert len(snapshots) == MAX_PER_CONTAINER + 5
    assert snapshots.last(1, 0, lambda: (b"new", 1)).data == b"x"  # used all the time
    assert snapshots.last(1, 3, lambda: (b"new", 1)).data == b"new"


def test_what_is_open_is_bounded() -> None:
    opened: Opened[bytes] = Opened(limit=2, limit_of_owner=2)
    first, second = opened.add("a", b"first"), opened.add("b", b"second")
    assert first is not None
    assert second is not None
    assert opened.add("a", b"third") is None
    assert opened.close(first) == b"first"
    assert opened.close(first) is None
    assert opened.get(first) is None
    assert opened.get(second) == b"second"
    assert opened.add("a", b"fourth") not in {first, second, None}


def test_nobody_keeps_others_from_opening() -> None:
    opened: Opened[bytes] = Opened(limit=10, limit_of_owner=4)
    large = opened.add("a", b"large", 3 * UNIT_BYTES)
    assert large is not None
    assert opened.add("a", b"small") is not None
    assert opened.add("a", b"too many", 1) is None
    assert opened.add("b", b"too large", 4 * UNIT_BYTES + 1) is None
    assert opened.add("b", b"just right", 4 * UNIT_BYTES) is not None
    opened.close(large)
    assert opened.add("a", b"again", 3 * UNIT_BYTES) is not None
    assert opened.add("c", b"the last", 2 * UNIT_BYTES) is not None
    assert opened.add("d", b"too many of all") is None


def test_recent_snapshots_are_recent_and_bounded() -> None:
    clock = Clock()
    recent: Recent[bytes] = Recent(0.05, 2, clock)
    for key in "abc":
        recent.put(key, key.encode())
    assert [recent.get(key) for key in "abc"] == [None, b"b", b"c"]
    clock.now += 50 * 10**6
    assert recent.get("c") is None
