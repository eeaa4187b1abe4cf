"""Layouts that stay: each refresh of a moving file has its size, and its lines their offsets.

The pages that a container's readers share are replaced at each refresh. Who takes a file in
several reads, or reads once more to see its end, may have read the first part before and reads the
next one after: if offsets moved meanwhile it would see a cut line, and NULs where the size did. So
every line gets blanks before its end, for its numbers to grow into. sscanf(3), strtok(3), split()
and the shell's ``read`` pass over them.

What a line gets follows from what kind of line it is and not from how long its numbers are at
present, as long as they fit: the successor of a daemon that was killed lays files out alike, and
the kernel, which knows their sizes by heart, reads from that. Within a line numbers stay one blank
apart, as programs expect that split at each: who takes less than a line at a time may get digits of
two moments. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sysfsd.views.view import Reserve

BLOCK_BYTES = 1024
"""No line lies across two of these. Of pages read(2) copies one after the other, and a refresh may
come in between; and stdio reads in pieces of a page or more (glibc), or of this (musl)."""

_NUMBER = re.compile(rb"(?<![^\s=])\d[\d./]*(?=\s|$)")
"""A word, or a value behind a name and ``=``: ``12``, ``0.25``, ``3/127``; not the 3 of cpu3."""


class Layout(NamedTuple):
    """How wide each line is without its end, and how many bytes that makes with all ends."""

    widths: tuple[int, ...]
    size: int


def laid_out(data: bytes, reserve: Reserve, known: Layout | None) -> tuple[bytes, Layout]:
    """Return a text with its lines filled up, as they were before if they fit into that."""
    lines = data.split(b"\n")
    if known is not None and len(lines) == len(known.widths):
        filled = b"\n".join(map(bytes.ljust, lines, known.widths))
        # No line is ever cut: one that does not fit makes it longer.
        if len(filled) == known.size:
            return filled, known
    widths = _widths(lines, reserve)
    filled = b"\n".join(map(bytes.ljust, lines, widths))
    return filled, Layout(widths, len(filled))


def _widths(lines: Sequence[bytes], reserve: Reserve) -> tuple[int, ...]:
    widths: list[int] = []
    at = 0
    for line in lines:
        width = len(line)
        if line and line.startswith(reserve.only):
            numbers = _NUMBER.findall(line) if reserve.digits else ()
            width += sum(max(0, reserve.digits - len(number)) for number in numbers)
            width = max(width, reserve.line)
            into = at % BLOCK_BYTES
            # Lines that never move may lie anywhere. Blanks in an empty one, which separates
            # paragraphs, would make it none.
            if into + width >= BLOCK_BYTES > width and into and lines[len(widths) - 1]:
                widths[-1] += BLOCK_BYTES - into
                at += BLOCK_BYTES - into
        widths.append(width)
        at += width + 1
    return tuple(widths)
