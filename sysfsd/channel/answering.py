"""pyfuse3, a relay and one or two connections, put together."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pyfuse3
import trio

from sysfsd.channel import device
from sysfsd.channel.counters import ChannelCounters
from sysfsd.channel.relay import MAX_IN_FLIGHT, Relay
from sysfsd.channel.standin import standing_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sysfsd.channel.allowance import Allowance


@asynccontextmanager
async def answering(
    operations: pyfuse3.Operations,
    first: device.Connection,
    second: device.Connection | None = None,
    *,
    node_in_handle: bool,
    life: int = 0,
    answer: Callable[[int, memoryview, bool], bytes | None] | None = None,
    looks: int = 0,
    allowance: Allowance | None = None,
    last_known: Callable[[bytes | bytearray], bytes | None] | None = None,
) -> AsyncIterator[Relay]:
    """Answer the kernel for as long as the context lasts. One at a time per process.

    ``second`` is where the same is mounted once more, for files that are opened one by one. For
    ``last_known`` see `StandIn`.
    """
    connections = [first] if second is None else [first, second]
    async with AsyncExitStack() as stack:
        ours, theirs = stack.enter_context(device.socket_pair(MAX_IN_FLIGHT))
        pyfuse3.init(operations, f"/dev/fd/{theirs}", set())
        stack.callback(pyfuse3.close, unmount=False)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        relay = Relay(
            first.device,
            ours,
            ChannelCounters(),
            node_in_handle=node_in_handle,
            second=None if second is None else second.device,
            resumed=frozenset(each.device for each in connections if each.resumed),
            life=life,
            answer=answer,
            looks=looks,
            allowance=allowance,
        )
        nursery.start_soon(pyfuse3.main, 1, MAX_IN_FLIGHT + 16)
        nursery.start_soon(relay.run)
        if last_known is not None:
            stack.enter_context(standing_in(relay, first.device, last_known))
        yield relay
