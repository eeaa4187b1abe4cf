"""What the kernel was told of a file is what it gets when it reads."""

from __future__ import annotations

from sysfsd.filesystem.snapshots import PinnedSnapshots, Snapshot

SECOND = 10**9


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def test_one_is_kept_until_it_expires_and_reading_refreshes_none() -> None:
    clock = Clock()
    snapshots = PinnedSnapshots(clock)
    first, lifetime = snapshots.refresh(1, 2, lambda: (b"one", SECOND))
    assert (first.data, lifetime) == (b"one", 1)
    clock.now = SECOND
    assert snapshots.last(1, 2, lambda: (b"two", 2 * SECOND)) is first
    second, _ = snapshots.refresh(1, 2, lambda: (b"two", 2 * SECOND))
    assert second.data == b"two"
    assert second.changed_ns > first.changed_ns
    assert snapshots.last(1, 2, lambda: (b"three", 0)) is second


def test_what_somebody_was_told_meanwhile_stays() -> None:
    """Or the kernel, which has the size of one, would read the other."""
    clock = Clock()
    snapshots = PinnedSnapshots(clock)
    first, _ = snapshots.refresh(1, 2, lambda: (b"one", SECOND))
    clock.now = 2 * SECOND
    told: list[Snapshot | None] = []

    def render() -> tuple[bytes, int]:
        told.append(snapshots.prolong(1, 2, 1))
        return b"longer", 4 * SECOND

    found, lifetime = snapshots.refresh(1, 2, render)
    assert told == [found]
    assert (found.data, found.changed_ns, lifetime) == (b"one", first.changed_ns, 1)
    assert snapshots.refresh(1, 2, lambda: (b"longer", 0))[0] is found
    clock.now = 3 * SECOND
    assert snapshots.refresh(1, 2, lambda: (b"longer", 4 * SECOND))[0].data == b"longer"


def test_nothing_is_told_of_what_nobody_has_read() -> None:
    snapshots = PinnedSnapshots(Clock())
    assert snapshots.prolong(1, 2, 1) is None
    first, _ = snapshots.refresh(1, 2, lambda: (b"one", 5 * SECOND))
    found = snapshots.prolong(1, 2, 1)
    # It is not made any shorter.
    assert found is not None
    assert found == first
