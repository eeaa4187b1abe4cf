"""How users name sysctls; pure."""

from __future__ import annotations

_SWAPPED = str.maketrans("./", "/.")


def sysctl_path(name: str) -> str:
    """Return the path below ``/proc/sys`` of what sysctl(8) would take for a sysctl's name.

    The separator that comes first counts; with dots, a slash stands for a dot in a name:
    ``net.ipv4.conf.eth0/1.forwarding``. What has none is itself.
    """
    first = next((each for each in name if each in "./"), "/")
    return name.translate(_SWAPPED) if first == "." else name
