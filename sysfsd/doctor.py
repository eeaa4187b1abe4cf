"""``sysfsd doctor``: what this host has and lacks, and how to fix it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.containers import ranges
from sysfsd.control.client import Client
from sysfsd.errors import SysfsdError
from sysfsd.kernel import syscalls
from sysfsd.kernel.procfs import boot_id
from sysfsd.sysctls.host import JOURNAL, read_journal
from sysfsd.sysctls.probe import State, fate, probe
from sysfsd.sysctls.table import SYSCTLS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sysfsd.config import Config


class RaisedNow(NamedTuple):
    """The host's value was raised for containers, and is to be lowered again."""

    original: int
    now: int
    containers: int
    """How many asked for a value of their own."""


class Setting(NamedTuple):
    """What becomes of one sysctl in a system container, on this kernel."""

    name: str
    state: str
    """``native``, ``emulated``, ``added``, ``hidden`` or ``absent`` (`sysctls.probe.State`)."""
    kept_per: str
    """What its value belongs to, if it is emulated."""
    policy: str
    """What the administrator decided: ``max``, ``forbid``, or the default, ``never``."""
    raised: RaisedNow | None
    """What containers have made of the host's value."""
    why: str
    """Who needs it."""


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    fix: str
    """What to do when it is not."""


def examine(config: Config, control: str) -> list[Check]:
    """Look at everything."""
    return [
        kernel(os.uname().release),
        _fuse(),
        _user_namespaces(),
        _idmapped_mounts(),
        _pidfd(),
        _subids("/etc/subuid", config.subid_user),
        _subids("/etc/subgid", config.subid_user),
        _runtime(config.runtime),
        _daemon(control),
    ]


def sysctls(config: Config, control: str) -> list[Setting]:
    """Ask the kernel about every node of the table; raises ``SysfsdError``."""
    if os.geteuid() != 0:
        raise SysfsdError("only root can ask the kernel about sysctls; run it with sudo")
    states = probe([node.path for node in SYSCTLS])
    raised = _raised(os.path.join(_state_dir(control) or config.state_dir, JOURNAL))
    return [
        Setting(
            node.path.removeprefix("proc/sys/"),
            fate(node, states).value,
            node.scope.value,
            config.sysctls.get(node.path, "never"),
            raised.get(node.path),
            node.why,
        )
        for node in SYSCTLS
    ]


def policy_cell(setting: Setting) -> str:
    """What a table says of a policy, and of what came of it; nothing for the default; pure."""
    said = "" if setting.policy == "never" else setting.policy
    if said and setting.state not in {State.EMULATED.value, State.ADDED.value}:
        said += ", no effect"
    raised = setting.raised
    if raised is None:
        return said
    # As long as one that was raised under an older configuration is, it is.
    whose = f"{raised.containers} container{'' if raised.containers == 1 else 's'}"
    return f"{said or 'was max'}: {raised.original} -> {raised.now} for {whose}"


def _raised(journal: str) -> dict[str, RaisedNow]:
    try:
        found = read_journal(journal, boot_id())
    except (OSError, ValueError) as error:
        raise SysfsdError(
            f"what was raised of the host's sysctls can't be read from {journal} ({error}); "
            "the daemon starts a new one, and leaves the host's as they are"
        ) from None
    now = {path: int(_read(f"/{path}") or -1) for path in found}
    return {
        path: RaisedNow(each.original, now[path], len(each.wanted))
        for path, each in found.items()
        # Another value is the administrator's.
        if now[path] in each.ours and now[path] != each.original
    }


def _state_dir(control: str) -> str | None:
    """That of the daemon that runs, which options may have moved."""
    try:
        with Client(control) as client:
            return str(client.call("hello", {})["state_dir"])
    except SysfsdError:
        return None


def counted(settings: Sequence[Setting], trouble: str | None) -> Check:
    """Sum up what came of `sysctls`, or why nothing did; pure."""
    counts = Counter(each.state for each in settings)
    found = ", ".join(f"{counts[state.value]} {state.value}" for state in State)
    return Check(
        "sysctls",
        trouble is None,
        found if trouble is None else "not known",
        trouble or "nothing: all but those that are emulated or added are the kernel's own",
    )


def kernel(release: str) -> Check:
    """Whether a kernel of that release will do; pure."""
    return Check(
        "Linux",
        kernel_version(release) >= (5, 19),
        release,
        "use Linux 5.19 or later: before, the layers of an overlay can't be idmapped",
    )


def _fuse() -> Check:
    ok = os.path.exists("/dev/fuse")
    return Check("/dev/fuse", ok, "present" if ok else "no such device", "modprobe fuse")


def _user_namespaces() -> Check:
    limit = _read("/proc/sys/user/max_user_namespaces")
    ok = os.path.exists("/proc/self/ns/user") and limit not in {"", "0"}
    return Check(
        "user namespaces",
        ok,
        f"at most {limit}" if limit else "not in this kernel",
        "sysctl user.max_user_namespaces=15000 (the kernel needs CONFIG_USER_NS)",
    )


def _idmapped_mounts() -> Check:
    # A call that cannot succeed tells the two apart: EBADF from a kernel that knows it.
    known = _known(lambda: syscalls.idmap_mount(-1, -1, recursive=False))
    return Check(
        "mount_setattr(2)",
        known,
        "known to this kernel" if known else "unknown to this kernel",
        "use Linux 5.19 or later: container root file systems are idmapped",
    )


def _pidfd() -> Check:
    def probe() -> None:
        os.close(os.pidfd_open(os.getpid()))

    known = _known(probe)
    return Check(
        "pidfd_open(2)",
        known,
        "known to this kernel" if known else "unknown to this kernel",
        "use Linux 5.19 or later: processes are named by pidfds",
    )


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor number of a kernel's release; (0, 0) when it doesn't begin with them.

    What comes after them is whatever its packagers like: ``6.12.117+deb13-cloud-amd64``.
    """
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _subids(path: str, user: str) -> Check:
    found = ranges.bases(ranges.parse_subids(_read(path), {user}))
    return Check(
        path,
        bool(found),
        f"room for {len(found)} containers of user {user!r}",
        ranges.command(user, path),
    )


def _runtime(name: str) -> Check:
    found = shutil.which(name)
    return Check("OCI runtime", found is not None, found or f"no {name}", f"apt install {name}")


def _daemon(control: str) -> Check:
    fix = "systemctl start sysfsd (or: sysfsd serve)"
    try:
        with Client(control) as client:
            hello = client.call("hello", {})
    except SysfsdError as error:
        return Check("daemon", False, str(error).partition(";")[0], fix)
    return Check("daemon", True, f"version {hello['version']}, pid {hello['pid']}", fix)


def _known(call: Callable[[], None]) -> bool:
    try:
        call()
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20).strip()
    except OSError:
        return ""
