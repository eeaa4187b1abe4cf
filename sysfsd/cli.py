"""The command ``sysfsd``: what users type, and what they get to read.

Heavy imports (trio, pyfuse3) happen in ``serve`` and ``mount`` only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from sysfsd import __version__
from sysfsd.config import load
from sysfsd.control.address import SOCKET_VARIABLE
from sysfsd.control.client import Client
from sysfsd.errors import NoSuchContainer, SysfsdError, UsageError
from sysfsd.policy import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

LOG_LEVELS = ("debug", "info", "warning", "error")

_CELL = 48
"""Columns of a terminal that a value in a table may take."""

_SETTINGS_HELP = {
    "cpu-policy": "how many CPUs it sees (with pin: and runs on)",
    "memory-high": "whether memory.high of cgroup v2 is a limit that it sees",
}

_OF_A_PROCESS = re.compile(r"/proc/(\d+)(?:/|$)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status (see ``errors``). Never shows a traceback."""
    try:
        options = _parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except SysfsdError as error:
        return _fail(str(error), error.exit_status)
    except BrokenPipeError:  # sysfsd show ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except PermissionError as error:
        return _fail(_denied(error, os.geteuid()), 1)
    except OSError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return 130


def _fail(message: str, status: int) -> int:
    print(f"sysfsd: {' '.join(message.split())}", file=sys.stderr)
    return status


def _denied(error: PermissionError, user: int) -> str:
    """What to tell a user, given by an effective uid; pure."""
    path = str(error.filename or "")
    what = f"{error.strerror or error}{path and f': {path}'}"
    if user != 0:
        return f"{what}; run it as root"
    process = _OF_A_PROCESS.match(path)
    if process:
        return (
            f"may not look into process {process[1]}: it has more privileges than this shell; "
            "run it as the host's root"
        )
    return f"{what}; this shell's root lacks a privilege: run it as the host's"


class _Parser(argparse.ArgumentParser):
    """One whose errors are a line, as all of ours; the subcommands' parsers are of its class."""

    def error(self, message: str) -> NoReturn:
        """Raise ``UsageError``."""
        raise UsageError(f"{message}; see: {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sysfsd",
        description="Give each container its own view of /proc and /sys.",
        epilog="Exit status: 0 done, 1 failed, 2 usage, 3 no such container or path, "
        "69 daemon not running.",
    )
    parser.add_argument("--version", action="version", version=f"sysfsd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, *, json_too: bool = False
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        sub.add_argument("--control", metavar="SOCKET", help="the daemon's control socket")
        if json_too:
            sub.add_argument("--json", action="store_true", help="for programs")
        return sub

    serve = command("serve", _serve, "run the service")
    serve.add_argument("--mountpoint", metavar="DIR", help="default: as configured")
    serve.add_argument("--state-dir", metavar="DIR", help="the same")
    serve.add_argument("--config", metavar="FILE", help="default: /etc/sysfsd/sysfsd.toml, if any")
    serve.add_argument(
        "--fd-store",
        action="store_true",
        help="outlive restarts in systemd's store (FileDescriptorStoreMax=), not with a process",
    )
    mount = command("mount", _mount, "show every caller its own view at a directory")
    mount.add_argument("directory", metavar="DIR")
    # How we start ourselves, see app.
    mount.add_argument("--pressure", action="store_true", help=argparse.SUPPRESS)
    mount.add_argument("--device", type=int, help=argparse.SUPPRESS)
    mount.add_argument("--resumed", action="store_true", help=argparse.SUPPRESS)
    for daemon in (serve, mount):
        daemon.add_argument("--log-level", choices=LOG_LEVELS, default="info")

    command("ps", _ps, "list the registered containers", json_too=True)
    show = command("show", _show, "print a view as a container sees it", json_too=True)
    show.add_argument("container", metavar="CONTAINER", help="its id, or the beginning of it")
    show.add_argument("path", metavar="PATH", help="such as /proc/meminfo, or vm.swappiness")
    show.add_argument("--explain", action="store_true", help="say where each number comes from")
    attach = command("attach", _attach, "give a running container its views")
    attach.add_argument("--id", metavar="ID", help="register it under this id")
    for setting, values in SETTINGS.items():
        attach.add_argument(f"--{setting}", choices=values, help=_SETTINGS_HELP[setting])
    detach = command("detach", _detach, "take a running container's views back")
    which = detach.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="of every registered container")
    which_one = attach.add_mutually_exclusive_group(required=True)
    which_one.add_argument("--all", action="store_true", help="every registered container's")
    which_one.add_argument(
        "pid", metavar="PID", type=int, nargs="?", help="any process of the container"
    )
    which.add_argument(
        "pid", metavar="PID", type=int, nargs="?", help="any process of the container"
    )
    detach.add_argument(
        "--offline",
        action="store_true",
        help="with --all: without the daemon, which is gone; and unmount",
    )
    detach.add_argument("--state-dir", metavar="DIR", help="that daemon's")
    # How the daemon does it before it ends, or its holder: they have the lock.
    detach.add_argument("--locked", action="store_true", help=argparse.SUPPRESS)
    detach.add_argument("--abort", action="store_true", help=argparse.SUPPRESS)
    detach.add_argument(
        "--unless-restarting",
        metavar="UNIT",
        help="with --offline, from ExecStopPost=: not if systemd starts the unit again",
    )
    command("stats", _stats, "print the running daemon's counters", json_too=True)
    doctor = command("doctor", _doctor, "say what this host lacks", json_too=True)
    doctor.add_argument("--config", metavar="FILE")
    return parser


def _serve(options: argparse.Namespace) -> int:
    config = load(options.config)
    for name in ("mountpoint", "state_dir"):
        if getattr(options, name):
            setattr(config, name, os.path.abspath(getattr(options, name)))
    control = options.control or os.environ.get(SOCKET_VARIABLE)
    if control:
        config.control = os.path.abspath(control)

    from sysfsd import app  # noqa: PLC0415

    return _run(options.log_level, partial(app.serve, config, fd_store=options.fd_store))


def _mount(options: argparse.Namespace) -> int:
    from sysfsd import app, pressured  # noqa: PLC0415
    from sysfsd.channel.device import Connection  # noqa: PLC0415

    directory, control = os.path.abspath(options.directory), _control(options)
    if options.pressure:
        connection = Connection(options.device, directory, options.resumed)
        return _run(options.log_level, pressured.serve, connection, control)
    return _run(options.log_level, app.mount, directory, control, load().policy())


def _run(level: str, function: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> int:
    import trio  # noqa: PLC0415

    from sysfsd import log  # noqa: PLC0415

    log.configure(level)
    try:
        trio.run(function, *arguments)
    except BaseExceptionGroup as group:
        # trio groups whatever leaves a nursery. One error of ours, or of the kernel, is one line.
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, SysfsdError | OSError):
            raise error from None
        log.crashed(group)
        return 1
    return 0


def _ps(options: argparse.Namespace) -> int:
    containers = _containers(options)
    if options.json:
        return _print_json(containers)
    rows = [
        (
            each["id"][:24],
            str(each["pid"]),
            f"{each['uid_base']}",
            _ago(time.time() - each["started"]),
        )
        for each in containers
    ]
    _print_table(("CONTAINER", "PID", "UID BASE", "RUNNING FOR"), rows)
    return 0


def _show(options: argparse.Namespace) -> int:
    with Client(_control(options)) as client:
        answer = client.call(
            "show",
            {
                "id": _find(options.container, client.call("list", {})["containers"]),
                "path": options.path,
                "explain": options.explain,
            },
        )
    if options.json:
        return _print_json(answer)
    if options.explain:
        rows = [(each["name"], _brief(each["value"]), each["source"]) for each in answer["sources"]]
        _print_table(("NAME", "VALUE", "SOURCE"), rows)
    else:
        sys.stdout.write(answer["text"])
        sys.stdout.flush()
    return 0


def _attach(options: argparse.Namespace) -> int:
    from sysfsd import running  # noqa: PLC0415

    given = {name: getattr(options, name.replace("-", "_")) for name in SETTINGS}
    settings = {name: value for name, value in given.items() if value is not None}
    with Client(_control(options)) as client:
        if options.all:
            if options.id or settings:
                raise UsageError("--all gives each container its own; leave out the other options")
            return _all_but(running.give_all_views(client), "without all of their views")
        given_views = running.give_views(client, options.pid, options.id, settings)
    print(f"{given_views.container}: {len(given_views.views)} files attached")
    if given_views.warning is not None:
        print(f"sysfsd: not pinned: {given_views.warning}", file=sys.stderr)
    return 0


def _detach(options: argparse.Namespace) -> int:
    from sysfsd import running  # noqa: PLC0415

    if options.offline:
        from sysfsd import offline, state, unit  # noqa: PLC0415

        if not options.all:
            raise UsageError("--offline goes with --all; see: sysfsd detach --help")
        if options.unless_restarting and unit.restarts(options.unless_restarting):
            return 0
        state_dir = options.state_dir or load().state_dir
        if options.locked:
            left = offline.take_left_views(state_dir, abort=options.abort)
            return _all_but(left, "still attached, restart them")
        if not os.path.isdir(state_dir):
            raise UsageError(f"{state_dir} is not there; name the daemon's with --state-dir")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(state.locked(state_dir))
            except SysfsdError:  # one that runs, or starts just now
                raise SysfsdError(
                    f"a daemon runs with {state_dir}; leave out --offline, or stop it first"
                ) from None
            return _all_but(offline.take_left_views(state_dir), "still attached, restart them")
    with Client(_control(options)) as client:
        if options.all:
            return _all_but(running.take_all_views(client), "still attached, restart them")
        container, views = running.take_views(client, options.pid)
    print(f"{container}: {len(views)} files detached")
    return 0


def _all_but(left: Sequence[str], trouble: str) -> int:
    if left:
        raise SysfsdError(f"{trouble}: {', '.join(left)}")
    return 0


def _stats(options: argparse.Namespace) -> int:
    with Client(_control(options)) as client:
        counters = client.call("stats", {})
    if options.json:
        return _print_json(counters)
    _print_table(("COUNTER", "VALUE"), list(_flat("", counters)))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from sysfsd import doctor  # noqa: PLC0415

    config, control = load(options.config), _control(options)
    checks = doctor.examine(config, control)
    try:
        settings, trouble = doctor.sysctls(config, control), None
    except SysfsdError as error:
        settings, trouble = [], str(error)
    checks.append(doctor.counted(settings, trouble))
    if options.json:
        _print_json(
            {
                "checks": [check._asdict() for check in checks],
                "sysctls": [
                    {**each._asdict(), "raised": each.raised and each.raised._asdict()}
                    for each in settings
                ],
            }
        )
    else:
        _print_table(
            ("", "CHECK", "FOUND"),
            [("ok" if each.ok else "MISSING", each.name, each.found) for each in checks],
        )
        if settings:
            print("\nSysctls in system containers:")
            rows = [
                (each.name, each.state, each.kept_per, doctor.policy_cell(each), each.why)
                for each in settings
            ]
            _print_table(("NAME", "STATE", "KEPT PER", "POLICY", "NEEDED BY"), rows)
        # Last, where they are seen.
        for each in checks:
            if not each.ok:
                print(f"\n{each.name}: {each.fix}")
    return 0 if all(check.ok for check in checks) else 1


def _control(options: argparse.Namespace) -> str:
    """Where the daemon listens: as typed, from the environment, as configured."""
    return options.control or os.environ.get(SOCKET_VARIABLE) or load().control


def _containers(options: argparse.Namespace) -> list[dict[str, Any]]:
    with Client(_control(options)) as client:
        containers: list[dict[str, Any]] = client.call("list", {})["containers"]
        return containers


def _find(name: str, containers: Iterable[dict[str, Any]]) -> str:
    """The id that a user means; raises ``NoSuchContainer``, or ``UsageError`` if it is several."""
    ids = [str(each["id"]) for each in containers]
    if name in ids:
        return name
    matching = [each for each in ids if name and each.startswith(name)]
    if not matching:
        raise NoSuchContainer(f"no container {name!r} is registered; see: sysfsd ps")
    if len(matching) > 1:
        raise UsageError(f"{name!r} is the beginning of {len(matching)} ids: type more of it")
    return matching[0]


def _print_json(value: object) -> int:
    print(json.dumps(value, indent=2))
    return 0


def _brief(value: str) -> str:
    """The beginning of a value: at most one line, at most a column; pure."""
    first, newline, _rest = value.expandtabs(1).partition("\n")
    if not newline and len(first) <= _CELL:
        return first
    return f"{first[: _CELL - 2].rstrip()} …"


def _print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _flat(prefix: str, counters: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in counters.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", str(value)


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"


if __name__ == "__main__":
    sys.exit(main())
