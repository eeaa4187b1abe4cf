"""Which CPUs a container is pinned to: pure.

Whose the value in cpuset.cpus is, cannot be read from it. It is ours if it is what we remember to
have written, and else the engine's or the administrator's, and what they say holds: the CPUs are
chosen out of theirs, and theirs comes back when there is nothing to pin any more. (Somebody who
writes the very CPUs that we chose is taken for us.)
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.kernel.procfs import parse_cpu_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sysfsd.kernel.cpusets import CpusetState


class Pin(NamedTuple):
    """What we did to one cpuset."""

    user: str
    """The value of cpuset.cpus that is not ours, as it was read."""
    wrote: tuple[int, ...]
    """The CPUs that we wrote instead."""
    former: tuple[int, ...] = ()
    """Those that we wrote before, while it is not certain that they are gone."""


class Decision(NamedTuple):
    """What to do with one cpuset."""

    pin: Pin | None
    """What to remember of it; None if nothing of ours is to be in it."""
    text: str | None
    """What to write to cpuset.cpus; None if it is right as it is."""


def decide(
    state: CpusetState, quota: int | None, pin: Pin | None, counts: Mapping[int, int]
) -> Decision:
    """Decide about a cpuset under a quota of whole CPUs (None: none, or not to be pinned).

    `counts` says how many containers are pinned to each CPU, this one's `pin` included. Raises
    ``ValueError`` if the kernel's lists are none.
    """
    requested = parse_cpu_list(state.requested)
    ours = pin is not None and _is_ours(requested, pin, state.above)
    user = pin.user if pin is not None and ours else state.requested
    allowed = _allowed(user, state.above)
    if quota is None or quota >= len(allowed):
        return Decision(None, user if ours else None)
    if ours and len(requested) == quota and frozenset(allowed).issuperset(requested):
        return Decision(Pin(user, requested), None)  # nearly always
    others = Counter(counts)
    others.subtract(() if pin is None else pin.wrote)
    target = choose(allowed, max(1, quota), others, requested if ours else ())
    former = requested if ours else ()
    return Decision(Pin(user, target, former), format_cpus(target))


def choose(
    allowed: Iterable[int], count: int, others: Mapping[int, int], current: Sequence[int]
) -> tuple[int, ...]:
    """Choose `count` of the CPUs that are allowed (all of them if they are fewer).

    First those that the container is on, so that nothing moves without need; then those with the
    fewest other pins, in the order of their numbers.
    """
    ranking = sorted(allowed, key=lambda cpu: (cpu not in current, others.get(cpu, 0), cpu))
    return tuple(sorted(ranking[:count]))


def count_pins(pins: Iterable[Pin]) -> Counter[int]:
    """Count the pins of each CPU."""
    return Counter(cpu for pin in pins for cpu in pin.wrote)


def format_cpus(cpus: Sequence[int]) -> str:
    """Format CPUs as the kernel's lists take them."""
    return ",".join(str(cpu) for cpu in cpus)


def _is_ours(requested: tuple[int, ...], pin: Pin, above: Sequence[int]) -> bool:
    """Whether a value is one that we wrote, or what v1's hotplug has left of it."""
    online = frozenset(above)
    return any(
        requested == wrote or set(requested) == online.intersection(wrote)
        for wrote in (pin.wrote, pin.former)
        if wrote
    )


def _allowed(user: str, above: Sequence[int]) -> tuple[int, ...]:
    """Return what a request comes to, as the kernel does: never nothing."""
    allowed = frozenset(above).intersection(parse_cpu_list(user))
    return tuple(sorted(allowed or above))
