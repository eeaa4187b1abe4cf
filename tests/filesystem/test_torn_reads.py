"""Nobody sees a file of two moments, in whatever pieces it is read.

Eight processes read every pinned file of a busy container in pieces of random sizes, while its
numbers move and its limits change. For so many seconds as SYSFSD_TEST_TORN_SECONDS says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.containers import container
from tests.support.daemon import configured
from tests.support.views import EACH, of_this_host
from tests.support.wait import patient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.containers import Container
    from tests.support.daemon import Serving

SECONDS = float(os.environ.get("SYSFSD_TEST_TORN_SECONDS", "8"))
PROCESSES = 8
READER = Path(__file__).parent.parent / "support" / "tornreader.py"

# Uses memory and a CPU in bursts: sizes gain and lose digits all the time.
_BUSY = """
import time
while True:
    for size in (1, 10, 100, 1000, 8000):
        data = bytearray(size << 10)
        until = time.monotonic() + 0.03
        while time.monotonic() < until:
            pass
        del data
"""


@pytest.fixture
def busy() -> Iterator[Container]:
    """A container that does something, whose CPUs stay as many as they are."""
    with (
        container(memory=96 << 20, cpus=0.9, unified=True) as running,
        running.background(sys.executable, "-c", _BUSY),
    ):
        yield running


@pytest.fixture
def eager(tmp_path: Path) -> Iterator[Serving]:
    """A daemon that refreshes as often as it can."""
    with configured(tmp_path, "freshness-ms = 10\ncpu-budget = 64\n") as running:
        yield running
        assert running.stop() == 0


def test_no_read_is_torn(eager: Serving, busy: Container) -> None:
    directory = eager.mountpoint / eager.register("busy", busy.pid)["directory"]
    moving = {view.path for view in EACH if view.moves is not None}
    # Those that move most of the time, and the others, too.
    paths = [
        str(directory / path) for path in of_this_host() for _ in range(20 if path in moving else 1)
    ]
    refreshes = eager.call("stats")["views"]["rendered"]
    with ExitStack() as stack:
        readers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(READER), str(SECONDS), str(seed), *paths],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for seed in range(PROCESSES)
        ]
        limits = stack.enter_context(_changing_limits(busy))
        counts: dict[str, int] = {}
        for each in readers:
            output, error = each.communicate(timeout=patient(SECONDS + 30))
            assert each.returncode == 0, error
            for name, count in json.loads(output).items():
                counts[name] = counts.get(name, 0) + count
        assert limits.poll() is None
    eager.call("release", id="busy")
    counts["refreshes"] = eager.call("stats")["views"]["rendered"] - refreshes
    print(json.dumps(counts))  # how often pieces of a line were of two moments: pytest -s
    # Otherwise nothing was shown.
    assert counts["files"] >= len(set(paths)) * PROCESSES
    assert counts["changed"] > 100
    assert counts["pieced"] > 10
    assert counts["refreshes"] > 100


@contextmanager
def _changing_limits(busy: Container) -> Iterator[subprocess.Popen[bytes]]:
    """Write its limit over and over again meanwhile: in kB it gains and loses a digit.

    In hexadecimal it does not: the size of its block of memory is a file that does not move.
    """
    (path,) = [
        cgroup / name
        for cgroup in busy.cgroups
        for name in ("memory.limit_in_bytes", "memory.max")
        if (cgroup / name).exists()
    ]
    script = (
        "import sys, time\n"
        "while True:\n"
        "    for size in (96 << 20, 250 << 20):\n"
        "        open(sys.argv[1], 'w').write(str(size))\n"
        "        time.sleep(0.07)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)]) as process:
        try:
            yield process
        finally:
            process.kill()
