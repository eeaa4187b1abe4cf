"""Records as documents: what a daemon that starts knows of its predecessor's containers; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sysfsd.containers.record import ContainerRecord, check_id
from sysfsd.errors import SysfsdError
from sysfsd.kernel.cgroups import CgroupPaths
from sysfsd.policy import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Mapping


def encode(record: ContainerRecord) -> dict[str, Any]:
    """A record as a JSON object."""
    return {
        "id": record.id,
        "pid": record.pid,
        "userns": None if record.userns is None else list(record.userns),
        "uid_base": record.uid_base,
        "gid_base": record.gid_base,
        "started": record.started,
        "cgroup": [list(entry) for entry in record.cgroup.entries],
        "serial": record.serial,
        "registered_ns": record.registered_ns,
        "domain": record.domain,
        "policy": dict(record.policy.settings()),
    }


def decode(document: Mapping[str, Any]) -> ContainerRecord:
    """The record that `encode` wrote; raises ``ValueError`` for anything else."""
    try:
        userns, domain = document["userns"], document["domain"]
        return ContainerRecord(
            id=check_id(document["id"]),
            pid=_number(document["pid"]),
            userns=None if userns is None else (_number(userns[0]), _number(userns[1])),
            uid_base=_number(document["uid_base"]),
            gid_base=_number(document["gid_base"]),
            started=float(document["started"]),
            cgroup=CgroupPaths(tuple((str(name), str(path)) for name, path in document["cgroup"])),
            serial=_number(document["serial"]),
            registered_ns=_number(document["registered_ns"]),
            domain=None if domain is None else _number(domain),
            policy=DEFAULT.with_settings(document["policy"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError, SysfsdError) as error:
        raise ValueError(f"not a record: {error!r}") from None


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number")
    return value
