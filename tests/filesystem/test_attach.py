"""Attaching as the hook does it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.daemon import sysfsd

if TYPE_CHECKING:
    from tests.support.containers import Container
    from tests.support.daemon import Serving

_SOURCES = Path(__file__).parent.parent.parent

# Time runs out at any moment. Whatever comes of it, the process must be home again: a module that
# it imports then must not be the container's.
_INTERRUPTED = """
import os, random, signal, sys, traceback
from sysfsd.attach import attach, detach
from sysfsd.control.client import Client

def ring(number, frame):
    raise TimeoutError

signal.signal(signal.SIGALRM, ring)
control, pid = sys.argv[1], int(sys.argv[2])
init = os.pidfd_open(pid)
home = os.stat("/proc/self/ns/mnt").st_ino
rung = 0
with Client(control) as client:
    hello = client.call("hello", {})
    daemon, mountpoint = os.pidfd_open(hello["pid"]), hello["mountpoint"]
    registered = client.call("register", {"id": "box"}, [init])
    subtree, views = os.path.join(mountpoint, registered["directory"]), registered["views"]
    files, added = registered["binds"], registered["additions"]
    fuse = [each["directory"] for each in files.values() if each["magic"] == 0x65735546]
    devices = {os.stat(directory).st_dev for directory in (mountpoint, *fuse)}
    def once():
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.004))
            attach(
                daemon=daemon, subtree=subtree, views=views, binds=files, additions=added, init=init
            )
            detach(
                devices=devices, subtree=subtree, views=views, bound={}, additions=added, init=init
            )
            signal.setitimer(signal.ITIMER_REAL, 0)
        except TimeoutError:
            return 1
        return 0

    for _ in range(200):
        # Each in a process of its own, as a hook is: whose turn it was ends with the process.
        child = os.fork()
        if child == 0:
            status = 2
            try:
                random.seed()
                status = once()
                assert os.stat("/proc/self/ns/mnt").st_ino == home
            except BaseException:
                traceback.print_exc()
                status = 2
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in {0, 1}, status
        rung += status
    attach(daemon=daemon, subtree=subtree, views=views, binds=files, additions=added, init=init)
print(rung)
"""


def test_time_running_out_never_leaves_it_in_the_container(daemon: Serving, box: Container) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, daemon.control, str(box.pid)],
        cwd=_SOURCES,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert box.run("head", "-1", "/proc/meminfo").split()[1] == str(96 << 10)


# As many mounts over a view as its root cares to make, each of the view itself.
_LAYERS = """
import sys
from sysfsd.kernel import syscalls
for _ in range(int(sys.argv[1])):
    syscalls.mount("/proc/uptime", "/proc/uptime", None, syscalls.MS_BIND, None)
"""


def test_a_container_that_covers_its_views_over_and_over_holds_nobody_up(
    daemon: Serving, box: Container
) -> None:
    assert sysfsd("attach", str(box.pid), control=daemon.control).returncode == 0
    subprocess.run(
        ["nsenter", f"--mount=/proc/{box.pid}/ns/mnt", sys.executable, "-c", _LAYERS, "100"],
        env=os.environ | {"PYTHONPATH": str(_SOURCES)},
        check=True,
        timeout=60,
    )
    given_up = sysfsd("detach", str(box.pid), control=daemon.control)
    assert given_up.returncode == 1
    assert "/proc/uptime of the container is covered more than 64 times" in given_up.stderr
    # What there is left is taken off the next time.
    done = sysfsd("detach", str(box.pid), control=daemon.control)
    assert done.returncode == 0, done.stderr
    assert "/proc/uptime" not in box.run("cat", "/proc/self/mountinfo")
