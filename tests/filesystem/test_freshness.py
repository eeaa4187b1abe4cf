"""How old pinned files get: limits are pushed, and time that we take is bounded."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sysfsd.kernel.procfs import parse_cpu_list
from tests.support.attached import attach
from tests.support.containers import container
from tests.support.daemon import configured
from tests.support.wait import until

if TYPE_CHECKING:
    from tests.support.containers import Container

CPU = "sys/devices/system/cpu"


def set_cpus(box: Container, count: int) -> None:
    (cgroup,) = [each for each in box.cgroups if "cpu" in each.parent.name.split(",")] or [
        each for each in box.cgroups if (each / "cpu.max").exists()
    ]
    if (cgroup / "cpu.max").exists():
        (cgroup / "cpu.max").write_text(f"{count * 100000} 100000")
    else:
        (cgroup / "cpu.cfs_quota_us").write_text(str(count * 100000))


def in_stat(directory: Path) -> int:
    lines = (directory / "proc/stat").read_text().splitlines()
    return sum(line.startswith("cpu") for line in lines) - 1


def elsewhere(directory: Path) -> dict[str, int]:
    """How many CPUs the other files show."""
    read = {name: (directory / name).read_text() for name in ("proc/cpuinfo", f"{CPU}/online")}
    return {
        "cpuinfo": read["proc/cpuinfo"].count("processor"),
        "online": len(parse_cpu_list(read[f"{CPU}/online"])),
        "package": len(
            parse_cpu_list((directory / CPU / "cpu0/topology/core_siblings_list").read_text())
        ),
        "directories": len([name for name in os.listdir(directory / CPU) if name[3:].isdigit()]),
    }


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs")
def test_changed_limits_are_pushed(tmp_path: Path) -> None:
    """Files that live for a minute, and nobody waits so long: all agree with one that is fresh."""
    with (
        configured(tmp_path, "limits-freshness-ms = 60000\nfreshness-ms = 20\n") as daemon,
        container(memory=96 << 20, cpus=1) as box,
    ):
        web = daemon.mountpoint / daemon.register("web", box.pid)["directory"]
        block = web / "sys/devices/system/memory/block_size_bytes"
        assert block.read_text() == f"{96 << 20:x}\n"
        for count in (2, 1) * 10:
            before = in_stat(web)
            assert elsewhere(web) == dict.fromkeys(elsewhere(web), before)
            set_cpus(box, count)
            until(lambda count=count: in_stat(web) == count, "another CPU")  # type: ignore[misc]
            assert elsewhere(web) == dict.fromkeys(elsewhere(web), count)
        # Here nothing else is read: somebody has to tell.
        (limit,) = [
            cgroup / name
            for cgroup in box.cgroups
            for name in ("memory.limit_in_bytes", "memory.max")
            if (cgroup / name).exists()
        ]
        limit.write_text(str(80 << 20))
        until(lambda: block.read_text() == f"{80 << 20:x}\n", "the new size")
        stats = daemon.call("stats")["limits"]
        assert stats["watches"] > 0
        assert stats["pushed"] > 0
        assert stats["failed"] == 0
        # Written, but not changed.
        events = stats["events"]
        limit.write_text(str(80 << 20))
        until(lambda: daemon.call("stats")["limits"]["events"] > events, "the event")
        daemon.call("release", id="web")
        assert daemon.call("stats")["limits"]["watches"] == 0
        assert daemon.stop() == 0


def test_many_files_are_pushed_bit_by_bit(tmp_path: Path) -> None:
    """Nobody waits for the kernel while it waits for us: readers go on, and so does the daemon."""
    with (
        configured(tmp_path, "limits-freshness-ms = 60000\n") as daemon,
        container(memory=96 << 20, unified=True) as box,
        ExitStack() as stack,
    ):
        directories = [
            daemon.mountpoint / daemon.register(f"web{number}", box.pid)["directory"]
            for number in range(20)
        ]
        script = (
            "import os, sys\n"
            "paths = [os.path.join(d, n) for t in sys.argv[1:] for d, _, f in os.walk(t)"
            " for n in f if not d.endswith('/sys/kernel')]\n"
            "while True:\n"
            "    for path in paths:\n"
            "        try: open(path, 'rb').read()\n"
            "        except OSError: pass\n"
        )
        for half in (directories[:10], directories[10:]):
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", script, *map(str, half)])
            )
            stack.callback(process.kill)
        blocks = [each / "sys/devices/system/memory/block_size_bytes" for each in directories]
        (limit,) = [
            cgroup / name
            for cgroup in box.cgroups
            for name in ("memory.limit_in_bytes", "memory.max")
            if (cgroup / name).exists()
        ]
        for mebibytes in (80, 90, 100, 110):
            limit.write_text(str(mebibytes << 20))
            text = f"{mebibytes << 20:x}\n"
            until(
                lambda text=text: all(block.read_text() == text for block in blocks),  # type: ignore[misc]
                "all of them",
            )
        assert daemon.call("stats")["limits"]["failed"] == 0


_HAMMER = """
import os, sys
fds = [os.open(path, os.O_RDONLY) for path in sys.argv[1:]]
while True:
    for fd in fds:
        os.pread(fd, 65536, 0)
"""


def test_a_small_budget_stretches_lives_under_load(tmp_path: Path) -> None:
    def freshness() -> dict[str, Any]:
        answer: dict[str, Any] = daemon.call("stats")["freshness"]
        return answer

    with (
        configured(tmp_path, "cpu-budget = 0.02\n") as daemon,
        container(memory=96 << 20, cpus=1) as box,
    ):
        web = daemon.mountpoint / daemon.register("web", box.pid)["directory"]
        paths = [str(web / f"proc/{name}") for name in ("stat", "meminfo", "vmstat", "uptime")]
        assert freshness()["cpu_budget"] == 0.02
        with subprocess.Popen([sys.executable, "-c", _HAMMER, *paths]) as process:
            try:
                until(lambda: freshness()["moving_ms"] > 100, "longer lives")
                assert freshness()["moving_ms"] <= 1000
            finally:
                process.kill()
        # Asking costs something, too: seldom enough not to.
        until(lambda: freshness()["stretch"] == 1, "short lives again", interval=0.5)
        assert (web / "proc/uptime").read_bytes()


_SYSCTLS = """
import os, sys
fds = [os.open(path, os.O_RDONLY) for path in sys.argv[1:]]
while True:
    for fd in fds:
        assert os.pread(fd, 100, 0)
"""


def test_who_reads_sysctls_all_the_time_waits_and_others_do_not(tmp_path: Path) -> None:
    """What is exact does not get old, but is made within the budget."""
    swappiness, maps = "/proc/sys/vm/swappiness", "/proc/sys/vm/max_map_count"
    with (
        configured(tmp_path, "cpu-budget = 0.2\n") as daemon,
        container(isolated=True) as busy,
        container(isolated=True) as other,
    ):
        for name, box in (("busy", busy), ("other", other)):
            attach(daemon, name, box)
        with busy.background(sys.executable, "-c", _SYSCTLS, swappiness, maps) as pid:
            until(lambda: daemon.call("stats")["channel"]["held"] > 100, "some waiting")
            for number in range(20):
                for box in (busy, other):
                    box.run("sh", "-c", f"echo {number} >{swappiness}")
                    assert box.run("cat", swappiness) == f"{number}\n"
            assert Path(f"/proc/{pid}").exists()

        def waits_for_nothing() -> bool:
            before = daemon.call("stats")["channel"]["held"]
            other.run("cat", swappiness)
            return bool(daemon.call("stats")["channel"]["held"] == before)

        # On a slow machine one cat may take more than this little budget has in a window.
        until(waits_for_nothing, "a read that does not wait")
