"""Whatever a container's root writes, wherever it can: the host stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.attached import system_container
from tests.support.wait import patient

if TYPE_CHECKING:
    from tests.support.containers import Container
    from tests.support.daemon import Serving

TREES = (
    "/proc/sys",
    "/sys/module",
    "/sys/kernel/mm",
    "/sys/devices/system",
    "/sys/fs/fuse",
)
"""Of /sys, where there are switches; devices' own attributes are many and change by themselves."""

# Writes every text to every file that opens, and says how many writes there were.
WRITER = """
import json, os, sys
texts = [bytes.fromhex(text) for text in json.load(sys.stdin)]
opened = written = 0
for tree in sys.argv[1:]:
    for directory, _, names in os.walk(tree):
        for name in names:
            for text in texts:
                try:
                    fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_NONBLOCK)
                except OSError:
                    break
                opened += 1
                try:
                    os.write(fd, text)
                    written += 1
                except OSError:
                    pass
                os.close(fd)
print(json.dumps([opened, written]))
"""

FIXED = [b"0", b"1\n", b"-1", b"2147483647", b"4294967296", b"18446744073709551615", b"1 2 3 4",
         b"x", b"\0", b"0x7fffffff", b"9" * 70000, b"/bin/sh", b"|/bin/sh"]  # fmt: skip


def test_the_host_stays_as_it_was(daemon: Serving) -> None:
    with system_container(daemon, "hostile") as box:
        mount_sysfs(box)
        opened, written = 0, 0

        @settings(
            max_examples=6,
            database=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )
        @given(st.lists(st.binary(min_size=1, max_size=30) | numbers, min_size=1, max_size=4))
        def hold(texts: list[bytes]) -> None:
            nonlocal opened, written
            found = write_everywhere(box, texts)
            opened, written = opened + found[0], written + found[1]

        steady = steady_files()
        write_everywhere(box, FIXED)
        hold()
        after = hosts_files()
        assert {path: after.get(path) for path in steady} == steady
        # It is no proof if nothing was written, or little was looked at.
        assert opened > 500
        assert written > 100
        assert len(steady) > 500


numbers = st.integers(-(1 << 65), 1 << 65).map(lambda number: b"%d\n" % number)


def mount_sysfs(box: Container) -> None:
    box.run("mount", "-t", "sysfs", "sysfs", "/sys")


def write_everywhere(box: Container, texts: list[bytes]) -> tuple[int, int]:
    done = subprocess.run(
        [*box.enter(), sys.executable, "-I", "-S", "-c", WRITER, *TREES],
        input=json.dumps([text.hex() for text in texts]),
        capture_output=True,
        text=True,
        check=True,
        timeout=patient(60),
    )
    opened, written = json.loads(done.stdout)
    return opened, written


def steady_files() -> dict[str, bytes]:
    """What of the host's files does not change by itself."""
    first, second, third = hosts_files(), hosts_files(), hosts_files()
    return {
        path: data
        for path, data in first.items()
        if second.get(path) == data == third.get(path) and path not in MOVING
    }


MOVING = {
    "/proc/sys/fs/dentry-state",
    *(f"/proc/sys/fs/quota/{name}" for name in ("syncs", "lookups", "reads", "writes", "drops")),
    "/proc/sys/fs/file-nr",
    "/proc/sys/fs/inode-nr",
    "/proc/sys/fs/inode-state",
    "/proc/sys/fs/aio-nr",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/kernel/pty/nr",
    "/proc/sys/kernel/random/entropy_avail",
    "/proc/sys/net/netfilter/nf_conntrack_count",
    "/proc/sys/fs/quota/syncs",
    # The kernel's own gap: the root of any network namespace switches it on, for all and until the
    # next boot (net/netfilter/nf_hooks_lwtunnel.c: one static key behind each namespace's file).
    "/proc/sys/net/netfilter/nf_hooks_lwtunnel",
}
"""Counters, which may happen to stand still for a moment, and what the kernel doesn't guard."""


def hosts_files() -> dict[str, bytes]:
    found = {}
    for tree in TREES:
        for directory, _, names in os.walk(tree):
            for name in names:
                path = os.path.join(directory, name)
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
                except OSError:
                    continue
                try:
                    # Of /sys what can be written: the rest counts events, or is what there is.
                    if tree == "/proc/sys" or os.fstat(fd).st_mode & 0o222:
                        found[path] = os.read(fd, 1 << 16)
                except OSError:
                    pass
                finally:
                    os.close(fd)
    return found
