"""Where the daemon listens.

Apart from ``protocol``, because the configuration names it and wants nothing else of that: on the
path of every container start, no imports but ``os``.
"""

from __future__ import annotations

import os

DEFAULT_SOCKET = "/run/sysfsd/control.sock"
SOCKET_VARIABLE = "SYSFSD_CONTROL"


def default_socket() -> str:
    """Where the daemon listens unless the command line says otherwise."""
    return os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET
