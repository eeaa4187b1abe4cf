"""Which sysctls to emulate: what the kernel says of them, and what it said to a predecessor."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import structlog
import trio

from sysfsd import __version__
from sysfsd.errors import SysfsdError
from sysfsd.sysctls.probe import State, emulated, probe
from sysfsd.sysctls.table import SYSCTLS

if TYPE_CHECKING:
    from sysfsd.config import Config
    from sysfsd.documents import Documents
    from sysfsd.sysctls.node import Sysctl

_log = structlog.get_logger(__name__)


async def sysctls_to_emulate(config: Config, notes: Documents, *, ask: bool) -> list[Sysctl]:
    """Ask the kernel, or go by what it said before; without an answer, containers keep its files.

    With ``ask`` False, only if this version has not asked yet.
    """
    known = notes.get("sysctls")
    if ask or known is None or known.get("version") != __version__:
        try:
            known = await _ask_kernel(notes)
        except SysfsdError as error:
            _log.warning("no sysctls are emulated", error=str(error))
            return []
    nodes = emulated(SYSCTLS, {path: State(what) for path, what in known["states"].items()})
    for path in sorted(config.sysctls.keys() - {node.path for node in nodes}):
        _log.warning("policy without effect: containers have their own, or none", path=path)
    return nodes


async def _ask_kernel(notes: Documents) -> dict[str, Any]:
    states = await trio.to_thread.run_sync(probe, [node.path for node in SYSCTLS])
    found = {"version": __version__, "states": {path: what.value for path, what in states.items()}}
    notes.put("sysctls", found)
    return found


async def ask_again(notes: Documents) -> None:
    """Have the next daemon know what has come since, with modules, say."""
    with contextlib.suppress(SysfsdError):
        await _ask_kernel(notes)
