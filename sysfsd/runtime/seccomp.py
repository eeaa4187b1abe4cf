"""The system calls that system software needs on top of an engine's default filter.

Docker's and Podman's profiles let these through only together with a capability on the *host*;
here the capability is one of the container's user namespace, and the kernel itself checks it.
What acts on the whole machine whatever the namespace (kexec, modules, clocks, swap, bpf, perf)
stays as the profile has it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sysfsd.runtime import Spec

SYSTEM_CALLS = (
    # mounts
    "chroot", "fsconfig", "fsmount", "fsopen", "fspick", "listmount", "mount", "mount_setattr",
    "move_mount", "open_tree", "open_tree_attr", "pivot_root", "quotactl", "quotactl_fd",
    "statmount", "umount", "umount2",
    # namespaces
    "clone", "clone3", "setdomainname", "sethostname", "setns", "unshare",
    # keyrings belong to user namespaces since Linux 5.3; runc makes one for each container
    "add_key", "keyctl", "request_key",
    # looking after other processes
    "kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace",
    # what systemd and container engines do besides
    "fanotify_init", "fanotify_mark", "name_to_handle_at", "open_by_handle_at", "reboot",
    "vhangup",
)  # fmt: skip

_OPEN_BY_DEFAULT = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"})


def allow_system_calls(filter_: Spec) -> None:
    """Edit a spec's ``linux.seccomp`` so that ``SYSTEM_CALLS`` pass without conditions.

    A name may stand in one rule only, or its actions contradict each other (clone3 comes with
    ENOSYS): it is taken out of every other one.
    """
    if filter_.get("defaultAction") in _OPEN_BY_DEFAULT and not filter_.get("syscalls"):
        return
    ours = set(SYSTEM_CALLS)
    rules = []
    for rule in filter_.get("syscalls") or []:
        names = [name for name in rule.get("names", []) if name not in ours]
        if names:
            rules.append({**rule, "names": names})
    rules.append({"names": list(SYSTEM_CALLS), "action": "SCMP_ACT_ALLOW"})
    filter_["syscalls"] = rules
