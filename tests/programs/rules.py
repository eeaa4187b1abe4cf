"""When a number that a program prints in a container is right."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

KIB = 1 << 10
MIB = 1 << 20

PROGRAMS_USE = 128 * MIB
"""More than the programs themselves use at a time (the JVM and Node take about 50 MiB)."""

NEIGHBOURS = 32
"""How many tasks of somebody else want to run all the time while we look."""

OWN_LOAD = 3.0
"""More than the load of a container in which one of our programs runs after another."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A container as it is. Somebody else keeps all CPUs busy with ``NEIGHBOURS`` tasks."""

    memory: int
    """Its limit, in bytes."""
    ballast: int
    """Bytes in its tmpfs: in use, and not to be had without swap."""
    cpus: int
    """How many CPUs it can keep busy: cpuset, and quota rounded up."""
    affinity: int
    """On how many CPUs the scheduler lets it run: the cpuset alone."""
    started: float
    """A moment before it was started, of ``time.monotonic``."""
    host_boot: float
    """When the host was booted, in seconds since the epoch."""
    swap: int = 0
    """What it may swap, in bytes."""

    @property
    def age(self) -> float:
        """More seconds than it has been running for."""
        return time.monotonic() - self.started


class Rule(NamedTuple):
    """What is right, in words and as a function of the value, its precision and the container."""

    words: Callable[[Expected], str]
    right: Callable[[float, float, Expected], bool]


def _mib(size: float) -> str:
    return f"{size / MIB:.0f} MiB"


def _between(
    low: Callable[[Expected], float], high: Callable[[Expected], float]
) -> Callable[[float, float, Expected], bool]:
    return lambda value, precision, e: low(e) - precision <= value <= high(e) + precision


def _is(what: Callable[[Expected], float]) -> Callable[[float, float, Expected], bool]:
    return _between(what, what)


class Quantity(Enum):
    """What a number is. Sizes are bytes, times seconds, shares percent."""

    MEMORY_TOTAL = Rule(lambda e: _mib(e.memory), _is(lambda e: e.memory))
    MEMORY_USED = Rule(
        lambda e: f"{_mib(e.ballast)} and its own",
        _between(lambda e: e.ballast, lambda e: e.ballast + PROGRAMS_USE),
    )
    MEMORY_OF_PROGRAMS = Rule(
        lambda e: "its own, without tmpfs", _between(lambda e: 0, lambda e: PROGRAMS_USE)
    )
    MEMORY_FREE = Rule(
        lambda e: f"at most {_mib(e.memory - e.ballast)}",
        _between(lambda e: 0, lambda e: e.memory - e.ballast),
    )
    MEMORY_AVAILABLE = Rule(
        lambda e: f"{_mib(e.memory - e.ballast)} less its own",
        _between(
            lambda e: e.memory - e.ballast - PROGRAMS_USE,
            lambda e: e.memory - e.ballast,
        ),
    )
    SWAP_TOTAL = Rule(lambda e: _mib(e.swap), _is(lambda e: e.swap))
    CPUS = Rule(lambda e: str(e.cpus), _is(lambda e: e.cpus))
    IDLE_PERCENT = Rule(lambda e: "idle: most of 100 %", _between(lambda e: 40.0, lambda e: 100.0))
    BUSY_PERCENT = Rule(lambda e: "idle: about 0 %", _between(lambda e: 0.0, lambda e: 60.0))
    IDLE_TIME = Rule(
        lambda e: "at most uptime by CPUs", _between(lambda e: 0.0, lambda e: e.age * e.cpus)
    )
    UPTIME = Rule(lambda e: "since it was started", _between(lambda e: 0.0, lambda e: e.age))
    LOAD = Rule(lambda e: f"less than {OWN_LOAD:.0f}", _between(lambda e: 0.0, lambda e: OWN_LOAD))
    RUNNING = Rule(lambda e: "a few", _between(lambda e: 0, lambda e: NEIGHBOURS // 4))
    TASKS = Rule(lambda e: "a few", _between(lambda e: 1, lambda e: NEIGHBOURS - 1))
    NOT_COUNTED = Rule(lambda e: "0: not told", _is(lambda e: 0))
    HOST_BOOT = Rule(lambda e: "the host's", _is(lambda e: e.host_boot))
    LESS_THAN_HOST = Rule(lambda e: "its own", lambda value, precision, e: value >= 0)
    """Its own, which is less than all of the host's: `measure` compares with that."""

    def right(self, value: float, precision: float, expected: Expected) -> bool:
        """Whether a value, printed to a precision, is right."""
        rule: Rule = self.value
        return not math.isnan(value) and rule.right(value, precision, expected)

    def words(self, expected: Expected) -> str:
        """Say what is right."""
        rule: Rule = self.value
        return rule.words(expected)

    def show(self, value: float) -> str:
        """Write a value of this kind for people."""
        if math.isnan(value):
            return "nothing"
        if self in _SIZES:
            return _mib(value)
        if self in _SHARES:
            return f"{value:.0f} %"
        if self in {Quantity.UPTIME, Quantity.IDLE_TIME}:
            return f"{value:.0f} s"
        if self is Quantity.LESS_THAN_HOST:
            return f"{value:,.0f}"
        return f"{value:.2f}" if self is Quantity.LOAD else f"{value:.0f}"


_SIZES = {
    Quantity.MEMORY_TOTAL,
    Quantity.MEMORY_USED,
    Quantity.MEMORY_OF_PROGRAMS,
    Quantity.MEMORY_FREE,
    Quantity.MEMORY_AVAILABLE,
    Quantity.SWAP_TOTAL,
}
_SHARES = {Quantity.IDLE_PERCENT, Quantity.BUSY_PERCENT}
