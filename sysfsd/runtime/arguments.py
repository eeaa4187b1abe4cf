"""The command line of an OCI runtime, as far as we must understand it.

Flags, subcommands and their spelling are runc's (opencontainers/runc, man/), which crun follows.
Both accept ``--flag value`` and ``--flag=value``, and runc a single dash as well. What is not ours
is handed on untouched.
"""

from __future__ import annotations

from sysfsd.errors import UsageError

OUR_FLAGS = frozenset({"control", "config"})
_GLOBAL_FLAGS_WITH_VALUE = frozenset(
    {"root", "log", "log-format", "log-level", "criu", "rootless", "cgroup-manager"}
)
_FLAGS_WITH_VALUE = {
    "create": frozenset(
        {"bundle", "b", "console-socket", "pid-file", "preserve-fds", "config", "f", "pidfd-socket"}
    ),
    "exec": frozenset(
        {
            "process", "p", "console-socket", "cwd", "env", "e", "user", "u", "additional-gids",
            "g", "pid-file", "process-label", "apparmor", "cap", "c", "preserve-fds", "cgroup",
        }
    ),
}  # fmt: skip
_FLAGS_WITH_VALUE["run"] = _FLAGS_WITH_VALUE["create"]


class CommandLine:
    """A runtime's command line, taken apart.

    ``ours`` are the flags that only sysfsd-runc knows, ``shared`` the real runtime's own global
    ones. ``passed`` is what the real runtime gets, and ``position`` where its subcommand's own
    arguments start in there. ``flags`` are those of the subcommand (by their long or short name,
    without dashes), ``operands`` the rest: the container's id first.
    """

    __slots__ = ("flags", "operands", "ours", "passed", "position", "shared", "subcommand")

    def __init__(self, arguments: list[str]) -> None:
        """Parse; raises ``UsageError`` when a flag of ours has no value."""
        self.ours: dict[str, str] = {}
        self.shared: dict[str, str] = {}
        self.passed: list[str] = []
        self.subcommand = ""
        self.flags: dict[str, str] = {}
        self.operands: list[str] = []
        at = self._global_flags(arguments)
        self.position = len(self.passed)
        self.passed += arguments[at:]
        self._subcommand_flags(arguments[at:])

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
            takes_value = name in OUR_FLAGS or name in _GLOBAL_FLAGS_WITH_VALUE
            words = [argument]
            if takes_value and not equals:
                if at == len(arguments):
                    raise UsageError(f"{argument} needs a value")
                value = arguments[at]
                words.append(value)
                at += 1
            if name in OUR_FLAGS:
                self.ours[name] = value
            else:
                self.shared[name] = value
                self.passed += words
        return at

    def _subcommand_flags(self, arguments: list[str]) -> None:
        with_value = _FLAGS_WITH_VALUE.get(self.subcommand, frozenset())
        rest = iter(arguments)
        for argument in rest:
            if argument == "--" or not argument.startswith("-") or argument == "-":
                # The first operand ends the flags: what follows `exec ID` is the command's.
                self.operands = [*([] if argument == "--" else [argument]), *rest]
                return
            name, equals, value = _flag(argument)
            if name in with_value and not equals:
                value = next(rest, "")
            self.flags[name] = value

    def flag(self, *names: str) -> str | None:
        """Value of the first of these subcommand flags that was given."""
        return next((self.flags[name] for name in names if name in self.flags), None)


def _flag(argument: str) -> tuple[str, str, str]:
    name, equals, value = argument.partition("=")
    return name.lstrip("-"), equals, value
