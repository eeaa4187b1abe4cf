"""The views as procps and util-linux read them: files of recorded containers, mounted over /proc.

These programs know one /proc only, so each runs in a mount namespace of its own. What they show in
a container that is alive is in the engine's tests.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.recorded import TREES, V1, V2, Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILES = "meminfo swaps vmstat stat uptime loadavg cpuinfo diskstats partitions slabinfo".split()
KIB = 1024


@pytest.fixture(params=TREES)
def tree(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(tree: str, tmp_path: Path) -> Callable[..., list[str]]:
    """Run a program that sees the views of one container; returns the lines it prints."""
    procfs = Machine(tmp_path, tree).refresh(*FILES)
    binds = [f'mount --bind "{procfs}/{file}" "/proc/{file}"' for file in FILES]
    script = " && ".join([*binds, 'exec "$@"'])

    def run(*command: str) -> list[str]:
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "-", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.splitlines()

    return run


def table(lines: list[str]) -> dict[str, list[int]]:
    """Lines of a name, a colon and numbers."""
    split = [line.partition(":") for line in lines if ":" in line]
    return {name: [int(field) for field in rest.split()] for name, _, rest in split}


def test_free(run: Callable[..., list[str]], tree: str) -> None:
    rows = table(run("free", "--kibi", "--wide"))
    total, used, free, shared, buffers, cache, available = rows["Mem"]

    assert total == {V1: 512, V2: 256}[tree] * KIB
    assert used == total - available
    assert 0 < free < available < total
    assert buffers == 0
    assert 0 < shared <= cache <= total - free
    swap = {V1: 0, V2: 128}[tree] * KIB
    assert rows["Swap"] == [swap, swap // 32, swap - swap // 32]


def test_vmstat(run: Callable[..., list[str]], tree: str) -> None:
    """One line since boot, and one for a second in which nothing happened."""
    header, first, second = run("vmstat", "--wide", "1", "2")[1:]
    since_boot = dict(zip(header.split(), map(int, first.split()), strict=True))
    last_second = dict(zip(header.split(), map(int, second.split()), strict=True))

    assert since_boot["swpd"] == {V1: 0, V2: 4 * KIB}[tree]
    assert since_boot["buff"] == since_boot["in"] == since_boot["cs"] == 0
    # It was alive for 9.5 seconds (Machine), and procps counts whole ones.
    read, written = {V1: (880, 1536), V2: (50 * KIB, 100 * KIB)}[tree]
    assert since_boot["bi"] == pytest.approx(read / 9.5, rel=0.1)
    assert since_boot["bo"] == pytest.approx(written / 9.5, rel=0.1)
    shares = [since_boot[column] for column in ("us", "sy", "id", "wa", "st")]
    assert min(shares) >= 0
    assert 98 <= sum(shares) <= 102
    assert 0 < since_boot["id"] < 100
    assert [last_second[column] for column in ("si", "so", "bi", "bo")] == [0, 0, 0, 0]


def test_vmstats_tables(run: Callable[..., list[str]], tree: str) -> None:
    events = {line[14:]: int(line[:13]) for line in run("vmstat", "--stats")}
    total = {V1: 512, V2: 256}[tree] * KIB
    assert events["K total memory"] == total
    assert events["K paged in"] == {V1: 880, V2: 50 * KIB}[tree]
    assert events["pages swapped in"] == events["pages swapped out"] == 0
    assert all(value <= total for name, value in events.items() if name.endswith("memory"))
    assert run("vmstat", "--slabs") == []
    # procps takes for a disk what is in the host's /sys/block.
    assert len(run("vmstat", "--disk-sum")) == 13


def test_slabtop(run: Callable[..., list[str]]) -> None:
    text = "\n".join(run("slabtop", "--once"))

    assert "Active / Total Objects (% used)    : 0 / 0" in text


def test_swapon(run: Callable[..., list[str]], tree: str) -> None:
    """util-linux takes the two headers away, and reads the rest by columns."""
    lines = run("swapon", "--show=NAME,TYPE,SIZE,USED,PRIO", "--bytes", "--noheadings")

    assert [line.split() for line in lines] == {
        V1: [],
        V2: [["none", "virtual", str(128 * KIB * KIB), str(4 * KIB * KIB), "0"]],
    }[tree]


def test_top(run: Callable[..., list[str]], tree: str) -> None:
    lines = run("top", "-b", "-n", "1", "-E", "k")[:5]

    assert "up 0 min" in lines[0]
    assert f"{ {V1: 512, V2: 256}[tree] * KIB } total" in lines[3]
    assert f"{ {V1: 0, V2: 128}[tree] * KIB } total" in lines[4]


def test_uptime(run: Callable[..., list[str]]) -> None:
    assert "up 0 min" in run("uptime")[0]
    assert run("uptime", "--pretty") == ["up 0 minutes"]
