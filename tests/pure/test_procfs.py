"""Parsers of procfs: shapes that a container can choose, and shapes that kernels print."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.kernel.procfs import (
    MeminfoLine,
    TaskStat,
    format_cpu_range,
    parse_cpu_list,
    parse_meminfo,
    parse_ns_pids,
    parse_task_stat,
    read_text,
)

FIXTURES = Path(__file__).parent / "fixtures"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=15))
def test_no_name_of_a_process_can_confuse_its_stat(name: str) -> None:
    template = (FIXTURES / "cgroup-v2/proc/4242/stat").read_text()

    assert parse_task_stat(template.replace("my (odd) name", name)) == TaskStat("S", 12345)


@pytest.mark.parametrize("text", ["", "1 (x)", "1 (x) S 2 3", "nonsense"])
def test_a_short_stat_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="stat"):
        parse_task_stat(text)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("\n", ()), ("0\n", (0,)), ("0-3,7\n", (0, 1, 2, 3, 7)), ("7,0-1,1", (0, 1, 7))],
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["x", "3-1", "0-99999999", "1-", "-1"])
def test_what_is_no_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_cpu_list(text)


@given(st.integers(1, 8192))
def test_a_range_reads_back(count: int) -> None:
    assert parse_cpu_list(format_cpu_range(count)) == tuple(range(count))


def test_meminfo_lines() -> None:
    text = "MemTotal:  5 kB\nHugePages_Total:       0\nodd line\nX: y\n"

    assert parse_meminfo(text) == (
        MeminfoLine("MemTotal", 5, "kB"),
        MeminfoLine("HugePages_Total", 0, ""),
    )


def test_pids_in_each_namespace() -> None:
    assert parse_ns_pids((FIXTURES / "cgroup-v2/proc/4301/status").read_text()) == (4301, 31, 2)
    assert parse_ns_pids("Name:\tx\n") == ()


def test_reading_is_bounded_and_follows_no_symlink(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc\xff" * 100_000)
    (tmp_path / "link").symlink_to("file")

    assert read_text(str(tmp_path / "file"), limit=70_000) == "abc\ufffd" * 17_500
    with pytest.raises(OSError, match="link"):
        read_text(str(tmp_path / "link"))
