"""Two real overlays over one upper layer, with and without somebody who keeps them in step.

The engine's side of every test is what `docker cp` does; what the kernel does by itself is shown
first, so that a kernel that needs no help is noticed.
"""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from sysfsd import coherence as coherence_module
from sysfsd.coherence import Coherence
from sysfsd.errors import InvalidRequest
from sysfsd.kernel import syscalls
from sysfsd.log import RateLimit
from tests.engine.throwaway import subordinate_ids
from tests.support import wait
from tests.support.daemon import serving
from tests.support.overlays import Overlays, make_overlays

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.support.daemon import Serving

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts overlays")


@pytest.fixture
def overlays(tmp_path: Path) -> Iterator[Overlays]:
    yield from make_overlays(tmp_path)


@asynccontextmanager
async def running(
    reconfigure: Callable[[int], None] = syscalls.reconfigure,
) -> AsyncIterator[Coherence]:
    coherence = Coherence(RateLimit(), reconfigure)
    async with trio.open_nursery() as nursery:
        await nursery.start(coherence.run)
        yield coherence
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(wait.DEADLINE):
        while not condition():  # noqa: ASYNC110 - the kernel sets no trio.Event
            await trio.sleep(0.002)


def can_create(path: Path) -> bool:
    """Whether a file can be created there: an overlay out of step fails in one of two ways."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        # Linux 6.12 and 6.18.
        assert error.errno in {errno.EEXIST, errno.ENOTEMPTY}
        return False
    return True


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def marks() -> int:
    """How much this process listens to, by fanotify and inotify."""
    count = 0
    for fd in os.listdir("/proc/self/fdinfo"):
        try:
            text = Path(f"/proc/self/fdinfo/{fd}").read_text()
        except FileNotFoundError:
            continue  # the listing's own
        count += text.count("fanotify sdev:") + text.count("inotify wd:")
    return count


class TestTheKernelAlone:
    def test_a_container_does_not_see_what_was_copied_in(self, overlays: Overlays) -> None:
        assert not (overlays.container / "tmp/x").exists()
        (overlays.engine / "tmp/x").write_text("copied in")
        assert not (overlays.container / "tmp/x").exists()
        assert not can_create(overlays.container / "tmp/own")

    def test_an_engine_that_looked_in_vain_never_finds_it(self, overlays: Overlays) -> None:
        assert not (overlays.engine / "tmp/result").exists()
        (overlays.container / "tmp/result").write_text("result")
        assert not (overlays.engine / "tmp/result").exists()

    def test_an_engine_keeps_what_was_replaced(self, overlays: Overlays) -> None:
        (overlays.container / "tmp/result").write_text("old")
        assert (overlays.engine / "tmp/result").stat().st_size == 3
        (overlays.container / "tmp/.new").write_text("newer")
        (overlays.container / "tmp/.new").rename(overlays.container / "tmp/result")
        assert (overlays.engine / "tmp/result").stat().st_size == 3

    def test_reconfiguring_one_is_the_cure(self, overlays: Overlays) -> None:
        assert not (overlays.container / "tmp/x").exists()
        (overlays.engine / "tmp/x").write_text("copied in")
        syscalls.reconfigure(overlays.container_root)
        assert (overlays.container / "tmp/x").read_text() == "copied in"
        assert can_create(overlays.container / "tmp/own")


class TestInStep:
    async def test_a_container_sees_what_was_copied_in(self, overlays: Overlays) -> None:
        async with running() as coherence:
            coherence.watch("web", overlays.engine_root, overlays.container_root)
            for number in range(20):
                copied = f"tmp/{number}"
                assert not (overlays.container / copied).exists()
                (overlays.engine / copied).write_text("copied in")
                await until((overlays.container / copied).exists)
            await until(lambda: can_create(overlays.container / "tmp/own"))
            await until((overlays.engine / "tmp/own").exists)

    async def test_directories_and_links_follow_an_event(
        self, overlays: Overlays, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coherence_module, "ROUND_SECONDS", 1e6)
        async with running() as coherence:
            coherence.watch("web", overlays.engine_root, overlays.container_root)
            os.listdir(overlays.engine / "tmp")
            await until(lambda: coherence.stats()["refreshes"] >= 2)
            assert not (overlays.container / "tmp/directory").exists()
            (overlays.engine / "tmp/directory").mkdir()  # raises none itself
            await until((overlays.container / "tmp/directory").exists)

    async def test_docker_starts_with_a_directory_in_the_root(
        self, overlays: Overlays, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coherence_module, "ROUND_SECONDS", 1e6)
        async with running() as coherence:
            coherence.watch("web", overlays.engine_root, overlays.container_root)
            assert not (overlays.container / "tmp/link").exists()
            (overlays.engine / ".pivot_root1").mkdir()
            (overlays.engine / ".pivot_root1").rmdir()
            (overlays.engine / "tmp/link").symlink_to("/tmp")
            await until((overlays.container / "tmp/link").is_symlink)

    async def test_an_engine_finds_what_it_waits_for(self, overlays: Overlays) -> None:
        async with running() as coherence:
            coherence.watch("web", overlays.engine_root, overlays.container_root)
            assert not (overlays.engine / "tmp/result").exists()
            (overlays.container / "tmp/result").write_text("result")
            await until((overlays.engine / "tmp/result").exists)
            assert (overlays.engine / "tmp/result").read_text() == "result"

    async def test_an_engine_sees_what_replaced_a_file(self, overlays: Overlays) -> None:
        (overlays.container / "tmp/result").write_text("old")
        assert (overlays.engine / "tmp/result").stat().st_size == 3
        async with running() as coherence:
            coherence.watch("web", overlays.engine_root, overlays.container_root)
            (overlays.container / "tmp/.new").write_text("newer")
            (overlays.container / "tmp/.new").rename(overlays.container / "tmp/result")
            await until(lambda: (overlays.engine / "tmp/result").stat().st_size == 5)

    async def test_only_the_container_that_was_touched(
        self, overlays: Overlays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coherence_module, "ROUND_SECONDS", 1e6)
        refreshed: list[int] = []

        def note(root: int) -> None:
            refreshed.append(os.fstat(root).st_dev)
            syscalls.reconfigure(root)

        (tmp_path / "other").mkdir()
        for other in make_overlays(tmp_path / "other"):
            async with running(note) as coherence:
                coherence.watch("web", overlays.engine_root, overlays.container_root)
                coherence.watch("db", other.engine_root, other.container_root)
                assert not (other.container / "tmp/x").exists()
                (other.engine / "tmp/x").write_text("copied in")
                await until((other.container / "tmp/x").exists)
            assert set(refreshed) == {
                os.fstat(other.engine_root).st_dev,
                os.fstat(other.container_root).st_dev,
            }
            assert coherence.stats()["lost"] == 0

    async def test_what_it_does_raises_no_events(
        self, overlays: Overlays, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coherence_module, "ROUND_SECONDS", 0.001)
        async with running() as coherence:
            coherence.watch("web", overlays.engine_root, overlays.container_root)
            await until(lambda: coherence.stats()["refreshes"] >= 50)
            assert coherence.stats()["events"] == 0

    async def test_layers_on_several_file_systems(self, tmp_path: Path) -> None:
        for overlays in make_overlays(tmp_path, lower_elsewhere=True):
            # Whatever an event says of a file here, it is not the overlay's device.
            assert (overlays.engine / "file").stat().st_dev != overlays.engine.stat().st_dev
            async with running() as coherence:
                coherence.watch("web", overlays.engine_root, overlays.container_root)
                assert not (overlays.container / "tmp/x").exists()
                (overlays.engine / "tmp/x").write_text("copied in")
                await until((overlays.container / "tmp/x").exists)
                assert coherence.stats()["lost"] > 0

    async def test_a_burst_costs_few_refreshes(
        self, overlays: Overlays, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coherence_module, "ROUND_SECONDS", 1e6)
        refreshing, go_on = threading.Event(), threading.Event()
        calls: list[int] = []

        def slow(root: int) -> None:
            calls.append(root)
            refreshing.set()
            assert go_on.wait(wait.DEADLINE)
            syscalls.reconfigure(root)

        async with running(slow) as coherence:
            coherence.watch("web", overlays.engine_root, overlays.container_root)
            (overlays.engine / "tmp/first").write_text("")
            await until(refreshing.is_set)
            seen = coherence.stats()["events"]
            for number in range(100):
                (overlays.engine / f"tmp/{number}").write_text("")
            await until(lambda: coherence.stats()["events"] >= seen + 100)
            assert len(calls) == 1
            go_on.set()
            await until((overlays.container / "tmp/99").exists)

    async def test_everybody_has_a_turn(
        self, overlays: Overlays, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coherence_module, "ROUND_SECONDS", 0.001)
        refreshed: set[int] = set()
        async with running(refreshed.add) as coherence:
            for number in range(35):
                coherence.watch(str(number), overlays.engine_root, overlays.container_root)
            await until(lambda: len(refreshed) == 35)
            await until(lambda: coherence.stats()["refreshes"] >= 100)
            # The engine's half: nobody drops a container's own cache without a reason.
            assert len(refreshed) == 35

    async def test_an_event_that_is_nobodys_may_be_everybodys(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coherence_module, "ROUND_SECONDS", 0.001)
        monkeypatch.setattr(coherence_module, "ROUND_LOST", 10)
        refreshed: set[int] = set()
        for overlays in make_overlays(tmp_path, lower_elsewhere=True):
            async with running(refreshed.add) as coherence:
                for number in range(35):
                    coherence.watch(str(number), overlays.engine_root, overlays.container_root)
                (overlays.engine / "file").read_text()
                await until(lambda: len(refreshed) == 70)


class TestLettingGo:
    async def test_superblocks_go_with_forget(self, overlays: Overlays) -> None:
        async with running() as coherence:
            before = descriptors()
            coherence.watch("web", overlays.engine_root, overlays.container_root)
            (overlays.engine / "tmp/x").write_text("an event that is still waiting")
            overlays.close()
            assert overlays.upper_is_in_use()
            coherence.forget("web")
            await until(lambda: not overlays.upper_is_in_use())
            await until(lambda: descriptors() == before - 2)
            assert coherence.stats()["watched"] == 0
            coherence.forget("web")

    async def test_superblocks_go_with_the_end(self, overlays: Overlays) -> None:
        before = descriptors()
        async with running() as coherence:
            coherence.watch("web", overlays.engine_root, overlays.container_root)
            overlays.close()
        await until(lambda: not overlays.upper_is_in_use())
        assert descriptors() <= before

    async def test_a_hundred_containers_leave_nothing(self, overlays: Overlays) -> None:
        async with running() as coherence:
            await until(lambda: marks() == 0)
            before = descriptors()
            tasks = trio.lowlevel.current_statistics().tasks_living
            for number in range(100):
                coherence.watch("web", overlays.engine_root, overlays.container_root)
                assert marks() == 2
                (overlays.engine / f"tmp/{number}").write_text("")
                await trio.lowlevel.checkpoint()
                if number % 2:  # the others are watched again under the same id
                    coherence.forget("web")
            await until(lambda: descriptors() == before)
            await until(lambda: trio.lowlevel.current_statistics().tasks_living == tasks)
            assert marks() == 0

    async def test_not_while_a_thread_uses_the_descriptors(self, overlays: Overlays) -> None:
        refreshing, go_on = threading.Event(), threading.Event()
        seen: list[os.stat_result] = []

        def slow(root: int) -> None:
            refreshing.set()
            assert go_on.wait(wait.DEADLINE)
            seen.append(os.fstat(root))

        async with running(slow) as coherence:
            before = descriptors()
            coherence.watch("web", overlays.engine_root, overlays.container_root)
            (overlays.engine / "tmp/x").write_text("")
            await until(refreshing.is_set)
            coherence.forget("web")
            # Whatever is opened now must not take the numbers that the thread uses.
            other = os.open("/", os.O_PATH | os.O_CLOEXEC)
            go_on.set()
            await until(lambda: len(seen) == 2)
            os.close(other)
            assert [each.st_dev for each in seen] == [
                os.fstat(overlays.container_root).st_dev,
                os.fstat(overlays.engine_root).st_dev,
            ]
            await until(lambda: descriptors() == before)


class TestWhatGoesWrong:
    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL])
    async def test_a_kernel_without_it(
        self, overlays: Overlays, number: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse(root: int) -> None:
            raise OSError(number, "fspick: no")

        async with running(refuse) as coherence:
            before = descriptors()
            for name in ("web", "db"):
                coherence.watch(name, overlays.engine_root, overlays.container_root)
            await until(lambda: coherence.stats()["watched"] == 0)
            await until(lambda: descriptors() == before)
        assert capsys.readouterr().out.count("fspick: no") == 1

    async def test_one_failure_is_not_the_last_word(
        self, overlays: Overlays, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls: list[int] = []

        def fail_at_first(root: int) -> None:
            calls.append(root)
            if len(calls) <= 5:
                raise OSError(errno.ENOMEM, "fspick: no memory")
            syscalls.reconfigure(root)

        async with running(fail_at_first) as coherence:
            coherence.watch("web", overlays.engine_root, overlays.container_root)
            assert not (overlays.container / "tmp/x").exists()
            (overlays.engine / "tmp/x").write_text("copied in")

            def visible() -> bool:
                (overlays.engine / "tmp/x").read_text()
                return (overlays.container / "tmp/x").exists()

            await until(visible)
            assert coherence.stats()["failures"] == 5
        assert capsys.readouterr().out.count("fspick: no memory") == 1

    async def test_descriptors_that_are_no_overlays(
        self, overlays: Overlays, tmp_path: Path
    ) -> None:
        (overlays.container / "tmp/x").write_text("")
        directory = os.open(tmp_path, os.O_PATH | os.O_CLOEXEC)
        file = os.open(overlays.container / "tmp/x", os.O_PATH | os.O_CLOEXEC)
        async with running() as coherence:
            before = descriptors()
            for bad in (directory, file):
                with pytest.raises(InvalidRequest, match="overlays"):
                    coherence.watch("web", overlays.engine_root, bad)
                with pytest.raises(InvalidRequest, match="overlays"):
                    coherence.watch("web", bad, overlays.container_root)
            assert descriptors() == before
            assert coherence.stats()["watched"] == 0
        os.close(directory)
        os.close(file)


@contextmanager
def process() -> Iterator[int]:
    """A pidfd of a process that is killed at the end: a runtime's `create`, or an init."""
    with subprocess.Popen(["sleep", "infinity"]) as running:
        pidfd = os.pidfd_open(running.pid)
        try:
            yield pidfd
        finally:
            os.close(pidfd)
            running.kill()


class TestTheDaemon:
    @pytest.fixture
    def daemon(self, tmp_path: Path) -> Iterator[Serving]:
        name = f"sysfsd-coherence-{os.getpid()}"
        directory = tmp_path / "daemon"
        directory.mkdir()
        (directory / "config.toml").write_text(f'subid-user = "{name}"\n')
        with (
            subordinate_ids(name, containers=3),
            serving(directory, "--config", str(directory / "config.toml")) as running,
        ):
            yield running

    def test_for_as_long_as_the_container_lives(self, daemon: Serving, overlays: Overlays) -> None:
        with process() as init:
            with process() as create:
                daemon.call("reserve", create, id="web")
                daemon.call("watch_root", overlays.engine_root, overlays.container_root, id="web")
                daemon.call("register", init, id="web")
            for name in ("x", "y"):
                assert not (overlays.container / "tmp" / name).exists()
                (overlays.engine / "tmp" / name).write_text("copied in")
                wait.until((overlays.container / "tmp" / name).exists, "the copied file")
            overlays.close()
            assert overlays.upper_is_in_use()
            assert daemon.call("stats")["coherence"]["watched"] == 1
        wait.until(lambda: not overlays.upper_is_in_use(), "the superblocks to go")
        assert daemon.call("stats")["coherence"]["watched"] == 0

    def test_a_container_that_never_came_to_be(self, daemon: Serving, overlays: Overlays) -> None:
        with process() as create:
            daemon.call("reserve", create, id="web")
            daemon.call("watch_root", overlays.engine_root, overlays.container_root, id="web")
            overlays.close()
            assert overlays.upper_is_in_use()
        wait.until(lambda: not overlays.upper_is_in_use(), "the superblocks to go")

    def test_requests_that_make_no_sense(self, daemon: Serving, overlays: Overlays) -> None:
        roots = [overlays.engine_root, overlays.container_root]
        with process() as create:
            with pytest.raises(InvalidRequest, match="after reserve"):
                daemon.call("watch_root", *roots, id="web")
            daemon.call("reserve", create, id="web")
            for fds in ([], roots[:1], [*roots, create]):
                with pytest.raises(InvalidRequest, match="two descriptors"):
                    daemon.call("watch_root", *fds, id="web")
            with pytest.raises(InvalidRequest, match="two overlays"):
                daemon.call("watch_root", roots[0], create, id="web")
            with pytest.raises(InvalidRequest):
                daemon.call("watch_root", *roots, id="../web")
            assert daemon.call("stats")["coherence"]["watched"] == 0
