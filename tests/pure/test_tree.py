"""Inode numbers, snapshots and what they promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.errors import NoSuchView
from sysfsd.filesystem import tree as trees
from sysfsd.filesystem.snapshots import OpenSnapshots, PinnedSnapshots, RecentSnapshots
from sysfsd.filesystem.tree import ROOT_NODE, Tree, inode_of, parts_of
from sysfsd.views import VIEWS, View


def view(path: str) -> View:
    return View(path, lambda _facts: [], lambda _sources: "")


names = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=4).map("/".join),
    max_size=12,
    unique=True,
).map(
    # A path that is a file cannot be a directory as well.
    lambda paths: [p for p in paths if not any(q.startswith(p + "/") for q in paths)]
)


def numbers(tree: Tree, node: int = ROOT_NODE) -> dict[str, int]:
    """All paths and their node numbers, found by walking as the kernel does."""
    found = {}
    here = tree.node(node)
    assert here is not None
    for number in here.children.values():
        child = tree.node(number)
        assert child is not None
        found[child.path] = number
        found |= numbers(tree, number)
    return found


@given(names)
def test_every_view_is_found_by_walking_and_by_path(paths: list[str]) -> None:
    tree = Tree([view(path) for path in paths])
    found = numbers(tree)
    assert set(paths) <= set(found)
    assert len(set(found.values())) == len(found)
    for path in paths:
        assert tree.view(f"/{path}").path == path
        assert 0 < found[path] < 1 << trees.NODE_BITS


@given(names, names)
def test_appending_changes_no_number(paths: list[str], more: list[str]) -> None:
    taken = {part for path in paths for part in (path, path.rpartition("/")[0])}
    more = [f"new/{path}" for path in more if path not in taken]
    before = numbers(Tree([view(path) for path in paths]))
    after = numbers(Tree([view(path) for path in [*paths, *more]]))
    assert before.items() <= after.items()


@given(st.integers(0, 2**40), st.integers(0, 2**20 - 1))
def test_inodes_come_apart_again(serial: int, node: int) -> None:
    inode = inode_of(serial, node)
    assert parts_of(inode) == (serial, node)
    assert inode < 1 << 64


def test_the_real_table() -> None:
    tree = Tree(VIEWS)
    root = tree.node(ROOT_NODE)
    assert root is not None
    assert list(root.children) == [b"proc", b"sys"]
    with pytest.raises(NoSuchView, match="proc/meminfo"):
        tree.view("/proc/cmdline")


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
    snapshots = PinnedSnapshots(0.05, clock)
    rendered = 0
    former = None
    for milliseconds, content in steps:
        clock.now += milliseconds * 10**6

        def render(content: bytes = content) -> bytes:
            nonlocal rendered
            rendered += 1
            return content

        snapshot, lifetime = snapshots.refresh(5, render)
        assert 0 < lifetime <= 0.05
        assert snapshots.last(5, render) is snapshot
        assert snapshot.read(0, 100) == snapshot.data
        if former is not None:
            assert (former.data != snapshot.data) == (former.changed_ns != snapshot.changed_ns)
            assert snapshot.changed_ns >= former.changed_ns
        former = snapshot
    assert rendered <= 1 + sum(milliseconds for milliseconds, _ in steps) // 50


def test_snapshots_of_a_container_go_with_it() -> None:
    snapshots = PinnedSnapshots(0.05)
    for serial in (1, 2):
        for node in (4096, 4097):
            snapshots.refresh(inode_of(serial, node), lambda: b"x")
    snapshots.forget(1)
    assert len(snapshots) == 2


def test_open_snapshots_are_bounded() -> None:
    opened = OpenSnapshots(limit=2)
    first, second = opened.add(b"first"), opened.add(b"second")
    assert first is not None
    assert second is not None
    assert opened.add(b"third") is None
    opened.close(first)
    opened.close(first)
    assert opened.read(first, 0, 10) is None
    assert opened.read(second, 3, 2) == b"on"
    assert opened.add(b"fourth") not in {first, second, None}


def test_recent_snapshots_are_recent_and_bounded() -> None:
    clock = Clock()
    recent = RecentSnapshots(0.05, 2, clock)
    for key in "abc":
        recent.put(key, key.encode())
    assert [recent.get(key) for key in "abc"] == [None, b"b", b"c"]
    clock.now += 50 * 10**6
    assert recent.get("c") is None
