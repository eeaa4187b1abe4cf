"""Counters as bytes, and in files that a successor finds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.facts.collector import FactsCollector
from sysfsd.facts.cpuclock import CpuClock, CpuTimes, CpuUsage, resume, start
from sysfsd.facts.disk import DiskClock, DiskCounters, Total
from sysfsd.facts.host import boottime_ns
from sysfsd.facts.keeper import SLOT_BYTES, Keeper
from sysfsd.facts.kept import (
    HEAD_BYTES,
    MAX_BYTES,
    MAX_CPUS,
    MAX_DISKS,
    Init,
    Kept,
    decode,
    encode,
    length,
)
from sysfsd.facts.load import Averages, KeptLoad
from sysfsd.kernel.cgroups import CgroupTree
from sysfsd.kernel.procfs import parse_task_stat, read_text
from sysfsd.log import RateLimit
from tests.pure.test_facts import FIXTURES, Clock, record

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 1_000_000_000
NOW = (1 << 64) - 1
INIT = Init(b"0123456789abcdef", 4242, 9050)
u64 = st.integers(0, NOW)
clocks = st.builds(
    CpuClock,
    u64,
    st.builds(CpuUsage, u64, u64),
    st.builds(CpuUsage, u64, u64),
    st.lists(st.builds(CpuTimes, u64, u64, u64), max_size=20).map(tuple),
)
loads = st.builds(KeptLoad, st.builds(Averages, u64, u64, u64), u64, u64)
counters = st.builds(DiskCounters, *[u64] * len(DiskCounters._fields))
numbers = st.tuples(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1)).map(
    lambda number: f"{number[0]}:{number[1]}"
)
disks = st.builds(
    lambda lines, total: DiskClock(
        {number: raw for number, (raw, _) in lines.items()},
        {number: shown for number, (_, shown) in lines.items()},
        total,
    ),
    st.dictionaries(numbers, st.tuples(counters, counters), max_size=3),
    st.builds(Total, u64, u64),
)
kepts = st.builds(Kept, st.none() | clocks, st.none() | loads, st.none() | disks)


@given(kepts, u64)
def test_there_and_back(kept: Kept, sequence: int) -> None:
    data = encode(INIT, sequence, kept)

    assert length(data[:HEAD_BYTES]) == len(data) <= MAX_BYTES
    assert decode(data, INIT, NOW) == (sequence, kept)
    assert decode(data + b"rest of an older slot", INIT, NOW) == (sequence, kept)


@given(kepts, st.data())
def test_a_damaged_slot_is_noticed(kept: Kept, data: st.DataObject) -> None:
    good = encode(INIT, 7, kept)
    at = data.draw(st.integers(0, len(good) - 1))
    change = data.draw(st.integers(1, 255))
    bad = bytearray(good)
    bad[at] ^= change
    for each in (bytes(bad), good[:at]):
        with pytest.raises(ValueError):
            decode(each, INIT, NOW)


@given(st.binary(max_size=400))
def test_no_bytes_do_anything_worse(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data, INIT, NOW)


def test_whatever_is_not_this_process_is_refused() -> None:
    good = encode(INIT, 1, Kept(CpuClock(5, CpuUsage(0, 0), CpuUsage(0, 0), ())))
    for other in (INIT._replace(pid=4243), INIT._replace(start_ticks=1), INIT._replace(boot=b"x")):
        with pytest.raises(ValueError, match="another process"):
            decode(good, other, NOW)


def test_counters_of_the_future_are_refused() -> None:
    ahead = [
        Kept(CpuClock(11 * SECOND, CpuUsage(0, 0), CpuUsage(0, 0), ())),
        Kept(load=KeptLoad(Averages(), 1, 16 * SECOND)),
    ]
    for kept in ahead:
        with pytest.raises(ValueError, match="of the future"):
            decode(encode(INIT, 1, kept), INIT, 10 * SECOND)
    # A sample counts for the period that is nearest.
    near = Kept(load=KeptLoad(Averages(), 1, 12 * SECOND))
    assert decode(encode(INIT, 1, near), INIT, 10 * SECOND)[1] == near


def test_numbers_that_no_counter_reaches() -> None:
    clock = CpuClock(0, CpuUsage(1 << 64, 0), CpuUsage(0, 0), ())
    many = CpuClock(0, CpuUsage(0, 0), CpuUsage(0, 0), (CpuTimes(),) * (MAX_CPUS + 1))
    used = {f"8:{minor}": DiskCounters() for minor in range(MAX_DISKS + 1)}
    for kept in (Kept(clock), Kept(many), Kept(disks=DiskClock(used, used))):
        with pytest.raises(ValueError):
            encode(INIT, 1, kept)
    assert MAX_BYTES <= SLOT_BYTES


@given(
    *(st.integers(0, 10**12) for _ in range(6)),
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 8),
)
def test_a_clock_goes_on_where_it_stood(
    user: int, system: int, uptime: int, more: int, more_system: int, gap: int, before: int,
    after: int, online: int,
) -> None:  # fmt: skip
    kept = start(0, CpuUsage(user, system), uptime, before)
    usage = CpuUsage(user + more, system + more_system)
    on = resume(kept, usage, uptime + gap, after, online)

    for index, cpu in enumerate(on.cpus):
        old = kept.cpus[index] if index < before else CpuTimes()
        grown = [new - then for new, then in zip(cpu, old, strict=True)]
        assert min(grown) >= 0
        assert sum(grown) == (gap if index < after else 0)
    shown = sum(on.total[:2]) - sum(kept.total[:2])
    counted = more + more_system <= (gap + SECOND) * online
    assert shown == (min(gap * after, sum(kept.carry) + more + more_system) if counted else 0)


def test_another_cgroups_count_is_no_work_done() -> None:
    kept = start(0, CpuUsage(SECOND, SECOND), 10 * SECOND, 2)
    for usage in (CpuUsage(0, SECOND), CpuUsage(10**15, 10**15)):
        on = resume(kept, usage, 20 * SECOND, 2, 4)
        assert on.total[:2] == kept.total[:2]
        assert on.usage == usage
        assert on.carry == (0, 0)


def own_ticks() -> int:
    return parse_task_stat(read_text("/proc/self/stat")).start_ticks


def keeper(path: Path) -> Keeper:
    return Keeper(str(path / "clocks"), RateLimit())


CLOCK = CpuClock(5, CpuUsage(1, 2), CpuUsage(0, 0), (CpuTimes(1, 2, 3),))
LOAD = KeptLoad(Averages(1, 2, 3), 77, 5)
DISKS = DiskClock({"8:0": DiskCounters(1)}, {"8:0": DiskCounters(5)}, Total(4096, 0))


def test_a_successor_finds_what_was_written_last(tmp_path: Path) -> None:
    first = keeper(tmp_path)
    assert first.open(1, os.getpid(), own_ticks()) == Kept()
    for number in range(5):
        clock = CLOCK._replace(now=number)
        first.keep_clock(1, clock)
        first.keep_load(1, LOAD)
        first.keep_disks(1, DISKS)
        # Killed here: nothing is closed, nothing else is written.
        second = keeper(tmp_path)
        assert second.open(9, os.getpid(), own_ticks()) == Kept(clock, LOAD, DISKS)
        second.close_all()
    first.close_all()


def test_a_torn_write_leaves_the_one_before(tmp_path: Path) -> None:
    first = keeper(tmp_path)
    first.open(1, os.getpid(), own_ticks())
    first.keep_clock(1, CLOCK)
    first.keep_clock(1, CLOCK._replace(now=6))
    first.close_all()
    (path,) = (tmp_path / "clocks").iterdir()
    with path.open("r+b") as file:
        assert file.read(8) == b"sysfsdC2"  # the second write: an even sequence
        file.seek(100)
        file.write(b"torn")
    second = keeper(tmp_path)
    assert second.open(1, os.getpid(), own_ticks()) == Kept(CLOCK)
    second.close_all()


@pytest.mark.parametrize(
    "content",
    [b"garbage", b"sysfsdC2" + b"\xff" * 4000, b"\0" * 3 * SLOT_BYTES, b"x" * 3 * SLOT_BYTES],
    ids=["short", "of a huge length", "zeros", "large"],
)
def test_a_hostile_file_is_begun_anew(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"clocks/{os.getpid()}-{own_ticks()}"
    path.parent.mkdir()
    path.write_bytes(content)
    first = keeper(tmp_path)
    assert first.open(1, os.getpid(), own_ticks()) == Kept()
    first.keep_clock(1, CLOCK)
    first.close_all()
    assert "counters are not kept over a restart" in capsys.readouterr().out
    second = keeper(tmp_path)
    assert second.open(1, os.getpid(), own_ticks()) == Kept(CLOCK)
    second.close_all()


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_what_is_no_file_is_left_alone(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = tmp_path / f"clocks/{os.getpid()}-{own_ticks()}", tmp_path / "target"
    path.parent.mkdir()
    target.write_text("somebody's")
    if kind == "symlink":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    first = keeper(tmp_path)
    assert first.open(1, os.getpid(), own_ticks()) == Kept()
    first.keep_clock(1, CLOCK)
    first.close_all()
    assert target.read_text() == "somebody's"
    assert capsys.readouterr().out


def test_files_of_the_dead_are_removed(tmp_path: Path) -> None:
    directory = tmp_path / "clocks"
    directory.mkdir()
    mine = f"{os.getpid()}-{own_ticks()}"
    for name in (mine, f"{os.getpid()}-{own_ticks() + 1}", "4194999-5", "README"):
        (directory / name).touch()
    keeper(tmp_path).close_all()
    assert sorted(path.name for path in directory.iterdir()) == [mine, "README"]


def test_a_container_that_is_released_may_come_back(tmp_path: Path) -> None:
    ours = keeper(tmp_path)
    ours.open(1, os.getpid(), own_ticks())
    ours.keep_clock(1, CLOCK)
    ours.close(1)
    ours.keep_clock(1, CLOCK._replace(now=99))  # of a thread that comes late
    assert ours.open(2, os.getpid(), own_ticks()) == Kept(CLOCK)
    ours.close(2)
    ours.open(3, 4194999, 5)
    ours.close(3)
    assert len(list((tmp_path / "clocks").iterdir())) == 1
    ours.close_all()


def test_of_two_records_of_one_process_the_first_writes(tmp_path: Path) -> None:
    ours = keeper(tmp_path)
    ours.open(1, os.getpid(), own_ticks())
    ours.keep_clock(1, CLOCK)
    assert ours.open(2, os.getpid(), own_ticks()) == Kept(CLOCK)
    ours.keep_clock(2, CLOCK._replace(now=3))
    ours.close(2)
    ours.close_all()
    after = keeper(tmp_path)
    assert after.open(1, os.getpid(), own_ticks()) == Kept(CLOCK)
    after.close_all()


def test_the_facts_go_on_in_the_next_daemon(tmp_path: Path) -> None:
    base = FIXTURES / "cgroup-v2"
    clock = Clock()

    def daemon() -> tuple[FactsCollector, Keeper]:
        ours = Keeper(str(tmp_path / "clocks"), RateLimit(), clock=boottime_ns)
        mounts = (base / "proc/self/mountinfo").read_text()
        return (
            FactsCollector(
                tree=CgroupTree.from_mountinfo(mounts, str(base)),
                proc=str(base / "proc"),
                sys=str(base / "sys"),
                clock=clock,
                keeper=ours,
            ),
            ours,
        )

    container = record(base, 4242)
    first, keeper1 = daemon()
    before = first.facts(container)
    times, load = before.cpu_times.clock, before.load
    keeper1.close_all()
    # Its init is no process here: the start of a daemon would remove the file, unless it is alive.
    (path,) = (tmp_path / "clocks").iterdir()
    data = path.read_bytes()
    second, keeper2 = daemon()
    path.write_bytes(data)
    clock.now += 7 * SECOND
    after = second.facts(container)

    assert after.cpu_times.clock.now == times.now + 7 * SECOND
    assert after.cpu_times.clock.total.user == times.total.user
    assert after.load.last_pid == load.last_pid
    # Of averages that are nothing there is nothing to decay: they are counted from now on.
    assert load.averages == after.load.averages == Averages()
    assert after.load.sampled == clock.now
    keeper2.close_all()
