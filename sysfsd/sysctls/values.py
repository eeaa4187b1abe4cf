"""Values of sysctls: how the kernel reads what is written to one, and how it writes them; pure.

After ``kernel/sysctl.c``: ``proc_dointvec_minmax``, ``proc_douintvec_minmax``,
``proc_doulongvec_minmax`` and ``proc_dostring``, and for a module's parameter ``lib/kstrtox.c``,
with ``kernel.sysctl_writes_strict = 1``, the
default (admin-guide/sysctl/kernel.rst): a file has no positions, each write is one value.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Value: TypeAlias = "tuple[int, ...] | str"
"""Of a number or a vector of them, or of a text."""

INT_MAX = (1 << 31) - 1
INT_MIN = -(1 << 31)
UINT_MAX = (1 << 32) - 1
ULONG_MAX = (1 << 64) - 1

_PAGE_BYTES = 4096
"""More than a page less one byte is not looked at."""
_TOO_LONG = 21
"""A number of so many characters, whatever its value (``TMPBUFLEN - 1``)."""

_SPACES = b" \t\n\v\f\r\xa0"
"""``isspace`` of ``lib/ctype.c``."""
_SEPARATORS = b" \t\n"
_NUMBER = re.compile(rb"(-?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
"""As ``strtoul`` with base 0 has it."""
_PARAMETER = re.compile(rb"\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\n?")
"""As ``kstrtouint`` with base 0 has it."""


def same(number: int) -> int:
    """What most sysctls store: the number that was written."""
    return number


def slots(number: int) -> int:
    """A hash table fills whole pages (``nf_ct_alloc_hashtable``)."""
    return -(-number // 512) * 512


def pipe_bytes(number: int) -> int:
    """A pipe has a power of two of pages (``round_pipe_size``)."""
    return max(4096, 1 << (number - 1).bit_length()) if number else 4096


MOST_SLOTS = (INT_MAX + 1) // 8
"""``kvmalloc`` gives no more than ``INT_MAX`` bytes; a slot is a pointer."""


class Written(NamedTuple):
    """What came of a write."""

    value: Value
    """Of the file from now on. The kernel stores a vector's numbers one by one, so an error in the
    third leaves the first two changed."""
    consumed: int
    """How many bytes write(2) says it took; callers write the rest again, and it is ignored."""
    error: int = 0
    """The errno instead, or 0."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """One number, or a vector of them; made by `integers`, `unsigned` and `longs`."""

    minimum: int
    maximum: int
    count: int = 1
    signed: bool = False
    """Whether there may be a sign, even before a zero."""
    rest_ignored: bool = False
    """Whether write(2) says that it took what follows the numbers as well."""
    beyond: int = errno.EINVAL
    """The errno for a number that fits the type, but is above the maximum."""
    stored: Callable[[int], int] = same
    """What the kernel makes of a number that it takes."""

    def write(self, value: Value, data: bytes) -> Written:
        """Return what a write of `data`, which has at least one byte, makes of `value`."""
        assert not isinstance(value, str)
        numbers = list(value)
        rest = data[: _PAGE_BYTES - 1]
        for index in range(self.count):
            rest = rest.lstrip(_SPACES)
            if not rest:
                if index == 0:
                    return Written(value, 0, errno.EINVAL)
                break
            number, rest = self._take(rest)
            if number is None or not self.minimum <= number <= self.maximum:
                above = number is not None and number > self.maximum
                return Written(tuple(numbers), 0, self.beyond if above else errno.EINVAL)
            numbers[index] = self.stored(number)
        rest = rest.lstrip(_SPACES)
        left = 0 if self.rest_ignored else len(rest)
        return Written(tuple(numbers), len(data) - left)

    def text(self, value: Value) -> bytes:
        """Return what a read gives."""
        assert not isinstance(value, str)
        return b"\t".join(b"%d" % number for number in value) + b"\n"

    def parse(self, text: bytes) -> Value:
        """Read what the host's file has; raises ``ValueError``."""
        numbers = tuple(int(field) for field in text.split())
        if len(numbers) != self.count:
            raise ValueError(f"{len(numbers)} numbers, not {self.count}")
        return numbers

    def _take(self, rest: bytes) -> tuple[int | None, bytes]:
        """Read the number that a text begins with; None if it is none."""
        match = _NUMBER.match(rest)
        if match is None or match.end() >= _TOO_LONG or (match[1] and not self.signed):
            return None, rest
        after = rest[match.end() :]
        if after and after[0] not in _SEPARATORS:
            return None, rest
        number = _integer(match[2])
        if number > ULONG_MAX:
            return None, rest
        return (-number if match[1] else number), after


def _integer(digits: bytes) -> int:
    """Read a number in C's notation; more digits than any type holds are as good as too many."""
    base = 16 if digits[:2].lower() == b"0x" else 8 if digits[:1] == b"0" else 10
    # Python refuses to read thousands of digits.
    significant = digits[2 if base == 16 else 0 :].lstrip(b"0")
    return int(significant or b"0", base) if len(significant) < 32 else ULONG_MAX + 1


def integers(minimum: int = INT_MIN, maximum: int = INT_MAX, count: int = 1) -> Numbers:
    """One or more ``int``: ``proc_dointvec_minmax``."""
    return Numbers(minimum, maximum, count, signed=True)


def unsigned(minimum: int = 0, maximum: int = UINT_MAX) -> Numbers:
    """One ``unsigned int``: ``proc_douintvec_minmax``."""
    return Numbers(minimum, maximum, rest_ignored=True)


def longs(minimum: int = 0, maximum: int = ULONG_MAX, count: int = 1) -> Numbers:
    """One or more ``unsigned long``: ``proc_doulongvec_minmax``."""
    return Numbers(minimum, maximum, count)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number of a module's parameter: ``kstrtouint``, which is stricter than sysctls are."""

    maximum: int = UINT_MAX
    beyond: int = errno.ERANGE
    """The errno for a number that is above the maximum."""
    stored: Callable[[int], int] = same

    def write(self, value: Value, data: bytes) -> Written:
        """Return what a write of `data` makes of `value`."""
        # fs/kernfs/file.c: a write is a page at most, and the text in it ends with a NUL.
        data = data[:_PAGE_BYTES]
        match = _PARAMETER.fullmatch(data.partition(b"\0")[0])
        if match is None:
            return Written(value, 0, errno.EINVAL)
        number = _integer(match[1])
        if number > UINT_MAX:
            return Written(value, 0, errno.ERANGE)
        # A size of nothing, which nf_conntrack_hash_resize refuses.
        if number == 0:
            return Written(value, 0, errno.EINVAL)
        if number > self.maximum:
            return Written(value, 0, self.beyond)
        return Written((self.stored(number),), len(data))

    def text(self, value: Value) -> bytes:
        """Return what a read gives."""
        assert not isinstance(value, str)
        return b"%d\n" % value[0]

    def parse(self, text: bytes) -> Value:
        """Read what the host's file has; raises ``ValueError``."""
        return (int(text),)


@dataclass(frozen=True, slots=True)
class Text:
    """A text of less than so many bytes, up to the end of the line."""

    size: int
    choices: frozenset[str] | None = None
    """What it may be; anything else is ENOENT."""
    no_sockets: bool = False
    """Whether a name of a socket (``@/…``) is EINVAL: crashes of processes go to one only if it was
    set from the first mount namespace (``check_coredump_socket`` of ``fs/coredump.c``)."""

    def write(self, value: Value, data: bytes) -> Written:
        """Return what a write of `data` makes of `value`; what is too long is cut."""
        line = data[: self.size - 1].partition(b"\n")[0].partition(b"\0")[0]
        text = line.decode("utf-8", "surrogateescape")
        if self.choices is not None and text not in self.choices:
            return Written(value, 0, errno.ENOENT)
        if self.no_sockets and text.startswith("@"):
            return Written(value, 0, errno.EINVAL)
        return Written(text, len(data))

    def text(self, value: Value) -> bytes:
        """Return what a read gives."""
        assert isinstance(value, str)
        return value.encode("utf-8", "surrogateescape") + b"\n"

    def parse(self, text: bytes) -> Value:
        """Read what the host's file has."""
        return text.partition(b"\n")[0].decode("utf-8", "surrogateescape")


Kind: TypeAlias = "Numbers | Parameter | Text"
