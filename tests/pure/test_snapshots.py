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
    told: list[tuple[Snapshot, float] | None] = []

    def render() -> tuple[bytes, int]:
        told.append(snapshots.prolong(1, 2, 1))
        return b"longer", 2 * SECOND

    found, lifetime = snapshots.refresh(1, 2, render)
    assert told == [(found, lifetime)]
    assert (found.data, found.changed_ns, lifetime) == (b"one", first.changed_ns, 1)
    assert snapshots.refresh(1, 2, lambda: (b"never", 0))[0] is found
    # And no longer than that: then comes what was made meanwhile, which is not current any more.
    clock.now += SECOND // 2
    assert snapshots.prolong(1, 2, 1) == (found, 0.5)
    clock.now += SECOND // 2
    newer, lifetime = snapshots.refresh(1, 2, lambda: (b"never", 0))
    assert (newer.data, lifetime) == (b"longer", 0)
    assert newer.changed_ns > found.changed_ns
    assert snapshots.refresh(1, 2, lambda: (b"newest", 4 * SECOND))[0].data == b"newest"


def test_a_file_that_is_always_late_moves_nevertheless() -> None:
    clock = Clock()
    snapshots = PinnedSnapshots(clock)
    snapshots.refresh(1, 2, lambda: (b"0", SECOND))
    seen = set()
    for _ in range(20):
        clock.now += 2 * SECOND

        def render() -> tuple[bytes, int]:
            clock.now += SECOND
            prolonged = snapshots.prolong(1, 2, 1)
            assert prolonged is not None
            seen.add(int(prolonged[0].data))
            clock.now += SECOND // 2
            return b"%d" % (clock.now // SECOND), clock.now + SECOND // 20

        snapshots.refresh(1, 2, render)
        clock.now += SECOND
        snapshots.refresh(1, 2, lambda: (b"%d" % (clock.now // SECOND), clock.now))
    assert len(seen) == 20


def test_what_is_old_is_made_anew() -> None:
    clock = Clock()
    snapshots = PinnedSnapshots(clock)
    snapshots.refresh(1, 2, lambda: (b"one", 0))

    def render() -> tuple[bytes, int]:
        snapshots.prolong(1, 2, 1)
        return b"two", 0

    assert snapshots.refresh(1, 2, render)[0].data == b"one"
    clock.now = 60 * SECOND
    assert snapshots.refresh(1, 2, lambda: (b"three", 0))[0].data == b"three"


def test_one_that_shows_changed_limits_is_the_new_one() -> None:
    """While it is made, all of the container's files expire."""
    clock = Clock()
    snapshots = PinnedSnapshots(clock)
    snapshots.refresh(1, 2, lambda: (b"old", 0))
    snapshots.refresh(1, 3, lambda: (b"other", 9 * SECOND))

    def render() -> tuple[bytes, int]:
        assert snapshots.expire(1) == [2, 3]
        return b"new", SECOND

    found, lifetime = snapshots.refresh(1, 2, render)
    assert (found.data, lifetime) == (b"new", 1)
    assert snapshots.refresh(1, 3, lambda: (b"another", SECOND))[0].data == b"another"


def test_one_that_is_gone_meanwhile() -> None:
    snapshots = PinnedSnapshots(Clock())
    snapshots.refresh(1, 2, lambda: (b"one", 0))
    snapshots.prolong(1, 2, 1)
    snapshots.forget(1)
    assert snapshots.prolong(1, 2, 1) is None
    assert len(snapshots) == 0


def test_nothing_is_told_of_what_nobody_has_read() -> None:
    snapshots = PinnedSnapshots(Clock())
    assert snapshots.prolong(1, 2, 1) is None
    first, _ = snapshots.refresh(1, 2, lambda: (b"one", 5 * SECOND))
    found = snapshots.prolong(1, 2, 1)
    # It is not made any shorter.
    assert found == (first, 5)
