"""/proc/cpuinfo: the host's description of the container's CPUs, as one coherent machine.

Each architecture writes this file in its own way (``c_show`` or ``show_cpuinfo`` in the kernel's
arch/*/kernel), but all in paragraphs of ``key : value`` lines, one for each CPU, which begins with
its number. What else there is belongs to the machine and is kept: what stands before the first CPU
(MIPS and LoongArch's "system type", s390's summary) or after the last one (32-bit ARM's "Hardware",
POWER's "timebase").

The container's CPUs are the cores of one package, numbered from 0. Everything else in a CPU's
paragraph is the host's: model, flags and frequency are true of the CPU the container runs on. But
serial numbers say which machine of all this is, so those are 0, as where there are none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.views.view import Reserve, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sysfsd.facts.collector import Facts

_NUMBER = ("processor", "cpu number")
"""What the first line of a CPU's paragraph says: ``cpu number`` on s390."""

_SERIALS = ("Serial", "identification")
"""32-bit ARM's, of the board; s390's, of the machine with the number of the CPU before it."""

_SUMMARY_LINE = re.compile(r"processor (\d+): (.*)")
"""One CPU in s390's summary. Old kernels have no paragraphs besides it."""


class _Part(NamedTuple):
    """What is about one CPU, or (None) about none."""

    cpu: int | None
    text: str
    """Lines without the last one's end."""
    paragraph_ends: bool
    """Whether an empty line comes next; a CPU may go on where a header was."""


RESERVE = Reserve(line=32, only=(b"cpu MHz", b"clock"))
"""All that moves, where anything does: x86 and s390 tell the frequency of the moment, POWER calls
it clock."""


def sources(facts: Facts) -> list[Source]:
    """Return one item for each visible CPU, and one for any text that is about no CPU."""
    host = facts.host.cpuinfo
    parts = list(_parts(host))
    cpus = {part.cpu: part.text for part in parts if part.cpu is not None}
    count = facts.cpu.visible
    numbers = facts.cpu.numbers
    if not cpus and not any(_is_summary(part.text) for part in parts):
        return [Source("text", host, "the host's /proc/cpuinfo (no CPU in it)")]
    shown: list[tuple[str, _Part, str]] = []
    for part in parts:
        if part.cpu is None:
            text = _without_serials(part.text)
            source = "the host's /proc/cpuinfo"
            if _is_summary(text):
                text = _summary_of(text, numbers)
                source = f"{source}; {count.source}"
            shown.append(("text", part._replace(text=text), source))
        elif cpus:
            # All of the container's CPUs, where the host's first one is.
            spare = part.text
            for index, number in enumerate(numbers):
                # A CPU that went offline since: the count must still be that of /proc/stat.
                block = _renumber(cpus.get(number, spare), index, count.value)
                source = f"processor {number} of the host's /proc/cpuinfo; {count.source}"
                shown.append((f"processor {index}", _Part(index, block, True), source))
            cpus = {}
    # Most architectures end each paragraph with an empty line, others put it between two of them.
    *most, (name, last, source) = shown
    items = [
        Source(name, f"{part.text}\n\n" if part.paragraph_ends else f"{part.text}\n", source)
        for name, part, source in most
    ]
    end = "\n\n" if host.endswith("\n\n") else "\n"
    return [*items, Source(name, last.text + end, source)]


def text(items: Sequence[Source]) -> str:
    """Write the paragraphs."""
    return "".join(item.value for item in items)


def _parts(text: str) -> Iterator[_Part]:
    for paragraph in text.split("\n\n"):
        header: list[str] = []
        lines: list[str] = []
        cpu = None
        for line in paragraph.strip("\n").splitlines():
            number = _processor(line)
            if number is not None and cpu is None:
                header, lines, cpu = lines, [], number
            lines.append(line)
        if header:
            yield _Part(None, "\n".join(header), False)
        if lines:
            yield _Part(cpu, "\n".join(lines), True)


def _processor(line: str) -> int | None:
    """Return the CPU number with which a CPU's paragraph begins; None for any other line."""
    key, colon, value = line.partition(":")
    if colon and key.strip() in _NUMBER and value.strip().isdecimal():
        return int(value)
    return None


def _renumber(block: str, index: int, count: int) -> str:
    # As sysfs has it (views/syscpu.py): one thread a core, and all cores in the same of what else
    # there may be.
    topology: Mapping[str, int] = {
        "processor": index,
        "cpu number": index,
        "physical id": 0,
        "package": 0,
        "book id": 0,
        "drawer id": 0,
        "siblings": count,
        "core id": index,
        "core": index,
        "VPE": 0,
        "cpu cores": count,
        "apicid": index,
        "initial apicid": index,
        "global_id": index,
        "address": index,
        "hart": index,
    }
    lines: list[str] = []
    for line in _without_serials(block).splitlines():
        key, colon, _ = line.partition(":")
        value = topology.get(key.strip())
        lines.append(line if value is None or not colon else f"{key}: {value}")
    return "\n".join(lines)


def _without_serials(block: str) -> str:
    lines: list[str] = []
    for line in block.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() in _SERIALS:
            lines.append(f"{key}: {'0' * len(value.strip())}")
        else:
            lines.append(line)
    return "\n".join(lines)


def _is_summary(block: str) -> bool:
    return "# processors" in block


def _summary_of(block: str, numbers: Sequence[int]) -> str:
    """Return s390's summary for the CPUs of the host that have these numbers."""
    lines: list[str] = []
    cpus: dict[int, str] = {}
    for line in block.splitlines():
        match = _SUMMARY_LINE.fullmatch(line)
        if match is None:
            key = line.partition(":")[0]
            values = {"# processors": len(numbers), "max thread id": 0}
            value = values.get(key.strip())
            lines.append(line if value is None else f"{key}: {value}")
        else:
            cpus[int(match[1])] = re.sub(
                r"identification = ([0-9A-F]+)",
                lambda serial: f"identification = {'0' * len(serial[1])}",
                match[2],
            )
    spare = next(iter(cpus.values()), "")
    lines += [
        f"processor {index}: {cpus.get(number, spare)}"
        for index, number in enumerate(numbers)
        if cpus
    ]
    return "\n".join(lines)
