"""What turns an OCI runtime spec into one of a system container: a pure edit.

Works on the plain JSON document, so that fields nobody here knows stay as they are. Field names
are the spec's (runtime-spec, config.md and config-linux.md).
"""

from __future__ import annotations

import posixpath

from sysfsd.runtime import capabilities, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sysfsd.runtime import Spec

DOCKER_DATA = "/var/lib/docker"
"""Where an inner engine keeps its layers: overlayfs refuses another overlay as its upper layer."""

_KERNEL_MOUNTS = frozenset({"proc", "sysfs", "cgroup", "cgroup2"})

_PING_GROUPS = "net.ipv4.ping_group_range"

_ENGINE_APPARMOR_PROFILES = ("docker-default", "containers-default-", "crio-default")


class IdRange:
    """The host ids that a container's ids 0 to ``size`` - 1 are."""

    __slots__ = ("gid", "size", "uid")

    def __init__(self, uid: int, gid: int, size: int) -> None:
        self.uid = uid
        self.gid = gid
        self.size = size

    @property
    def uid_map(self) -> str:
        """As ``/proc/<pid>/uid_map`` takes it."""
        return f"0 {self.uid} {self.size}\n"

    @property
    def gid_map(self) -> str:
        """As ``/proc/<pid>/gid_map`` takes it."""
        return f"0 {self.gid} {self.size}\n"


def has_own_user_namespace(spec: Spec) -> bool:
    """Whether the engine chose the user namespace: with mappings of its own, or an existing one."""
    return any(
        namespace.get("type") == "user"
        and (namespace.get("path") or spec["linux"].get("uidMappings"))
        for namespace in spec["linux"].get("namespaces", [])
    )


def mapped_ids(spec: Spec) -> IdRange | None:
    """Host ids of a spec's own mappings that hold the container's root, if it has such."""
    ends = []
    for key in ("uidMappings", "gidMappings"):
        for mapping in spec["linux"].get(key) or []:
            if mapping.get("containerID") == 0:
                ends.append((mapping["hostID"], mapping["size"]))
                break
    if len(ends) != 2:
        return None
    return IdRange(ends[0][0], ends[1][0], min(ends[0][1], ends[1][1]))


def is_bind(mount: Spec) -> bool:
    """Whether a mount is a bind: by its type, or, as the spec has it, by an option."""
    options = mount.get("options") or []
    return mount.get("type") == "bind" or "bind" in options or "rbind" in options


def is_recursive_bind(mount: Spec) -> bool:
    """Whether a bind takes the mounts below its source along."""
    return "rbind" in (mount.get("options") or [])


def wants_docker_data(spec: Spec) -> bool:
    """Whether nothing but the root file system holds ``/var/lib/docker``."""
    above = {DOCKER_DATA, "/var/lib", "/var"}
    return not any(
        posixpath.normpath(mount.get("destination", "")) in above
        for mount in spec.get("mounts") or []
    )


def busy_directories(spec: Spec) -> list[str]:
    """Directories of the root file system that will be in use for as long as the container runs.

    The working directory and what is above it and above each mount point, parents first.
    """
    busy = {posixpath.normpath((spec.get("process") or {}).get("cwd") or "/")}
    busy |= {
        posixpath.dirname(posixpath.normpath(mount.get("destination", "/")))
        for mount in spec.get("mounts") or []
    }
    for path in list(busy):
        while path := posixpath.dirname(path).rstrip("/"):
            busy.add(path)
    return sorted(path for path in busy if path.startswith("/") and path != "/")


def make_system_container(
    spec: Spec, *, ids: IdRange | None, hook: Spec, last_capability: int
) -> None:
    """Edit ``spec`` in place.

    ``ids`` are those of the user namespace to make; ``None`` when the spec brings its own. ``hook``
    is the createRuntime hook that attaches the views, and goes last: those before it may still
    change the container's mounts.
    """
    linux = spec["linux"]
    _add_namespaces(linux, ids)
    _open_kernel_interfaces(spec)
    _fit_sysctls(linux)
    if filter_ := linux.get("seccomp"):
        seccomp.allow_system_calls(filter_)
    process = spec.get("process")
    if process:
        make_system_process(process, last_capability)
    hooks = spec.setdefault("hooks", {}) or {}
    spec["hooks"] = hooks
    hooks["createRuntime"] = [*(hooks.get("createRuntime") or []), hook]


def make_system_process(process: Spec, last_capability: int) -> None:
    """Edit a process in place: the container's first one, or one that ``exec`` adds."""
    asked = (process.get("capabilities") or {}).get("bounding") or []
    capabilities.set_capabilities(process, capabilities.granted(asked, last_capability))
    # The engines' own profiles forbid mounting. One that the user named is kept.
    if str(process.get("apparmorProfile", "")).startswith(_ENGINE_APPARMOR_PROFILES):
        del process["apparmorProfile"]


def add_docker_data(spec: Spec, source: str) -> None:
    """Mount a directory that is not on overlayfs at ``/var/lib/docker``."""
    spec.setdefault("mounts", []).append(
        {
            "destination": DOCKER_DATA,
            "type": "bind",
            "source": source,
            "options": ["rbind", "rprivate"],
        }
    )


def _add_namespaces(linux: Spec, ids: IdRange | None) -> None:
    namespaces = linux.setdefault("namespaces", [])
    present = {namespace.get("type") for namespace in namespaces}
    namespaces += [{"type": kind} for kind in ("user", "cgroup") if kind not in present]
    if ids is not None:
        linux["uidMappings"] = [{"containerID": 0, "hostID": ids.uid, "size": ids.size}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": ids.gid, "size": ids.size}]


def _open_kernel_interfaces(spec: Spec) -> None:
    """Leave guarding /proc, /sys and the cgroups to the kernel's own checks.

    Masks and read-only paths protect the host from a container whose root is the host's root. This
    one's is not: the kernel lets it change only what its namespaces own, and an inner engine must
    be able to change that.
    """
    spec["linux"]["maskedPaths"] = []
    spec["linux"]["readonlyPaths"] = []
    for mount in spec.get("mounts") or []:
        if mount.get("type") in _KERNEL_MOUNTS:
            mount["options"] = [option for option in mount.get("options") or [] if option != "ro"]


def _fit_sysctls(linux: Spec) -> None:
    # Docker lets every group ping, "0 2147483647", which names groups that a user namespace does
    # not map: EINVAL (net/ipv4/sysctl_net_ipv4.c, ipv4_ping_group_range).
    sysctls = linux.get("sysctl") or {}
    if _PING_GROUPS not in sysctls:
        return
    sizes = [
        mapping["containerID"] + mapping["size"]
        for mapping in linux.get("gidMappings") or []
        if mapping.get("containerID") == 0
    ]
    try:
        low, high = (int(word) for word in str(sysctls[_PING_GROUPS]).split())
    except ValueError:
        return
    if not sizes:
        del sysctls[_PING_GROUPS]
    elif high >= sizes[0] > low:
        sysctls[_PING_GROUPS] = f"{low} {sizes[0] - 1}"
