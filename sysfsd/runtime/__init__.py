"""``sysfsd-runc``: an OCI runtime that makes system containers and lets runc or crun run them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Spec: TypeAlias = dict[str, Any]
    """A JSON object of the runtime spec, or a part of one, as it was read."""
