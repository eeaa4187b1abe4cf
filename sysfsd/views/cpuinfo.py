"""/proc/cpuinfo: the host's description of the container's CPUs, as one coherent machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sysfsd.views.view import Source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sysfsd.facts.collector import Facts


def sources(facts: Facts) -> list[Source]:
    """Return one item for each visible CPU, and one for any text that is about no CPU.

    The container's CPUs are the cores of one package, numbered from 0. Everything else in a CPU's
    block is the host's: model, flags and frequency are true of the CPU the container runs on.
    """
    count = facts.cpu.visible
    blocks = [block for block in facts.host.cpuinfo.split("\n\n") if block.strip()]
    cpus = {number: block for block in blocks if (number := _processor(block)) is not None}
    if not cpus:
        return [Source("text", facts.host.cpuinfo, "the host's /proc/cpuinfo (no CPU in it)")]
    items: list[Source] = []
    spare = next(iter(cpus.values()))
    for index, number in enumerate(facts.cpu.numbers):
        items.append(
            Source(
                f"processor {index}",
                # A CPU that went offline since: the count must still be that of /proc/stat.
                _renumber(cpus.get(number, spare), index, count.value),
                f"processor {number} of the host's /proc/cpuinfo; {count.source}",
            )
        )
    items += [
        Source("text", block.strip("\n"), "the host's /proc/cpuinfo")
        for block in blocks
        if _processor(block) is None
    ]
    return items


def text(items: Sequence[Source]) -> str:
    """Write the blocks, with an empty line after each."""
    return "".join(f"{item.value}\n\n" for item in items)


def _processor(block: str) -> int | None:
    """Return the CPU number that a block is about; None if it is about no CPU."""
    for line in block.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == "processor" and value.strip().isdecimal():
            return int(value)
    return None


def _renumber(block: str, index: int, count: int) -> str:
    topology: Mapping[str, int] = {
        "processor": index,
        "physical id": 0,
        "siblings": count,
        "core id": index,
        "cpu cores": count,
        "apicid": index,
        "initial apicid": index,
    }
    lines: list[str] = []
    for line in block.strip("\n").splitlines():
        key, colon, _ = line.partition(":")
        value = topology.get(key.strip())
        lines.append(line if value is None or not colon else f"{key}: {value}")
    return "\n".join(lines)
