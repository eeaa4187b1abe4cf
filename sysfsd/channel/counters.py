"""How many requests came over the channel, and how long they took."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from sysfsd.channel.packets import name_of


@dataclass(slots=True)
class OpcodeCounters:
    """One kind of request; times in ns, from reading it to writing its reply."""

    requests: int = 0
    errors: int = 0
    unsupported: int = 0
    """Answered with ENOSYS: how a file system tells the kernel to ask no more. No errors."""
    total_ns: int = 0
    longest_ns: int = 0


class ChannelCounters:
    """All kinds of requests. Unbounded in time, bounded in size: kernels know some fifty kinds."""

    def __init__(self) -> None:
        self._by_opcode: dict[int, OpcodeCounters] = {}
        self.lost_replies = 0
        """Replies to requests that nobody waited for any more."""
        self.stood_in = 0
        """Answers that came from the last refresh, because the event loop or pyfuse3 was late."""
        self.shed = 0
        """Requests that were refused because too much waited."""
        self.held = 0
        """Windows in which somebody was made to wait, so that the budget was kept (`Allowance`)."""
        self.most_in_flight = 0

    def of(self, opcode: int) -> OpcodeCounters:
        """The counters of one kind."""
        counters = self._by_opcode.get(opcode)
        if counters is None:
            counters = self._by_opcode[opcode] = OpcodeCounters()
        return counters

    def answered(self, opcode: int, nanoseconds: int, *, error: int) -> None:
        """Count one reply; ``error`` is 0 or an errno, negative as in the reply."""
        counters = self.of(opcode)
        counters.unsupported += error == -errno.ENOSYS
        counters.errors += error not in {0, -errno.ENOSYS}
        counters.total_ns += nanoseconds
        counters.longest_ns = max(counters.longest_ns, nanoseconds)

    def as_dict(self) -> dict[str, object]:
        """For ``sysfsd stats``; times in microseconds."""
        return {
            "requests": {
                name_of(opcode): {
                    "count": counters.requests,
                    "errors": counters.errors,
                    "unsupported": counters.unsupported,
                    "mean_us": round(counters.total_ns / max(1, counters.requests) / 1000, 1),
                    "longest_us": round(counters.longest_ns / 1000, 1),
                }
                for opcode, counters in sorted(self._by_opcode.items())
            },
            "lost_replies": self.lost_replies,
            "stood_in": self.stood_in,
            "shed": self.shed,
            "held": self.held,
            "most_in_flight": self.most_in_flight,
        }
