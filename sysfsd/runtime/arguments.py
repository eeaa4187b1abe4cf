"""The command line of an OCI runtime, as far as we must understand it.

Flags, subcommands and their spelling are runc's (opencontainers/runc, man/), which crun follows.
Both accept ``--flag value`` and ``--flag=value``, and runc a single dash as well. What is not ours
is handed on untouched.

Whatever is not understood for certain is refused. A flag taken for a switch while it has a value
would make us read the wrong subcommand or bundle, and the real runtime would start, unedited, a
container whose root is the host's.
"""

from __future__ import annotations

import os

from sysfsd.errors import Refused, UsageError
from sysfsd.policy import SETTINGS

OUR_FLAGS = frozenset({"control", "config", *SETTINGS})

_HELP = frozenset({"help", "h", "?", "usage"})
_GLOBAL_SWITCHES = _HELP | {"debug", "systemd-cgroup", "version", "v", "V"}
_GLOBAL_WITH_VALUE = frozenset(
    {"root", "log", "log-format", "log-level", "criu", "rootless", "cgroup-manager"}
)
_CREATE_SWITCHES = _HELP | {
    "detach", "d", "keep", "no-mount-fallback", "no-new-keyring", "no-subreaper",
}  # fmt: skip
_CREATE_WITH_VALUE = frozenset(
    {"bundle", "b", "console-socket", "pid-file", "pidfd-socket", "preserve-fds"}
)
_EXEC_WITH_VALUE = frozenset(
    {
        "additional-gids", "apparmor", "cap", "c", "cgroup", "console-socket", "cwd", "env", "e",
        "g", "pid-file", "pidfd-socket", "preserve-fds", "process", "p", "process-label", "user",
        "u",
    }
)  # fmt: skip

_LONG = {"b": "bundle", "d": "detach"}
_PATHS = frozenset({"root", "log", "console-socket", "pid-file", "pidfd-socket"})
"""Values that start at the caller's working directory."""

_HANDED_ON = frozenset(
    "checkpoint create delete events exec features help h kill list pause ps resume run spec start "
    "state update".split()
)
"""Subcommands of runc and crun that make no container, or that we prepare."""


class CommandLine:
    """A runtime's command line, taken apart.

    ``ours`` are the flags that only sysfsd-runc knows, ``shared`` the real runtime's own global
    ones, ``flags`` those of the subcommand (by their long or short name, without dashes) and
    ``operands`` the rest: the container's id first. ``passed`` is what the real runtime gets, and
    ``position`` where its subcommand's own arguments start in there.

    For ``create`` and ``run``, ``passed`` is written anew from what was understood, and without the
    bundle, which is then the working directory: runc and crun differ in how they read ``-b=x``, or
    a flag that is given twice, and must not find another bundle than we did.
    """

    __slots__ = ("flags", "operands", "ours", "passed", "position", "shared", "subcommand")

    def __init__(self, arguments: list[str]) -> None:
        """Parse; raises ``UsageError`` for what we don't know, ``Refused`` for what we don't do."""
        self.ours: dict[str, str] = {}
        self.shared: dict[str, str] = {}
        self.passed: list[str] = []
        self.subcommand = ""
        self.flags: dict[str, str] = {}
        self.operands: list[str] = []
        at = self._global_flags(arguments)
        self.position = len(self.passed)
        self.passed += arguments[at:]
        if self.subcommand in {"create", "run"}:
            self._subcommand_flags(arguments[at:], _CREATE_WITH_VALUE, _CREATE_SWITCHES)
            if not self.asks_for_help:
                if len(self.operands) != 1:
                    raise UsageError(f"{self.subcommand} takes one container id after its flags")
                self.passed[self.position :] = [*self._create_flags(), *self.operands]
        elif self.subcommand == "exec":
            self._subcommand_flags(arguments[at:], _EXEC_WITH_VALUE, None)
        elif self.subcommand == "restore":
            raise Refused("a system container can't be restored from a checkpoint: run it anew")
        elif self.subcommand and self.subcommand not in _HANDED_ON:
            raise UsageError(f"unknown subcommand {self.subcommand!r}")

    @property
    def asks_for_help(self) -> bool:
        """Whether a subcommand is only asked what it does."""
        return not _HELP.isdisjoint(self.flags)

    def flag(self, *names: str) -> str | None:
        """Value of the first of these subcommand flags that was given."""
        return next((self.flags[name] for name in names if name in self.flags), None)

    def _global_flags(self, arguments: list[str]) -> int:
        at = 0
        while at < len(arguments):
            argument = arguments[at]
            at += 1
            if not argument.startswith("-"):
                self.subcommand = argument
                self.passed.append(argument)
                break
            name, equals, value = _flag(argument)
            takes_value = name in OUR_FLAGS or name in _GLOBAL_WITH_VALUE
            if not takes_value and (name not in _GLOBAL_SWITCHES or equals):
                raise UsageError(f"unknown flag {argument}")
            if takes_value and not equals:
                if at == len(arguments):
                    raise UsageError(f"{argument} needs a value")
                value = arguments[at]
                at += 1
            if name in self.ours or name in self.shared:
                raise UsageError(f"{argument} is given twice")
            if name in OUR_FLAGS:
                self.ours[name] = value
                continue
            value = _from_here(name, value)
            self.shared[name] = value
            self.passed += [f"--{name}", value] if takes_value else [argument]
        return at

    def _subcommand_flags(
        self, arguments: list[str], with_value: frozenset[str], switches: frozenset[str] | None
    ) -> None:
        rest = iter(arguments)
        for argument in rest:
            if argument == "--" or not argument.startswith("-") or argument == "-":
                # The first operand ends the flags: what follows `exec ID` is the command's.
                self.operands = [*([] if argument == "--" else [argument]), *rest]
                return
            name, equals, value = _flag(argument)
            if name in with_value and not equals:
                value = next(rest, "")
            elif (
                switches is not None and name not in with_value and (name not in switches or equals)
            ):
                raise UsageError(f"unknown flag {argument} of {self.subcommand}")
            name = name if switches is None else _LONG.get(name, name)
            if switches is not None and name in self.flags:
                raise UsageError(f"{argument} is given twice")
            self.flags[name] = value

    def _create_flags(self) -> list[str]:
        words = []
        for name, value in self.flags.items():
            if name in _CREATE_SWITCHES:
                words.append(f"--{name}")
            elif name != "bundle":
                words += [f"--{name}", _from_here(name, value)]
        return words


def _from_here(name: str, value: str) -> str:
    # crun's --log may be "journald:NAME" or "file:PATH".
    if name not in _PATHS or ":" in value.partition("/")[0]:
        return value
    return os.path.abspath(value)


def _flag(argument: str) -> tuple[str, str, str]:
    name, equals, value = argument.partition("=")
    return name.lstrip("-"), equals, value
