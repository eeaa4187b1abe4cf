"""Command lines that engines really call a runtime with."""

from __future__ import annotations

import os

import pytest

from sysfsd.errors import Refused, UsageError
from sysfsd.runtime.arguments import CommandLine

SHIM_CREATE = (
    "--root /run/containerd/runc/moby --log /run/b/log.json --log-format json "
    "create --bundle /run/b --pid-file /run/b/init.pid --console-socket /tmp/pty.sock abc123"
).split()


def test_our_flags_are_taken_out_and_everything_else_is_passed() -> None:
    line = CommandLine(["--control", "/s", "--config=/c", *SHIM_CREATE])

    assert line.ours == {"control": "/s", "config": "/c"}
    assert line.subcommand == "create"
    assert line.flag("bundle") == "/run/b"
    assert line.operands == ["abc123"]
    assert line.shared["log"] == "/run/b/log.json"


def test_a_policy_is_ours() -> None:
    line = CommandLine(["--cpu-policy", "pin", "--memory-high=ignore", *SHIM_CREATE])

    assert line.ours == {"cpu-policy": "pin", "memory-high": "ignore"}
    assert not any("policy" in word or "memory-high" in word for word in line.passed)


def test_the_runtime_gets_what_we_understood_and_its_bundle_as_working_directory() -> None:
    """runc and crun read ``-b=x`` and repeated flags differently, each other and us."""
    line = CommandLine(["create", "-b=/run/b", "--pid-file=pid", "--preserve-fds", "2", "-d", "x"])

    assert line.flag("bundle") == "/run/b"
    assert line.passed == [
        "create",
        *("--pid-file", os.path.abspath("pid")),
        *("--preserve-fds", "2", "--detach", "x"),
    ]
    assert not {"--bundle", "/run/b"} & set(CommandLine(SHIM_CREATE).passed)


def test_other_subcommands_are_passed_as_they_are() -> None:
    words = ["--root", "/r", "kill", "--all", "x", "9"]

    assert CommandLine(words).passed == words


def test_a_value_that_looks_like_a_subcommand() -> None:
    line = CommandLine(["--root", "create", "--log=run", "start", "--bundle", "create", "x"])

    assert line.subcommand == "start"


@pytest.mark.parametrize(
    "words", [["-b", "/x", "id"], ["-b=/x", "id"], ["--bundle=/x", "id"], ["-bundle", "/x", "id"]]
)
def test_every_spelling_of_the_bundle(words: list[str]) -> None:
    line = CommandLine(["create", *words])

    assert line.flag("bundle") == "/x"
    assert line.operands == ["id"]


def test_what_follows_the_container_belongs_to_the_command() -> None:
    line = CommandLine(["exec", "-t", "--user", "7", "web", "sh", "--bundle", "-p"])

    assert line.flags == {"t": "", "user": "7"}
    assert line.operands == ["web", "sh", "--bundle", "-p"]


def test_position_is_where_the_subcommands_arguments_start() -> None:
    line = CommandLine(["--control", "/s", "--debug", "exec", "web", "id"])

    assert line.passed[line.position :] == ["web", "id"]


@pytest.mark.parametrize("words", [[], ["--version"], ["--help"], ["state", "x"]])
def test_command_lines_that_are_none_of_our_business(words: list[str]) -> None:
    assert words == CommandLine(words).passed


def test_a_flag_without_its_value() -> None:
    with pytest.raises(UsageError, match="--control needs a value"):
        CommandLine(["--control"])


@pytest.mark.parametrize(
    "words",
    [
        ["--newer", "value", "create", "--bundle", "/b", "x"],
        ["create", "--newer", "value", "--bundle", "/b", "x"],
        ["create", "--bundle", "/b", "--config", "/other.json", "x"],
        ["create", "-f", "/other.json", "x"],
        ["run", "--bundle", "/b"],
        ["create", "x", "--bundle", "/b"],
        ["invent", "x"],
        ["run", "--help=false", "--bundle", "/b", "x"],
        ["run", "-h=0", "x"],
        ["--debug=false", "run", "x"],
        ["run", "--bundle", "/good", "-b", "/evil", "x"],
        ["run", "--bundle", "/good", "--bundle=/evil", "x"],
        ["--root", "/a", "--root", "/b", "run", "x"],
        ["run", "--no-pivot", "x"],
    ],
    ids=" ".join,
)
def test_what_we_might_misread_is_never_handed_on(words: list[str]) -> None:
    """The real runtime would start a container that nobody edited."""
    with pytest.raises(UsageError):
        CommandLine(words)


def test_restore_would_start_what_nobody_edited() -> None:
    with pytest.raises(Refused, match="checkpoint"):
        CommandLine(["restore", "--image-path", "/i", "x"])
