"""sysfsd-hook as a program: good states from real runtimes, and everything else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.throwaway import installed
from tests.support.bundles import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.throwaway import Daemon
    from tests.runtime.conftest import Runtime
    from tests.support.bundles import Bundle

PATIENCE = 10
"""Seconds after which a hook that should have given up by itself counts as hung."""


def state(**changes: Any) -> bytes:
    document = {"ociVersion": "1.0.2", "id": "x", "status": "creating", "pid": os.getpid()}
    return json.dumps({**document, "bundle": "/nowhere", "root": "/", **changes}).encode()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("stage", ["createRuntime", "prestart"])
@pytest.mark.parametrize("control", ["flag", "environment"])
def test_an_ordinary_container_gets_its_views(
    runtime: Runtime, new_bundle: Callable[..., Bundle], stage: str, control: str
) -> None:
    """The hook alone, under the plain runtime: as from Podman's hooks.d."""
    bundle = new_bundle("cat", "/proc/meminfo", memory=64 << 20)
    hook: dict[str, Any] = {"path": installed("sysfsd-hook"), "args": ["sysfsd-hook"], "env": []}
    if control == "flag":
        hook["args"] += ["--control", runtime.daemon.control]
    else:
        hook["env"] = [f"SYSFSD_CONTROL={runtime.daemon.control}"]
    bundle.spec["hooks"] = {stage: [{**hook, "env": [*hook["env"], "PATH=/usr/bin:/bin"]}]}
    bundle.save()
    done = run(runtime.plain("run", "--bundle", str(bundle.path), bundle.path.name))

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["MemTotal:", "65536", "kB"]


BAD_INPUT = {
    "empty": b"",
    "not JSON": b"container",
    "truncated": state()[:-9],
    "no object": b"[]",
    "no id": state(id=None),
    "an id that is a path": state(id="../../etc"),
    "pid 0": state(pid=0),
    "huge": b" " * (2 << 20),
    "deep": b"[" * 500_000,
    "not UTF-8": b'{"id": "\xff"}',
}


@pytest.mark.parametrize("data", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input(daemon: Daemon, data: bytes) -> None:
    done = run(
        [installed("sysfsd-hook"), "--control", daemon.control], stdin=data, timeout=PATIENCE
    )

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("sysfsd-hook: ")


def test_a_dead_process(daemon: Daemon) -> None:
    command = [installed("sysfsd-hook"), "--control", daemon.control]
    done = run(command, stdin=state(pid=dead_pid()), timeout=PATIENCE)

    assert done.returncode == 1
    assert "is gone" in done.stderr


def test_no_daemon(tmp_path: Path) -> None:
    command = [installed("sysfsd-hook"), "--control", str(tmp_path / "nobody.sock")]
    done = run(command, stdin=state(), timeout=PATIENCE)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "systemctl start sysfsd" in line


@pytest.mark.parametrize("behaviour", ["silent", "garbage", "hangs up"])
def test_a_daemon_that_is_not_well(tmp_path: Path, behaviour: str) -> None:
    path = str(tmp_path / "c.sock")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen()
        hook = subprocess.Popen(
            [installed("sysfsd-hook"), "--control", path],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stack.callback(hook.kill)
        assert hook.stdin is not None
        hook.stdin.write(state())
        hook.stdin.close()
        hook.stdin = None
        listener.settimeout(PATIENCE)
        connection = stack.enter_context(listener.accept()[0])
        if behaviour == "garbage":
            connection.sendall(b"\0\xff\n")
        elif behaviour == "hangs up":
            connection.close()
        _, error = hook.communicate(timeout=PATIENCE)

    assert hook.returncode == 1
    assert len(error.splitlines()) == 1


def test_a_runtime_that_never_closes_stdin(daemon: Daemon) -> None:
    with subprocess.Popen(
        [installed("sysfsd-hook"), "--control", daemon.control],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as hook:
        assert hook.stderr is not None
        try:
            assert hook.wait(PATIENCE) == 1
        finally:
            hook.kill()
        assert b"not done within" in hook.stderr.read()


def test_starts_without_views_if_the_administrator_says_so(
    runtime: Runtime, new_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    config = tmp_path / "sysfsd.toml"
    config.write_text('on-failure = "continue"\n')
    bundle = new_bundle("cat", "/proc/meminfo", memory=64 << 20)
    nobody = str(tmp_path / "nobody.sock")
    hook = {
        "path": installed("sysfsd-hook"),
        "args": ["sysfsd-hook", "--control", nobody, "--config", str(config)],
        "env": ["PATH=/usr/bin:/bin"],
    }
    bundle.spec["hooks"] = {"createRuntime": [hook]}
    bundle.save()
    done = run(runtime.plain("run", "--bundle", str(bundle.path), bundle.path.name))

    assert done.returncode == 0, done.stderr
    with open("/proc/meminfo", encoding="ascii") as host:
        assert done.stdout.splitlines()[0] == host.readline().rstrip("\n")


def test_says_so_when_it_lets_a_container_start_without_views(tmp_path: Path) -> None:
    config = tmp_path / "sysfsd.toml"
    config.write_text('on-failure = "continue"\n')
    command = [installed("sysfsd-hook"), "--config", str(config), "--control", "/nobody"]
    done = run(command, stdin=state(), timeout=PATIENCE)

    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "kernel's own files" in line


def test_usage() -> None:
    done = run([installed("sysfsd-hook"), "--unknown"])

    assert done.returncode == 2
    assert "usage:" in done.stderr
