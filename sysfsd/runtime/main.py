"""``sysfsd-runc``: prepare, then become the real runtime.

``create`` and ``run`` make the bundle's spec one of a system container, ``exec`` gives the new
process the capabilities that belong there, everything else is handed on as it is. In every case
this process then *becomes* runc or crun (execve(2)): the engine sees one process, one exit status,
one pid.

On the path of every container start: standard library only, ``python -I -S``, and nothing but the
command line is looked at before a subcommand that is handed on.
"""

from __future__ import annotations

import os
import stat
import sys

from sysfsd.errors import InvalidRequest, SysfsdError, UsageError
from sysfsd.policy import SETTINGS, annotation_problem, problem
from sysfsd.runtime.arguments import CommandLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from sysfsd.runtime import Spec
    from sysfsd.runtime.spec import IdRange

_HOOK_TIMEOUT = 30  # seconds; the hook has a deadline of its own, far below


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run ``sysfsd-runc``: ends in the real runtime, or with one line on stderr."""
    line = None
    try:
        line = CommandLine(sys.argv[1:] if arguments is None else arguments)
        if line.asks_for_help:
            pass
        elif line.subcommand in {"create", "run"}:
            _prepare_create(line)
        elif line.subcommand == "exec":
            _prepare_exec(line)
        _become(_real_runtime(line), line.passed)
    except SysfsdError as error:
        _fail(str(error), error.exit_status, line)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        # Documents are root's own and come in all shapes; none of them is worth a traceback.
        _fail(f"config.json is not what the runtime spec says: {error!r}", 1, line)
    except OSError as error:
        _fail(str(error), 1, line)


def _fail(reason: str, status: int, line: CommandLine | None) -> NoReturn:
    """Say why on stderr, and where the engine looks: containerd's shim reads ``--log``."""
    message = f"sysfsd-runc: {' '.join(reason.split())}"
    print(message, file=sys.stderr)  # noqa: T201
    log = line.shared.get("log") if line is not None else None
    if line is not None and log:
        _log(log, message, as_json=line.shared.get("log-format") == "json")
    sys.exit(status)


def _log(path: str, message: str, *, as_json: bool) -> None:
    import time  # noqa: PLC0415

    from sysfsd.jsontext import dumps  # noqa: PLC0415

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    entry = {"level": "error", "msg": message, "time": now}
    text = dumps(entry) if as_json else f'time="{now}" level=error msg={dumps(message)}'
    if ":" in path.partition("/")[0]:  # crun's "journald:NAME" or "file:PATH"
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(path, flags, 0o644), "a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        print(f"sysfsd-runc: {error}", file=sys.stderr)  # noqa: T201


def _real_runtime(line: CommandLine) -> str:
    """Absolute path of runc or crun, as the configuration has it."""
    from sysfsd.config import load  # noqa: PLC0415

    name = load(line.ours.get("config"), sysctls=False).runtime
    for directory in ("", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin"):
        path = os.path.join(directory, name)
        if os.path.isabs(path) and os.access(path, os.X_OK):
            return path
    raise UsageError(f"the runtime {name!r} is not installed: apt install {os.path.basename(name)}")


def _become(runtime: str, arguments: list[str]) -> NoReturn:
    os.execv(runtime, [runtime, *arguments])  # noqa: S606 - that is the point


def _prepare_create(line: CommandLine) -> None:
    from sysfsd.control.address import default_socket  # noqa: PLC0415
    from sysfsd.control.client import Client  # noqa: PLC0415
    from sysfsd.runtime import bundle as bundles  # noqa: PLC0415
    from sysfsd.runtime import capabilities, refusals  # noqa: PLC0415
    from sysfsd.runtime import spec as specs  # noqa: PLC0415
    from sysfsd.runtime.stage import Stage  # noqa: PLC0415

    settings = _settings(line)
    directory, spec = bundles.load_spec(line.flag("bundle") or ".")
    refusals.check(spec, _namespace_key, _network_owner)
    _check_annotations(spec, line.ours.get("config"))
    # The real runtime finds its bundle here: in the directory that we have looked at.
    os.fchdir(directory)
    bundle = os.getcwd()
    control = line.ours.get("control") or default_socket()

    with Client(control) as client:
        container = line.operands[0]
        if specs.has_own_user_namespace(spec):
            ids = None
            stage_directory = client.call("hello", {})["stage"]
        else:
            # The reservation lives as long as this process, which is the runtime's from now on,
            # and then as long as the container that its hook registers.
            reserved = client.call("reserve", {"id": container}, [os.pidfd_open(os.getpid())])
            ids = specs.IdRange(reserved["uid_base"], reserved["gid_base"], reserved["size"])
            stage_directory = reserved["stage"]

        root = os.path.realpath(os.path.join(bundle, spec["root"]["path"]))
        docker_data = specs.wants_docker_data(spec)
        specs.make_system_container(
            spec,
            ids=ids,
            hook=_hook(control, line.ours.get("config"), settings),
            last_capability=capabilities.read_last(),
        )
        owner = ids or specs.mapped_ids(spec)
        stage = Stage(stage_directory, ids, owner)
        stage.binds(bundle, spec.get("mounts") or [])
        spec["root"]["path"] = stage.root_filesystem(root)
        backing = stage.docker_data(root) if docker_data else None
        if backing is not None:
            specs.add_docker_data(spec, backing)
        if stage.overlays:
            stage.copy_up(specs.busy_directories(spec))
            client.call("watch_root", {"id": container}, stage.overlays)
        if owner is not None:
            _own_standard_streams(owner)
        stage.show_spec(spec)


def _prepare_exec(line: CommandLine) -> None:
    from sysfsd.runtime import bundle as bundles  # noqa: PLC0415
    from sysfsd.runtime import capabilities  # noqa: PLC0415
    from sysfsd.runtime import spec as specs  # noqa: PLC0415

    last = capabilities.read_last()
    document = line.flag("process", "p")
    if document is not None:
        process = bundles.load_document(document)
        specs.make_system_process(process, last)
        bundles.replace_document(document, process)
    elif line.flag("user", "u") in {None, "0", "0:0", "root"} and line.flag("cap", "c") is None:
        # By hand: the process comes from the bundle's spec, which is as its owner wrote it.
        added = [word for name in capabilities.ALL[: last + 1] for word in ("--cap", name)]
        line.passed[line.position : line.position] = added


def _settings(line: CommandLine) -> dict[str, str]:
    """Settings of the container's policy among the flags; raises ``UsageError``."""
    settings = {name: line.ours[name] for name in SETTINGS if name in line.ours}
    for name, value in settings.items():
        wrong = problem(name, value)
        if wrong is not None:
            raise UsageError(f"--{name} {wrong}")
    return settings


def _check_annotations(spec: Spec, config: str | None) -> None:
    """Raise ``InvalidRequest`` for a policy that the hook will refuse: crun hides what it says."""
    wrong = annotation_problem(spec.get("annotations") or {})
    if wrong is not None:
        from sysfsd.config import load  # noqa: PLC0415

        if load(config, sysctls=False).on_failure != "continue":
            raise InvalidRequest(wrong)


def _hook(control: str, config: str | None, settings: dict[str, str]) -> Spec:
    """Write the createRuntime hook's entry.

    By interpreter and file, with an environment of its own: nothing of the image, and no PATH,
    decides what runs as root here (CVE-2025-23266 is what happens otherwise).
    """
    from sysfsd.scripts import START  # noqa: PLC0415

    arguments = [sys.executable, "-I", "-S", START, "hook", "--delegate", "--control", control]
    if config is not None:
        arguments += ["--config", config]
    for name, value in settings.items():
        arguments += [f"--{name}", value]
    return {
        "path": sys.executable,
        "args": arguments,
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
        "timeout": _HOOK_TIMEOUT,
    }


def _own_standard_streams(owner: IdRange) -> None:
    """Give pipes that are our standard streams to the container's root.

    It opens them again as /dev/stdout, which the engine's own descriptor does not need.
    """
    for fd in (0, 1, 2):
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.fchown(fd, owner.uid, owner.gid)
        except OSError:
            continue  # closed: the container has none either


def _namespace_key(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InvalidRequest(f"the namespace {path} can't be read: {error.strerror}") from None
    return status.st_dev, status.st_ino


def _network_owner(path: str) -> tuple[int, int]:
    from sysfsd.kernel import namespaces  # noqa: PLC0415

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            owner = namespaces.owning_user_namespace(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise InvalidRequest(f"the namespace {path} can't be read: {error.strerror}") from None
    try:
        return namespaces.namespace_key(owner)
    finally:
        os.close(owner)
