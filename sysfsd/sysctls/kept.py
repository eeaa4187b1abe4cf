"""What containers wrote, as a document; pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from sysfsd.sysctls.values import Numbers, Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sysfsd.sysctls.node import Sysctl
    from sysfsd.sysctls.values import Value

LIMIT = 1 << 20
"""Bytes: each node has one value, and the longest are some kB."""

NamespaceKey = tuple[int, int]
"""Device and inode number of a namespace: its own as long as somebody is in it."""


class Kept(NamedTuple):
    """The values that one container wrote, by path."""

    container: dict[str, Value]
    network: dict[str, Value]
    """Of the network namespace that its init was in."""
    network_key: NamespaceKey | None


def encode(kept: Kept, boot: str) -> bytes:
    """Write the document; `boot` is the id of this boot: processes do not outlive it."""
    return json.dumps({"boot": boot, **kept._asdict()}).encode() + b"\n"


def decode(data: bytes, boot: str, table: Mapping[str, Sysctl]) -> Kept:
    """Read the document; raises ``ValueError`` for any other.

    A node that is not in the table any more is left out, and so is what its type does not allow:
    another version may have written it.
    """
    try:
        document: Any = json.loads(data)
        if document["boot"] != boot:
            raise ValueError("of another boot")
        key = document["network_key"]
        return Kept(
            _values(document["container"], table),
            _values(document["network"], table),
            None if key is None else (int(key[0]), int(key[1])),
        )
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not what we write: {error!r}") from None


def _values(found: Any, table: Mapping[str, Sysctl]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for path, value in found.items():
        node = table.get(path)
        if node is not None and _fits(node, value):
            values[path] = value if isinstance(value, str) else tuple(value)
    return values


def _fits(node: Sysctl, value: Any) -> bool:
    kind = node.kind
    if isinstance(kind, Text):
        return isinstance(value, str) and len(value) < kind.size
    low, high, count = (
        (kind.minimum, kind.maximum, kind.count)
        if isinstance(kind, Numbers)
        else (0, kind.maximum, 1)
    )
    return (
        isinstance(value, list)
        and len(value) == count
        # 0 is what the other of a pair becomes, whether or not it may be written.
        and all(type(each) is int and (low <= each <= high or each == 0) for each in value)
    )
