"""Reads files in pieces of random sizes and looks for what no file may show. A process of its own.

``tornreader.py SECONDS SEED FILE…``: fails with what it found, or prints counts as JSON.

What is asserted, of files that move and of those that don't: a size that stays; no NUL; the end of
each line where it always is; what each line begins with; and that each line which came by one
system call has as many words as always, with numbers where there are numbers. What a call gives
that is the whole of a file of at most a page is of one moment: sums are those of their parts.
What is only counted (``mixed``): lines that came by several calls, and have digits of two moments.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from collections import Counter

PAGE = 4096
_NUMBER = re.compile(rb"[0-9][0-9./]*")
_HEXADECIMAL = re.compile(rb"[0-9a-f]+")

Pieces = list[tuple[int, bytes]]


def main() -> int:
    """Read for so many seconds."""
    seconds, seed, paths = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    known: dict[str, bytes] = {}
    counts: Counter[str] = Counter()
    memory = os.memfd_create("copy")
    # Each file a first time, however little time there is.
    todo = list(dict.fromkeys(paths))
    while todo or time.monotonic() < end:
        path = todo.pop() if todo else chance.choice(paths)
        how = chance.choice((_read, _pread, _readv, _sendfile, _whole))
        largest = 2 ** chance.randrange(17)
        pieces = how(path, chance, largest, memory)
        data = b"".join(piece for _, piece in pieces)
        first = known.setdefault(path, data)
        counts["files"] += 1
        counts["changed"] += data != first
        counts[how.__name__[1:]] += 1
        problem = _problem(first, data, pieces, counts) or _contradiction(path, data, pieces)
        if problem is not None:
            sys.stderr.write(f"{path} ({how.__name__}, {largest}): {problem}\n{data!r}\n{first!r}")
            return 1
    sys.stdout.write(json.dumps(counts))
    return 0


def _read(path: str, chance: random.Random, largest: int, _memory: int) -> Pieces:
    fd = os.open(path, os.O_RDONLY)
    try:
        at, pieces = 0, []
        while piece := os.read(fd, chance.randint(1, largest)):
            pieces.append((at, piece))
            at += len(piece)
        return pieces
    finally:
        os.close(fd)


def _whole(path: str, _chance: random.Random, _largest: int, _memory: int) -> Pieces:
    fd = os.open(path, os.O_RDONLY)
    try:
        return [(0, os.read(fd, 1 << 20))]
    finally:
        os.close(fd)


def _pread(path: str, chance: random.Random, largest: int, _memory: int) -> Pieces:
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        at, pieces = 0, []
        while at < size:
            piece = os.pread(fd, chance.randint(1, largest), at)
            if not piece:
                break
            pieces.append((at, piece))
            at += len(piece)
        assert os.pread(fd, 10, size) == b""
        return pieces
    finally:
        os.close(fd)


def _readv(path: str, chance: random.Random, largest: int, _memory: int) -> Pieces:
    fd = os.open(path, os.O_RDONLY)
    try:
        at = 0
        pieces: Pieces = []
        while True:
            buffers = [bytearray(chance.randint(1, largest)) for _ in range(3)]
            length = os.readv(fd, buffers)
            if not length:
                return pieces
            pieces.append((at, b"".join(map(bytes, buffers))[:length]))
            at += length
    finally:
        os.close(fd)


def _sendfile(path: str, chance: random.Random, largest: int, memory: int) -> Pieces:
    fd = os.open(path, os.O_RDONLY)
    try:
        at = 0
        pieces: Pieces = []
        while True:
            os.ftruncate(memory, 0)
            os.lseek(memory, 0, os.SEEK_SET)
            length = os.sendfile(memory, fd, None, chance.randint(1, largest))
            if not length:
                return pieces
            pieces.append((at, os.pread(memory, length, 0)))
            at += length
    finally:
        os.close(fd)


def _problem(first: bytes, data: bytes, pieces: Pieces, counts: Counter[str]) -> str | None:
    if len(data) != len(first):
        return f"{len(data)} bytes instead of {len(first)}"
    if b"\0" in data:
        return "a NUL"
    if data == first:
        return None
    # A call that crosses a page may be put to sleep there.
    cuts = {at for at, _ in pieces} | set(range(0, len(data), PAGE))
    at = 0
    for old, new in zip(first.split(b"\n"), data.split(b"\n"), strict=False):
        end = at + len(new)
        if len(old) != len(new):
            return f"line {new!r} instead of {old!r}"
        if old != new:
            counts["lines"] += 1
            torn = any(at < cut <= end for cut in cuts)
            counts["pieced"] += torn
            if _shape(old) != _shape(new):
                if not torn:
                    return f"line {new!r} instead of one like {old!r}"
                counts["mixed"] += 1
            if _shape(old)[:1] != _shape(new)[:1]:
                return f"line {new!r} begins otherwise than {old!r}"
        at = end + 1
    return None


def _shape(line: bytes) -> list[bytes]:
    """Its words, without the digits of numbers and of values behind ``=``."""
    words = line.split()
    if len(words) == 1 and _HEXADECIMAL.fullmatch(words[0]):
        return [b"#"]
    return [
        b"%s=#" % word.partition(b"=")[0] if b"=" in word else _NUMBER.sub(b"#", word)
        for word in words
    ]


def _contradiction(path: str, data: bytes, pieces: Pieces) -> str | None:
    """Find numbers that do not go together, in what one call read of one page."""
    if len(pieces) != 1 or len(data) > PAGE:
        return None
    if path.endswith("proc/meminfo"):
        sizes = {
            line.split(b":")[0]: int(line.split()[1]) for line in data.splitlines() if line.strip()
        }
        if sizes[b"MemFree"] > sizes[b"MemTotal"]:
            return "more is free than there is"
        if abs(sizes[b"Slab"] - sizes[b"SReclaimable"] - sizes[b"SUnreclaim"]) > 1:
            return "slab is not the sum of its parts"
    elif path.endswith("proc/stat"):
        rows = [line.split() for line in data.splitlines() if line.startswith(b"cpu")]
        total, *cpus = [[int(number) for number in row[1:]] for row in rows]
        for column, sum_ in enumerate(total):
            # Each is rounded down for itself.
            parts = sum(cpu[column] for cpu in cpus)
            if not parts <= sum_ <= parts + len(cpus):
                return "the CPUs do not add up"
    return None


if __name__ == "__main__":
    sys.exit(main())
