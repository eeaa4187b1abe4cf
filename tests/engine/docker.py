"""The docker command, with a deadline on every call."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.wait import patient, until

if TYPE_CHECKING:
    from collections.abc import Sequence

CALL = 60.0
"""Seconds that any docker command may take: a deadline, not an expectation."""


_CLI = "/usr/bin/docker" if os.access("/usr/bin/docker", os.X_OK) else "docker"
"""The distribution's: it belongs to the engine that the tests start."""


class DockerFailed(AssertionError):  # noqa: N818 - named for what happened
    """The docker command exited with an error; ``output`` is what it said."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(command)}: exit status {status}\n{output}")
        self.status = status
        self.output = output


@dataclass(frozen=True)
class Docker:
    """An engine, reached over its unix socket; ``prefix`` is put before ``docker`` to go inside."""

    socket: str
    prefix: tuple[str, ...] = ()
    program: str = _CLI

    def __call__(self, *arguments: str, stdin: bytes | None = None, deadline: float = CALL) -> str:
        """Run ``docker ARGUMENTS`` and return its stdout, stripped.

        Raises ``DockerFailed`` when it fails.
        """
        done = self.attempt(*arguments, stdin=stdin, deadline=deadline)
        if done.returncode != 0:
            raise DockerFailed(
                ("docker", *arguments),
                done.returncode,
                (done.stdout + done.stderr).decode(errors="replace"),
            )
        return done.stdout.decode(errors="replace").strip()

    def attempt(
        self, *arguments: str, stdin: bytes | None = None, deadline: float = CALL
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``docker ARGUMENTS``, whatever comes of it."""
        return subprocess.run(
            [*self.prefix, self.program, "--host", f"unix://{self.socket}", *arguments],
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=patient(deadline),
            check=False,
        )

    def refused(self, *arguments: str, deadline: float = CALL) -> str:
        """Run a docker command that must fail, and return what it said."""
        done = self.attempt(*arguments, deadline=deadline)
        output = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode != 0, f"docker {' '.join(arguments)} succeeded: {output}"
        return output

    def exec(self, container: str, *command: str, stdin: bytes | None = None) -> str:
        """Run a command in a container as its root and return its stdout, stripped."""
        options = ["-i"] if stdin is not None else []
        return self("exec", *options, container, *command, stdin=stdin)

    def shell(self, container: str, script: str) -> str:
        """Run a shell script in a container as its root and return its stdout, stripped."""
        return self("exec", container, "sh", "-c", script)

    def inspect(self, name: str) -> dict[str, Any]:
        """Return the engine's own record of a container."""
        record: dict[str, Any] = json.loads(self("inspect", "--type=container", name))[0]
        return record

    def pid(self, name: str) -> int:
        """Return the host pid of a running container's first process."""
        pid = self.inspect(name)["State"]["Pid"]
        assert isinstance(pid, int)
        assert pid > 0, f"{name} does not run"
        return pid

    def inside(self, container: str) -> Docker:
        """Return the engine inside a container, by way of its own docker command."""
        outer = (self.program, "--host", f"unix://{self.socket}", "exec", "-i", container)
        return Docker("/var/run/docker.sock", prefix=(*self.prefix, *outer), program="docker")

    def wait_for_engine(self, *, deadline: float = 60.0) -> None:
        """Wait until the engine answers."""

        def answers() -> bool:
            return self.attempt("version", deadline=deadline).returncode == 0

        until(answers, f"an answer of the engine at {self.socket}", deadline=deadline)
