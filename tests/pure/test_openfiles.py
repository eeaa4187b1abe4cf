"""Files that stay open: what is read, what is closed, and what comes after one that is gone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import pytest

from sysfsd.facts.host import boot_time_in
from sysfsd.kernel.cgroups import CgroupPaths, CgroupTree, Hierarchy
from sysfsd.kernel.openfiles import OpenFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def files() -> Iterator[OpenFiles]:
    with OpenFiles(8) as opened:
        yield opened
    assert len(opened) == 0


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name in ("a/b", "a/c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "limit").write_text(f"{name}\n")
    return tmp_path


def test_a_file_is_opened_once_and_read_anew(files: OpenFiles, top: Path) -> None:
    assert files.read(str(top), "/a/b", "limit") == b"a/b\n"
    assert len(files) == 2
    (top / "a/b/limit").write_text("other\n")
    assert files.read(str(top), "/a/b", "limit") == b"other\n"
    assert len(files) == 2


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 16384, 16385, 200_000])
def test_all_of_a_file(files: OpenFiles, top: Path, size: int) -> None:
    data = os.urandom(size)
    (top / "a/b/large").write_bytes(data)
    assert files.read(str(top), "/a/b", "large") == data
    assert files.read(str(top), "/a/b", "large", limit=100) == data[:100]


def test_no_such_file_or_directory(files: OpenFiles, top: Path) -> None:
    assert files.read(str(top), "/a/b", "nope") is None
    with pytest.raises(FileNotFoundError):
        files.read(str(top), "/a/x", "limit")
    (top / "a/b/nope").write_text("now\n")  # a controller was enabled
    assert files.read(str(top), "/a/b", "nope") == b"now\n"


def test_a_directory_that_is_gone(files: OpenFiles, top: Path) -> None:
    assert files.read(str(top), "/a/b", "nope") is None
    (top / "a/b").rename(top / "gone")
    with pytest.raises(FileNotFoundError):
        files.read(str(top), "/a/b", "nope")
    (top / "a/b").mkdir()
    (top / "a/b/nope").write_text("another's\n")
    assert files.read(str(top), "/a/b", "nope") == b"another's\n"


def test_links_are_not_followed(files: OpenFiles, top: Path) -> None:
    (top / "a/link").symlink_to("b")
    (top / "a/b/link").symlink_to("limit")
    for path, name in (("/a/link", "limit"), ("/a/b", "link")):
        with pytest.raises(OSError):
            files.read(str(top), path, name)


def test_no_more_are_open_than_allowed(files: OpenFiles, top: Path) -> None:
    for number in range(30):
        (top / f"a/b/{number}").write_text(f"{number}\n")
    for _ in range(2):
        for number in range(30):
            assert files.read(str(top), "/a/b", str(number)) == b"%d\n" % number
            assert len(files) <= 8


def test_closing_what_is_below(files: OpenFiles, top: Path) -> None:
    (top / "a/bc").mkdir()
    (top / "a/bc/limit").write_text("bc\n")
    for path in ("/a/b", "/a/c", "/a/bc"):
        files.read(str(top), path, "limit")
    files.close_below("/a/b")
    assert len(files) == 4
    assert files.read(str(top), "/a/b", "limit") == b"a/b\n"


def test_levels_of_a_tree_that_keeps_files(files: OpenFiles, top: Path) -> None:
    tree = CgroupTree([Hierarchy(2, str(top), "/", frozenset())]).keeping(files)
    cgroup = tree.unified(CgroupPaths((("", "/a/b"),)))
    assert cgroup is not None
    with cgroup.levels() as levels:
        assert [level.path for level in levels] == ["/a/b", "/a", "/"]
        assert [level.read("limit") for level in levels] == ["a/b\n", None, None]
        assert levels[0].inode == (top / "a/b").stat().st_ino
    assert cgroup.read("limit") == "a/b\n"
    assert [level.path for level in cgroup.subtree(9)] == ["/a/b"]


def test_the_time_of_the_boot_is_psutils() -> None:
    with OpenFiles(4) as kept:
        for _ in range(2):
            assert abs(boot_time_in(kept) - psutil.boot_time()) <= 1  # somebody may set the clock
