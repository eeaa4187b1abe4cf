"""Ranges of ids are bound to processes: real ones, which need no privilege."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio

from sysfsd.containers.ranges import SIZE, IdRange
from sysfsd.containers.reservations import Reservations
from sysfsd.documents import Documents
from sysfsd.errors import ContainerExists, InvalidRequest, NoRangeLeft

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Far above what anybody on this machine uses.
UIDS, GIDS = 3_000_000_000, 3_500_000_000


class Process:
    """A process that ends when it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["sleep", "infinity"])
        self.pidfd = os.pidfd_open(self.process.pid)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def processes() -> Iterator[Callable[[], Process]]:
    made: list[Process] = []

    def make() -> Process:
        made.append(Process())
        return made[-1]

    yield make
    for each in made:
        each.end()
        os.close(each.pidfd)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "subuid").write_text(f"nobody-at-all:{UIDS}:{2 * SIZE}\n")
    (tmp_path / "subgid").write_text(f"nobody-at-all:{GIDS}:{3 * SIZE}\n")
    paths = {name: str(tmp_path / name) for name in ("subuid", "subgid")}
    return {"user": "nobody-at-all", **paths}


async def none_left(reservations: Reservations, number: int = 0) -> None:
    with trio.fail_after(20):
        while len(reservations) > number:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.005)


async def test_a_range_lasts_from_create_to_the_end_of_init(
    nursery: trio.Nursery, files: dict[str, Any], processes: Callable[[], Process]
) -> None:
    reservations = Reservations(nursery, **files)
    freed: list[str] = []
    reservations.on_free.append(freed.append)
    create, init = processes(), processes()
    assert reservations.reserve("web", create.pidfd) == IdRange(UIDS, GIDS)
    reservations.bind("web", init.pidfd)
    create.end()
    other = processes()
    assert reservations.reserve("other", other.pidfd).uid_base == UIDS + SIZE
    with pytest.raises(NoRangeLeft, match="all 2 ranges"):
        reservations.reserve("third", processes().pidfd)
    with pytest.raises(ContainerExists):
        reservations.reserve("web", processes().pidfd)
    init.end()
    await none_left(reservations, 1)
    assert freed == ["web"]
    assert reservations.reserve("third", processes().pidfd).uid_base == UIDS


async def test_a_create_that_fails_leaves_nothing(
    nursery: trio.Nursery, files: dict[str, Any], processes: Callable[[], Process]
) -> None:
    reservations = Reservations(nursery, **files)
    create = processes()
    reservations.reserve("web", create.pidfd)
    create.end()
    await none_left(reservations)
    # Again under the same id, and this time another range: the old one rests.
    assert reservations.reserve("web", processes().pidfd).uid_base == UIDS + SIZE


async def test_a_restart_under_the_same_id(
    nursery: trio.Nursery, files: dict[str, Any], processes: Callable[[], Process]
) -> None:
    reservations = Reservations(nursery, **files)
    freed: list[str] = []
    reservations.on_free.append(freed.append)
    first, init, second = processes(), processes(), processes()
    reservations.reserve("web", first.pidfd)
    reservations.bind("web", init.pidfd)
    first.end()
    init.end()
    reservations.reserve("web", second.pidfd)  # before anybody saw the first one go
    await none_left(reservations, 1)
    assert freed == [], "the new container's things are not the old one's"


async def test_without_configuration_and_with_a_dead_process(
    nursery: trio.Nursery,
    files: dict[str, Any],
    processes: Callable[[], Process],
    tmp_path: Path,
) -> None:
    (tmp_path / "subgid").unlink()
    reservations = Reservations(nursery, **files)
    with pytest.raises(NoRangeLeft, match="nobody-at-all:10000000:"):
        reservations.reserve("web", processes().pidfd)
    dead = processes()
    dead.end()
    with pytest.raises(InvalidRequest):
        reservations.reserve("web", dead.pidfd)


async def test_ids_that_others_have_mapped_are_not_handed_out(
    nursery: trio.Nursery,
    files: dict[str, Any],
    processes: Callable[[], Process],
    tmp_path: Path,
) -> None:
    """A container of a predecessor of ours still runs."""
    proc = tmp_path / "proc"
    for pid, text in (("self", "0 0 4294967295\n"), ("77", f"0 {UIDS} {SIZE}\n"), ("78", "")):
        (proc / pid).mkdir(parents=True)
        (proc / pid / "uid_map").write_text(text)
    create = processes()
    (proc / "self/fdinfo").mkdir()
    (proc / f"self/fdinfo/{create.pidfd}").write_text(f"Pid:\t{create.process.pid}\n")
    reservations = Reservations(nursery, **files, proc=str(proc))
    assert reservations.reserve("web", create.pidfd).uid_base == UIDS + SIZE
    with pytest.raises(NoRangeLeft):
        reservations.reserve("db", create.pidfd)
    (proc / "77" / "uid_map").unlink()
    (proc / "77").rmdir()
    assert reservations.reserve("db", create.pidfd).uid_base == UIDS


async def test_a_successor_goes_on_with_them(
    files: dict[str, Any], processes: Callable[[], Process], tmp_path: Path
) -> None:
    """Also with that of a container that has no user namespace yet: nothing else tells of it."""
    saved = Documents(str(tmp_path / "reservations"))
    create, started, init, failed = processes(), processes(), processes(), processes()
    async with trio.open_nursery() as life:
        first = Reservations(life, **files, saved=saved)
        created = first.reserve("created", create.pidfd)
        running = first.reserve("running", started.pidfd)
        first.bind("running", init.pidfd)
        started.end()
        life.cancel_scope.cancel()
    failed.end()
    async with trio.open_nursery() as life:
        second = Reservations(life, **files, saved=saved)
        second.restore()
        assert len(second) == 2
        with pytest.raises(NoRangeLeft):
            second.reserve("new", processes().pidfd)
        # Its create process asks again, since it had no answer.
        assert second.reserve("created", create.pidfd) == created
        with pytest.raises(ContainerExists):
            second.reserve("running", processes().pidfd)
        init.end()
        await none_left(second, 1)
        assert second.reserve("new", processes().pidfd) == running
        create.end()
        life.cancel_scope.cancel()
    async with trio.open_nursery() as life:
        third = Reservations(life, **files, saved=saved)
        third.restore()
        assert "created" not in third
        life.cancel_scope.cancel()
    saved.close()
