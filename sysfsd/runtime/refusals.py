"""What sysfsd-runc will not run, and why: the checks before anything is done."""

from __future__ import annotations

from sysfsd.errors import InvalidRequest, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sysfsd.kernel.namespaces import UsernsKey
    from sysfsd.runtime import Spec

# Type in the spec: the host's file below /proc/self/ns, what it is called, the flag that asks.
_NAMESPACES = {
    "pid": ("pid", "process ids", "--pid=host"),
    "network": ("net", "network", "--network=host"),
    "ipc": ("ipc", "IPC", "--ipc=host"),
    "uts": ("uts", "host name", "--uts=host"),
    "mount": ("mnt", "mounts", "no mount namespace"),
}


def check(
    spec: Spec,
    namespace_key: Callable[[str], UsernsKey],
    network_owner: Callable[[str], UsernsKey],
) -> None:
    """Raise ``Refused`` for a spec that can't or must not become a system container.

    ``namespace_key`` names the namespace behind a path, ``network_owner`` the user namespace that
    owns the network namespace behind one.
    """
    linux = spec.get("linux")
    if not isinstance(linux, dict) or not isinstance(spec.get("root"), dict):
        raise InvalidRequest("config.json has no linux or no root section: not a Linux container")
    _refuse_privileged(linux)
    namespaces = {entry.get("type"): entry for entry in linux.get("namespaces") or []}
    for kind, (file, name, flag) in _NAMESPACES.items():
        entry = namespaces.get(kind)
        path = entry.get("path") if entry else None
        if entry is None or (
            path and namespace_key(path) == namespace_key(f"/proc/self/ns/{file}")
        ):
            raise Refused(
                f"a system container can't share the host's {name} ({flag}): its root would be "
                "powerless there, or the host's root; leave that option out"
            )
    for key in ("uidMappings", "gidMappings"):
        # What is missing is 0 to those who read it in Go.
        if any(not mapping.get("hostID") for mapping in linux.get(key) or []):
            raise Refused(
                f"{key} give the container the host's root (hostID 0): map it to ids of its own"
            )
    own_user = "/proc/self/ns/user"
    user_path = (namespaces.get("user") or {}).get("path")
    if user_path and namespace_key(user_path) == namespace_key(own_user):
        raise Refused(
            "a system container can't share the host's user namespace (--userns=host): "
            "leave that option out"
        )
    network_path = namespaces["network"].get("path")
    if network_path and not user_path and network_owner(network_path) == namespace_key(own_user):
        raise Refused(
            "a system container can't join a network namespace that the host's root owns "
            "(--network=container:...): it could not mount /sys there; give it a network of its "
            "own, or, with Podman, add --userns=auto"
        )


def _refuse_privileged(linux: Spec) -> None:
    """Recognise --privileged by what only it does: it lets every device be read or written."""
    for rule in (linux.get("resources") or {}).get("devices") or []:
        numbers = {rule.get("major"), rule.get("minor")}
        if rule.get("allow") and numbers <= {None, -1} and set("rw") & set(rule.get("access", "")):
            raise Refused(
                "--privileged (or a rule for all devices) gives a container the host: a system "
                "container needs no such thing; leave that option out"
            )
