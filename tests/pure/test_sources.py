"""The page of sources says what the views do."""

from __future__ import annotations

from sysfsd.views import VIEWS
from tests.support.sources import PAGE, general, markdown


def test_the_page_is_up_to_date() -> None:
    # If not: python -m tests.support.sources > sysfsd/views/README.md
    assert PAGE.read_text() == markdown()


def test_every_file_is_on_the_page() -> None:
    page = PAGE.read_text()
    for view in VIEWS:
        directory, _, leaf = f"/{view.path.replace('{}', 'N')}".rpartition("/")
        directory = directory.replace("index0", "indexN")
        assert f"`{directory}/{leaf}`" in page or f"`{leaf}`" in page, view.path


def test_directories_are_left_out() -> None:
    base = "/x/fixtures/cgroup-v1/sys/fs/cgroup"
    assert general(f"total_rss of {base}/memory/a/memory.stat") == "total_rss of `memory.stat`"
    assert general(f"{base}/cpuacct/a/cpuacct.usage_{{user,sys}}, spread over 3 CPUs") == (
        "`cpuacct.usage_{user,sys}`, spread over its CPUs"
    )
    assert general(f"newest of the tasks of {base}/blkio/a/ and below") == (
        "newest of the tasks of its cgroup and below"
    )
