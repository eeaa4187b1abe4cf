"""``sysfsd-hook``: the OCI hook that gives a container its views before its process starts.

An OCI ``createRuntime`` hook (and the deprecated ``prestart``, for older hosts): the runtime has
made the container's namespaces and mounts, has not pivoted into its root yet, runs us in its own
namespaces and passes the container's state on stdin (runtime-spec, config.md "POSIX-platform
Hooks" and runtime.md "State").

Whatever goes wrong is one line on stderr and exit 1, within two seconds (six, if a daemon is just
being started again), and the runtime drops the container; or, when the configuration says
``on-failure = "continue"``, the same line in the log and exit 0, and the container starts with the
kernel's own files.

On the path of every container start: standard library only, ``python -I -S``.
"""

from __future__ import annotations

import os
import sys

from sysfsd import jsontext
from sysfsd.attach import attach_registered
from sysfsd.control.address import default_socket
from sysfsd.control.client import Client
from sysfsd.errors import InvalidRequest, SysfsdError, UsageError
from sysfsd.policy import SETTINGS, annotation_problem, from_annotations, problem
from sysfsd.runtime import delegation

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from types import FrameType
    from typing import Any
else:
    import _signal as signal  # without the enumerations on top, which take 6 ms

DEADLINE = 5.0
"""Seconds for all of it: where fifty start at once on two CPUs, each has little of these."""

RESTART_SECONDS = 6.0
"""But for a first answer of a daemon whose socket is there it does: it may be starting again."""

STATE_LIMIT = 1 << 20
"""Bytes of state on stdin. Real ones are below 10 kB, annotations included."""

CONFIG_LIMIT = 16 << 20
"""Bytes of config.json."""

_ID_LENGTH = 255
_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+.-")

USAGE = (
    "usage: sysfsd-hook [--control SOCKET] [--config FILE] [--delegate] [--cpu-policy POLICY] "
    "[--memory-high HOW]   (OCI state on stdin)"
)


class State:
    """What the hook needs of the OCI state."""

    __slots__ = ("bundle", "id", "pid", "root", "settings")

    def __init__(
        self, container: str, pid: int, bundle: str, root: str | None, settings: dict[str, object]
    ) -> None:
        self.id = container
        self.pid = pid
        self.bundle = bundle
        self.root = root
        self.settings = settings
        """Of its policy, from its annotations; checked."""


def parse_state(data: bytes) -> State:
    """Read an OCI state document; raises ``InvalidRequest``.

    ``status`` is not looked at: runc says ``creating`` here and crun ``created``. crun adds
    ``root``, the root file system.
    """
    try:
        document: Any = jsontext.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the OCI state on stdin is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest("the OCI state on stdin is not a JSON object")
    container, pid = document.get("id"), document.get("pid")
    bundle, root = document.get("bundle"), document.get("root")
    if not isinstance(container, str) or not _is_id(container):
        raise InvalidRequest("the OCI state on stdin names no container: its id is missing or odd")
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 1 << 31:
        raise InvalidRequest(
            "the OCI state on stdin names no process: run sysfsd-hook as a createRuntime "
            "(or prestart) hook, not in the container's namespaces"
        )
    if not isinstance(bundle, str) or not bundle.startswith("/") or "\0" in bundle:
        raise InvalidRequest("the OCI state on stdin has no absolute bundle path")
    if root is not None and (not isinstance(root, str) or not root or "\0" in root):
        raise InvalidRequest("the OCI state on stdin has a root that is no path")
    annotations = document.get("annotations") or {}
    if not isinstance(annotations, dict):
        raise InvalidRequest("the OCI state on stdin has annotations that are no JSON object")
    wrong = annotation_problem(annotations)
    if wrong is not None:
        raise InvalidRequest(wrong)
    return State(container, pid, bundle, root, from_annotations(annotations))


def _is_id(text: str) -> bool:
    return 0 < len(text) <= _ID_LENGTH and _ID_CHARACTERS.issuperset(text)


def root_filesystem(state: State) -> str:
    """Absolute path of the container's root file system: from the state, else from its bundle."""
    root: Any = state.root
    if root is None:
        try:
            with open(os.path.join(state.bundle, "config.json"), "rb") as file:
                root = jsontext.loads(file.read(CONFIG_LIMIT))["root"]["path"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidRequest(
                f"{state.bundle}/config.json names no root file system ({error!r})"
            ) from None
        if not isinstance(root, str):
            raise InvalidRequest(f"{state.bundle}/config.json names no root file system")
    return os.path.join(state.bundle, root)


def read_stdin() -> bytes:
    """All of stdin, bounded."""
    data = b""
    while chunk := os.read(0, 65536):
        data += chunk
        if len(data) > STATE_LIMIT:
            raise InvalidRequest(f"the OCI state on stdin is larger than {STATE_LIMIT} bytes")
    return data


def give_views(state: State, control: str, flags: dict[str, str], *, delegate: bool) -> None:
    """Register the container and attach its views.

    ``flags`` are settings of its policy; what its annotations say comes before them, as far as the
    daemon's configuration lets them.
    """
    rootfs = root_filesystem(state)
    try:
        init = os.pidfd_open(state.pid)
    except ProcessLookupError:
        raise InvalidRequest(
            f"the container's process {state.pid} is gone: nothing to attach to"
        ) from None
    signal.setitimer(signal.ITIMER_REAL, RESTART_SECONDS)
    with Client(control, timeout=RESTART_SECONDS) as client:
        request = {"id": state.id, "policy": flags, "annotations": state.settings}
        registered = client.call("register", request, [init])
        signal.setitimer(signal.ITIMER_REAL, DEADLINE)
        try:
            if delegate:
                delegation.delegate(state.pid, init)
            attach_registered(client, registered, init=init, rootfs=rootfs)
        except BaseException:
            client.call("release", {"id": state.id})
            raise


def main(arguments: list[str] | None = None) -> int:
    """Run the hook; returns its exit status."""
    config: str | None = None
    try:
        control, config, flags, delegate = _parse(sys.argv[1:] if arguments is None else arguments)
        signal.signal(signal.SIGALRM, _out_of_time)
        signal.setitimer(signal.ITIMER_REAL, DEADLINE)
        give_views(parse_state(read_stdin()), control, flags, delegate=delegate)
    except UsageError as error:
        print(f"sysfsd-hook: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_status
    except (SysfsdError, OSError) as error:  # out of time is an OSError, too
        return _failed(str(error), config)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def _parse(arguments: list[str]) -> tuple[str, str | None, dict[str, str], bool]:
    control, config, delegate = default_socket(), None, False
    flags: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name == "--delegate" and not equals:
            delegate = True
        elif name in {"--control", "--config"} or name[2:] in SETTINGS:
            value = value if equals else next(rest, "")
            if not value:
                raise UsageError(f"{name} needs a value; {USAGE}")
            if name == "--control":
                control = value
            elif name == "--config":
                config = value
            elif wrong := problem(name[2:], value):
                raise UsageError(f"{name} {wrong}")
            else:
                flags[name[2:]] = value
        else:
            raise UsageError(f"unknown argument {argument!r}; {USAGE}")
    return control, config, flags, delegate


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError("not done within the time there is; is the sysfsd daemon stuck?")


def _failed(reason: str, config: str | None) -> int:
    from sysfsd.config import load  # noqa: PLC0415 - needed, and paid for, only now

    # One line, whatever the engine, the kernel or the state had to say.
    line = " ".join(reason.split())[:2000]
    try:
        carry_on = load(config, sysctls=False).on_failure == "continue"
    except SysfsdError as error:
        line, carry_on = f"{line} (and {error})", False
    if carry_on:
        line += "; the container starts with the kernel's own files (on-failure = continue)"
        _log(line)
    print(f"sysfsd-hook: {line}", file=sys.stderr)  # noqa: T201
    return 0 if carry_on else 1


def _log(line: str) -> None:
    """Say it in the system's log: engines show a hook's stderr only when it fails."""
    import syslog  # noqa: PLC0415

    syslog.openlog("sysfsd-hook", 0, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_WARNING, line)


if __name__ == "__main__":
    sys.exit(main())
