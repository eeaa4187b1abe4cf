"""What the running kernel lets a container's root write: asked, not guessed from its version.

A process makes itself namespaces as a container has them, becomes their root, who is nobody on the
host, and tries to open every file for writing; nothing is written. ``/proc/sys`` answers by the
namespaces of the task that asks (``fs/proc/proc_sysctl.c``), so that no mount has to be made for
it.

In a process of its own: a user namespace is for those with one thread, and ours is to stay where
it is. Its part of this module runs with the standard library alone.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from enum import Enum
from typing import TYPE_CHECKING

from sysfsd.errors import SysfsdError
from sysfsd.kernel import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sysfsd.sysctls.node import Sysctl

_SECONDS = 20
_NOBODY = 65534
"""Whoever it is on the host: not its root."""

_PROBE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from sysfsd.sysctls import probe
probe.main()
"""
_PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class State(Enum):
    """What becomes of a node."""

    NATIVE = "native"
    """The kernel lets a container's root write it: so it is left to the kernel."""
    EMULATED = "emulated"
    ADDED = "added"
    """The host has it, a container lacks it, and gets it from us (`ADDABLE`, `PASSED_ON`)."""
    HIDDEN = "hidden"
    """The host has it, and a container lacks it. Where it would be, names come and go with modules,
    or are very many: it is not added."""
    ABSENT = "absent"
    """This kernel has no such file, or not without a module."""


ADDABLE = ("proc/sys/net/core", "proc/sys/net/ipv4/vs")
"""Directories in which a network namespace has the same few names for as long as it lives: they
are covered, and have the kernel's own files as well as ours (`sysfsd.additions`)."""

PASSED_ON = ("proc/sys/net/ipv4/neigh", "proc/sys/net/ipv6/neigh")
"""Directories in which names come and go with network interfaces, but for ``default``, which only
the host's network has: they are ours, and all else in them is the kernel's as before
(`filesystem.interfaces`)."""


def probe(paths: Iterable[str]) -> dict[str, State]:
    """Find out about files, as absolute paths without the leading slash.

    Raises ``SysfsdError`` if this host makes no such namespaces.
    """
    # -I and no -S: the package itself may be in site-packages.
    command = [sys.executable, "-I", "-c", _PROBE, _PACKAGES]
    paths = list(paths)
    try:
        # A session of its own, so that all of its processes can be ended: the innermost is the init
        # of a pid namespace, and holds our pipes.
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            try:
                out, said = process.communicate(
                    json.dumps([*paths, *ADDABLE, *PASSED_ON]).encode(), _SECONDS
                )
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if process.returncode:
            raise ValueError(said.decode("utf-8", "replace").strip().rpartition("\n")[2])
        found = {path: State(state) for path, state in json.loads(out).items()}
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        raise SysfsdError(
            f"no namespaces can be made here to ask the kernel about sysctls ({error}); "
            "see sysctl user.max_user_namespaces: containers keep the kernel's own sysctls"
        ) from None
    return {path: _with_host(path, found) for path in paths}


def _with_host(path: str, found: Mapping[str, State]) -> State:
    """Say more of what a container lacks."""
    if found[path] is not State.ABSENT or not os.path.lexists(f"/{path}"):
        return found[path]
    directory = os.path.dirname(path)
    ours = passed_on(path) or (directory if directory in ADDABLE else None)
    # A directory can't be opened for writing, but it is there.
    there = ours is not None and found[ours] is not State.ABSENT
    return State.ADDED if there else State.HIDDEN


def passed_on(path: str) -> str | None:
    """Return the directory of `PASSED_ON` in which a file is to be added; else None."""
    directory, name = os.path.split(os.path.dirname(path))
    return directory if name == "default" and directory in PASSED_ON else None


def fate(node: Sysctl, states: Mapping[str, State]) -> State:
    """Return what becomes of a node, given what `probe` found."""
    found = states[node.path]
    return State.EMULATED if node.always and found is State.NATIVE else found


def emulated(nodes: Sequence[Sysctl], states: Mapping[str, State]) -> list[Sysctl]:
    """Return the nodes to emulate; those that nobody was asked about are not."""
    ours = {State.EMULATED, State.ADDED}
    return [node for node in nodes if node.path in states and fate(node, states) in ours]


def main() -> None:
    """Be the process: paths as JSON on stdin, what is with them on stdout."""
    paths = json.load(sys.stdin)
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        syscalls.unshare(
            syscalls.CLONE_NEWUSER
            | syscalls.CLONE_NEWNET
            | syscalls.CLONE_NEWIPC
            | syscalls.CLONE_NEWUTS
            | syscalls.CLONE_NEWPID
        )
        os.close(go[1])
        os.write(ready[1], b"!")
        if os.read(go[0], 1):
            _look_inside(paths)
        os._exit(1)
    os.close(ready[1])
    if os.read(ready[0], 1):  # else it has said why not
        # By root and not by itself: distributions keep user namespaces from the unprivileged.
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{name}", "w", encoding="ascii") as file:
                file.write(f"0 {_NOBODY} 1")
        os.write(go[1], b"!")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)


def _look_inside(paths: Sequence[str]) -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    child = os.fork()  # the pid namespace is for children
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    json.dump({path: _look(f"/{path}").value for path in paths}, sys.stdout)
    sys.stdout.flush()
    os._exit(0)


def _look(path: str) -> State:
    try:
        # sysfs gives nobody but its owner a place to look: that a file is there is what counts.
        os.close(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        gone = {errno.ENOENT, errno.ENOTDIR}
        return State.ABSENT if error.errno in gone else State.EMULATED
    return State.NATIVE
