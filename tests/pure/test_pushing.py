"""Telling the kernel that files have changed: at once, but never more than it has room for."""

from __future__ import annotations

import errno

import trio
import trio.testing

from sysfsd.filesystem.pushing import AT_ONCE, Pushing


def test_a_few_go_out_at_once() -> None:
    sent: list[int] = []
    pushing = Pushing(sent.append)
    pushing.push(range(10))
    assert sent == list(range(10))
    assert pushing.stats() == {"pushed": 10, "failed": 0, "waiting": 0}


def test_many_go_out_bit_by_bit() -> None:
    sent: list[int] = []
    pushing = Pushing(sent.append)
    wanted = list(range(3 * AT_ONCE + 7))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pushing.run)
            pushing.push(wanted)
            pushing.push(wanted[-5:])  # which wait already
            assert len(sent) == AT_ONCE
            seen = len(sent)
            while len(sent) < len(wanted):
                await trio.testing.wait_all_tasks_blocked()
                assert len(sent) - seen <= AT_ONCE
                seen = len(sent)
                await trio.sleep(0.001)
            # And then there is room again.
            await trio.sleep(1)
            pushing.push([-1])
            assert sent[-1] == -1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert sent == [*wanted, -1]


def test_one_that_fails_is_counted() -> None:
    def fail(_inode: int) -> None:
        raise OSError(errno.ENOSYS, "not by this kernel")

    pushing = Pushing(fail)
    pushing.push([1, 2])
    assert pushing.stats() == {"pushed": 0, "failed": 2, "waiting": 0}
