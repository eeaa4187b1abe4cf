"""Who answers when the event loop, or what is behind it, does not."""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING

import pytest

from sysfsd.channel import standin
from sysfsd.channel.packets import Opcode, parse_request
from tests.pure.test_relay import Ends, ends, quiet, relay
from tests.support.wait import patient

if TYPE_CHECKING:
    import trio

    from tests.support.tidy import ExpectedLog

__all__ = ["ends"]

KNOWN = 2
"""The number of the request that something is known for."""


def known(packet: bytes | bytearray) -> bytes | None:
    return b"known" if parse_request(packet).unique == KNOWN else None


REPLY = struct.pack("=IiQ", 21, 0, KNOWN) + b"known"


async def test_for_pyfuse3(ends: Ends, nursery: trio.Nursery, expected_log: ExpectedLog) -> None:
    expected_log.allow("takes too long")
    one = relay(ends)
    nursery.start_soon(one.run)
    with standin.standing_in(one, ends.device.fileno(), known):
        for unique in (KNOWN, 4):
            ends.ask(Opcode.GETATTR, unique)
            await ends.heard(ends.server)
        assert await ends.heard(ends.kernel) == REPLY
    assert one.counters.stood_in == 1
    # Nothing is known for the other; its answer comes when it comes.
    assert await quiet(ends.kernel)
    ends.answer(4)
    assert await ends.heard(ends.kernel) == struct.pack("=IiQ", 16, 0, 4)


async def test_for_an_event_loop_that_stands_still(
    ends: Ends, nursery: trio.Nursery, expected_log: ExpectedLog
) -> None:
    expected_log.allow("takes too long")
    one = relay(ends)
    nursery.start_soon(one.run)
    ends.ask(Opcode.INIT, 2, bytes(64))
    await ends.heard(ends.server)
    ends.server.send(struct.pack("=IiQ", 80, 0, 2) + bytes(64))
    await ends.heard(ends.kernel)
    heard: list[bytes] = []

    def hear() -> None:
        ends.kernel.setblocking(True)
        ends.kernel.settimeout(patient(20))
        heard.append(ends.kernel.recv(100))
        ends.kernel.setblocking(False)

    with standin.standing_in(one, ends.device.fileno(), known):
        # Not read by anybody yet.
        ends.ask(Opcode.GETATTR, 4)
        ends.ask(Opcode.GETATTR, KNOWN)
        thread = threading.Thread(target=hear)
        thread.start()
        thread.join()  # the event loop's own thread waits for that
        assert heard == [REPLY]
        # The other was read meanwhile, and is not lost.
        request = await ends.heard(ends.server)
        assert parse_request(request).unique == 4
        assert await quiet(ends.server)
    assert one.in_flight == 1


async def test_nobody_stands_in_where_all_is_well(ends: Ends, nursery: trio.Nursery) -> None:
    """Whoever takes the requests one by one has as much time as that takes."""
    one = relay(ends)
    nursery.start_soon(one.run)
    with standin.standing_in(one, ends.device.fileno(), lambda _: pytest.fail("asked")):
        for unique in range(4, 2000, 2):
            ends.ask(Opcode.GETATTR, unique)
            await ends.heard(ends.server)
            ends.answer(unique)
            await ends.heard(ends.kernel)
    assert one.counters.stood_in == 0
