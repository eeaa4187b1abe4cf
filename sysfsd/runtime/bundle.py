"""Reading a bundle's documents: only root's, and never through a link."""

from __future__ import annotations

import os
import stat

from sysfsd import jsontext
from sysfsd.errors import InvalidRequest, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sysfsd.runtime import Spec

KNOWN_KEYS = {
    key.casefold(): key
    for key in (
        "access action additionalGids allow ambient annotations apparmorProfile args bounding "
        "capabilities cgroupsPath containerID createContainer createRuntime cwd defaultAction "
        "destination devices effective env gid gidMappings hooks hostID hostname inheritable linux "
        "major maskedPaths memory minor mounts names namespaces noNewPrivileges options path "
        "permitted pids prestart process readonly readonlyPaths resources root rootfsPropagation "
        "seccomp size source startContainer sysctl syscalls type uid uidMappings user"
    ).split()
}
"""Keys of a spec that mean something to us, or to what the container may do."""

LIMIT = 16 << 20
"""Bytes of config.json or of a process document."""


def load_spec(bundle: str) -> tuple[int, Spec]:
    """Read a bundle's ``config.json`` (runtime-spec, bundle.md); returns its directory, open, too.

    Raises ``Refused`` when somebody but root could have written it: the container would run with
    what that user wrote, prepared with root's rights.
    """
    try:
        directory = os.open(bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(f"the bundle {bundle} can't be read: {error.strerror}") from None
    spec = load_document("config.json", directory=directory, shown=f"{bundle}/config.json")
    _check_owner(os.fstat(directory), bundle, _mapped_root(spec))
    return directory, spec


def load_document(path: str, *, directory: int | None = None, shown: str | None = None) -> Spec:
    """Read a JSON object from a regular file of root's; raises ``Refused``, ``InvalidRequest``."""
    shown = shown or path
    try:
        fd = os.open(
            path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError as error:
        raise InvalidRequest(f"{shown} can't be read: {error.strerror}") from None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"{shown} is not a regular file")
        _check_owner(status, shown)
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise InvalidRequest(f"{shown} is larger than {LIMIT} bytes")
    try:
        document: Any = jsontext.loads(data, _unambiguous)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{shown} is not a spec: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"{shown} is not a JSON object")
    return document


def _unambiguous(pairs: list[tuple[str, Any]]) -> Spec:
    """Make an object, of keys that every reader takes for the same.

    Go's encoding/json, and with it runc, matches keys without regard to case and lets the last one
    win: a "LINUX" beside our "linux" would undo what we make of it.
    """
    made: Spec = {}
    folded: set[str] = set()
    for key, value in pairs:
        name = key.casefold()
        if name in folded or KNOWN_KEYS.get(name, key) != key:
            raise ValueError(f"the key {key!r} is there twice, or spelled in another case")
        folded.add(name)
        made[key] = value
    return made


def replace_document(path: str, document: Spec) -> None:
    """Write a document over an old one, atomically, keeping its mode and owner."""
    status = os.stat(path, follow_symlinks=False)
    temporary = f"{path}.sysfsd-{os.getpid()}"
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IMODE(status.st_mode)
    )
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(jsontext.dumps(document))
            os.fchown(fd, status.st_uid, status.st_gid)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _mapped_root(spec: Spec) -> int | None:
    """Host uid of the container's root, when the spec maps it.

    Podman gives the directory (but not config.json) to it.
    """
    try:
        for mapping in spec["linux"].get("uidMappings") or []:
            if mapping["containerID"] == 0:
                return int(mapping["hostID"])
    except (KeyError, TypeError, ValueError, AttributeError):
        pass  # not for us to say: refusals.py looks at the spec
    return None


def _check_owner(status: os.stat_result, shown: str, other: int | None = None) -> None:
    if status.st_uid not in {os.geteuid(), other}:
        raise Refused(
            f"{shown} belongs to uid {status.st_uid}: sysfsd-runc runs only bundles of its own "
            f"user (uid {os.geteuid()})"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(f"{shown} can be written by others: take that right away (chmod go-w)")
