"""The capabilities of a system container's processes.

In its own user namespace a capability reaches only what that namespace owns
(user_namespaces(7)), so root gets all of them, as on a machine of its own.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from sysfsd.runtime import Spec

# linux/capability.h, in the order of their numbers.
ALL = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP "
        "LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER "
        "SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
        "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
        "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF "
        "CHECKPOINT_RESTORE"
    ).split()
)

ENGINE_DEFAULTS = frozenset(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE "
        "SYS_CHROOT SETFCAP"
    ).split()
)
"""What both Docker and Podman give a container unasked. One that lacks some of these was started
with ``--cap-drop``."""


def granted(bounding: Iterable[str], last: int) -> list[str]:
    """Capabilities for a container whose engine asked for ``bounding``.

    Everything the kernel knows (``last`` is its /proc/sys/kernel/cap_last_cap), except what the
    user took away by name; a container without any of the defaults (``--cap-drop=ALL``) keeps what
    it was given and gets no more.
    """
    asked = set(bounding)
    known = ALL[: last + 1]
    if not asked & ENGINE_DEFAULTS:
        return [name for name in known if name in asked]
    dropped = ENGINE_DEFAULTS - asked
    return [name for name in known if name not in dropped]


def set_capabilities(process: Spec, names: list[str]) -> None:
    """Write a process's five sets: root has them all, others can only gain them by a setuid file.

    No ambient ones: root needs none, and for others they would be privilege unasked.
    """
    root = process.get("user", {}).get("uid", 0) == 0
    held = list(names) if root else []
    process["capabilities"] = {
        "bounding": list(names),
        "effective": held,
        "permitted": list(held),
        "inheritable": [],
        "ambient": [],
    }


def read_last(path: str = "/proc/sys/kernel/cap_last_cap") -> int:
    """Return the highest capability number of the running kernel."""
    with open(path, encoding="ascii") as file:
        return int(file.read())
