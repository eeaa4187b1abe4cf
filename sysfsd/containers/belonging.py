"""Which registered container a process belongs to; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sysfsd.containers.record import ContainerRecord
    from sysfsd.facts.placement import Placement
    from sysfsd.kernel.cgroups import CgroupPaths


class RecordsByCgroup:
    """Records, found by a cgroup of theirs: whoever asks for one need not look at a thousand."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str] | None, dict[int, ContainerRecord]] = {}

    def put(self, record: ContainerRecord) -> None:
        """Add a record, or put it in the place of the one with its serial."""
        self._found.setdefault(_key(record), {})[record.serial] = record

    def remove(self, record: ContainerRecord) -> None:
        """Remove the record with that serial."""
        key = _key(record)
        of_key = self._found.get(key, {})
        of_key.pop(record.serial, None)
        if not of_key:
            self._found.pop(key, None)

    def containing(self, paths: CgroupPaths) -> list[ContainerRecord]:
        """Those whose cgroups hold these (`CgroupPaths.contains`), in the order of serials."""
        found: dict[int, ContainerRecord] = {}
        for name, own in paths.entries:
            path = own
            while path and path != "/":
                found.update(self._found.get((name, path), {}))
                path = path.rpartition("/")[0]
        return [found[serial] for serial in sorted(found) if found[serial].cgroup.contains(paths)]


def _key(record: ContainerRecord) -> tuple[str, str] | None:
    # Any will do of those that must all hold somebody for the record to. None holds nobody.
    return next((entry for entry in record.cgroup.entries if entry[1] != "/"), None)


def innermost(
    by_userns: Iterable[Sequence[ContainerRecord]],
    records: Iterable[ContainerRecord],
    place: Placement,
) -> ContainerRecord | None:
    """The container of a process; None if it belongs to none of those that are registered.

    ``by_userns`` are the containers registered for its user namespace and for each one above,
    ``records`` are all, or those at least whose cgroups hold it; ``place`` is where it is in the
    cgroup hierarchies.

    The nearest user namespace decides, which nobody gets into without its owner's leave; a
    process that an administrator puts there from elsewhere keeps his cgroup. Containers that share
    a user namespace (those of one pod; ordinary ones, which share the host's) are told apart by
    their cgroups, and whoever is in a cgroup further in is in that container. That may be one
    that is not registered, such as an inner engine's: then the process is not ours to speak for.
    """
    records = list(records)
    found = next((_of_one_userns(each, place) for each in by_userns if each), None)
    deepest = _deepest(records, place)
    if deepest is not None and (found is None or found.cgroup.contains(deepest.cgroup)):
        found = deepest
    if found is None or (place.bounded and _is_further_in(place, found)):
        return None
    return found


def _of_one_userns(records: Sequence[ContainerRecord], place: Placement) -> ContainerRecord:
    # The newest is as good as any for a process in none of their cgroups.
    return _deepest(records, place) or records[-1]


def _deepest(records: Iterable[ContainerRecord], place: Placement) -> ContainerRecord | None:
    return max(
        (record for record in records if record.cgroup.contains(place.cgroup)),
        key=lambda record: record.cgroup.depth,
        default=None,
    )


def _is_further_in(place: Placement, record: ContainerRecord) -> bool:
    return record.cgroup.contains(place.cgroup) and any(
        place.cgroup.get(name) != path for name, path in record.cgroup.entries if path != "/"
    )
