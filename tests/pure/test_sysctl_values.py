"""Values of sysctls: what a write makes of them, and how they read."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.sysctls import writing
from sysfsd.sysctls.node import Live, Locked, Made, Sysctl
from sysfsd.sysctls.table import SYSCTLS
from sysfsd.sysctls.values import (
    INT_MAX,
    INT_MIN,
    UINT_MAX,
    ULONG_MAX,
    Kind,
    Numbers,
    Parameter,
    Text,
    Value,
    Written,
    integers,
    longs,
    pipe_bytes,
    slots,
    unsigned,
)

INT, VECTOR, UINT, LONG = integers(), integers(count=3), unsigned(), longs()
PAGE = 4096

PIECES = st.sampled_from(
    [b" ", b"\t", b"\n", b"\0", b"-", b"+", b"0x", b"0", b"1", b"7", b"8", b"9", b"f", b"\xa0"]
    + [b"%d" % number for number in (INT_MAX, INT_MAX + 1, INT_MIN, UINT_MAX, ULONG_MAX)]
)
WRITES = st.one_of(st.lists(PIECES, min_size=1).map(b"".join), st.binary(min_size=1))


def taken(value: int | tuple[int, ...], consumed: int) -> Written:
    return Written(value if isinstance(value, tuple) else (value,), consumed)


@pytest.mark.parametrize(
    ("data", "value", "left"),
    [
        (b"5", 5, 0),
        (b"5\n", 5, 0),
        (b" \t\n\v\f\r\xa05 \n\n", 5, 0),
        (b"0x1F", 31, 0),
        (b"0X1f\n", 31, 0),
        (b"010\n", 8, 0),
        (b"-0", 0, 0),
        (b"-7\n", -7, 0),
        (b"-0x10", -16, 0),
        (b"2147483647", INT_MAX, 0),
        (b"-2147483648", INT_MIN, 0),
        (b"5 x", 5, 1),
        (b"5 6\n", 5, 2),
        (b"5\n\0", 5, 1),
        (b"00000000000000000005", 5, 0),
    ],
)
def test_an_int(data: bytes, value: int, left: int) -> None:
    assert INT.write((3,), data) == taken(value, len(data) - left)


@pytest.mark.parametrize(
    "data",
    [
        b" ",
        b"\n",
        b"\0",
        b"x",
        b"+5",
        b"-",
        b"- 5",
        b"--5",
        b"5x",
        b"5,6",
        b"5\0",
        b"5\r",
        b"5\xa0",
        b"08",
        b"0x",
        b"0xg",
        b"1.5",
        b"2147483648",
        b"-2147483649",
        b"18446744073709551616",
        b"000000000000000000005",
        b" " * PAGE + b"5",
    ],
)
@pytest.mark.parametrize("kind", [INT, UINT, LONG])
def test_what_is_no_number_or_none_that_fits(kind: Numbers, data: bytes) -> None:
    if kind is INT or b"214748" not in data or data.startswith(b"-"):
        assert kind.write((3,), data) == Written((3,), 0, errno.EINVAL)


def test_no_sign_where_there_is_none() -> None:
    for kind in (UINT, LONG):
        assert kind.write((3,), b"-0").error == errno.EINVAL


def test_the_largest() -> None:
    assert UINT.write((3,), b"4294967295") == taken(UINT_MAX, 10)
    assert UINT.write((3,), b"4294967296").error == errno.EINVAL
    assert LONG.write((3,), b"18446744073709551615") == taken(ULONG_MAX, 20)


def test_an_unsigned_int_takes_what_follows() -> None:
    assert UINT.write((3,), b"5 6 x") == taken(5, 5)


def test_a_range() -> None:
    for number, error in ((-1, errno.EINVAL), (0, 0), (2, 0), (3, errno.EINVAL)):
        assert integers(0, 2).write((1,), b"%d" % number).error == error


@pytest.mark.parametrize(
    ("data", "value", "consumed", "error"),
    [
        (b"1 2 3\n", (1, 2, 3), 6, 0),
        (b"1\t2\n3", (1, 2, 3), 5, 0),
        (b"1\n", (1, 8, 9), 2, 0),
        (b"1 2", (1, 2, 9), 3, 0),
        (b"1 2 3 4", (1, 2, 3), 6, 0),
        (b"1 2 x", (1, 2, 9), 0, errno.EINVAL),
        (b"1 2147483648 3", (1, 8, 9), 0, errno.EINVAL),
        (b"x 2 3", (7, 8, 9), 0, errno.EINVAL),
    ],
)
def test_a_vector_is_stored_one_by_one(
    data: bytes, value: tuple[int, ...], consumed: int, error: int
) -> None:
    assert VECTOR.write((7, 8, 9), data) == Written(value, consumed, error)


def test_more_than_a_page_is_not_looked_at() -> None:
    data = b"5" + b" " * PAGE
    assert INT.write((3,), data).value == (5,)
    assert INT.write((3,), b" " * (PAGE - 2) + b"56") == taken(5, PAGE)


def test_a_parameter_is_read_more_strictly() -> None:
    kind = Parameter(1 << 20, errno.ENOMEM, slots)
    for data, value in ((b"1000\n", 1024), (b"+0x400", 1024), (b"010", 512), (b"1024\0x", 1024)):
        assert kind.write((512,), data) == taken(value, len(data))
    for data, error in (
        (b" 1000", errno.EINVAL),
        (b"1000 ", errno.EINVAL),
        (b"1000\n\n", errno.EINVAL),
        (b"-5", errno.EINVAL),
        (b"0", errno.EINVAL),
        (b"08", errno.EINVAL),
        (b"1048577", errno.ENOMEM),
        (b"4294967296", errno.ERANGE),
        (b"1" * 5000, errno.ERANGE),
    ):
        assert kind.write((512,), data) == Written((512,), 0, error), data


def test_a_text() -> None:
    kind = Text(8)
    for data, text in (
        (b"core", "core"),
        (b"core\nmore", "core"),
        (b"co\0re", "co"),
        (b" a\tb ", " a\tb "),
        (b"\n", ""),
        (b"123456789", "1234567"),
        (b"\xff", "\udcff"),
    ):
        assert kind.write("old", data) == Written(text, len(data))
    assert kind.text("\udcff") == b"\xff\n"


def test_a_text_that_is_refused() -> None:
    assert Text(16, choices=frozenset({"fq"})).write("fq", b"x").error == errno.ENOENT
    assert Text(16, no_sockets=True).write("core", b"@/x").error == errno.EINVAL


def test_what_is_stored() -> None:
    assert [slots(number) for number in (1, 512, 513)] == [512, 512, 1024]
    assert [pipe_bytes(number) for number in (0, 1, 4096, 4097)] == [4096, 4096, 4096, 8192]


def node(kind: Kind, locked: Locked | None = None) -> Sysctl:
    return Sysctl("proc/sys/x", kind, "", locked=locked)


def test_a_value_that_stays() -> None:
    sticky = node(integers(0, 3), Locked(3, errno.EPERM))
    assert writing.write(sticky, (2,), b"3") == taken(3, 1)
    assert writing.write(sticky, (3,), b"3\n") == taken(3, 2)
    assert writing.write(sticky, (3,), b"2") == Written((3,), 0, errno.EPERM)
    assert writing.write(sticky, (3,), b"x").error == errno.EINVAL


def test_at_a_position() -> None:
    assert writing.write(node(INT), (3,), b"5\n", 1) == taken(3, 2)
    assert writing.write(node(Parameter()), (3,), b"5\n", 1) == taken(5, 2)
    text = node(Text(8))
    assert writing.write(text, "abc", b"de\n", 2) == Written("abde", 3)
    assert writing.write(text, "abc", b"defghijk", 3) == Written("abcdefg", 8)
    assert writing.write(text, "abc", b"d", 4) == Written("abc", 1)


def test_of_a_ratio_and_an_absolute_number_one_counts() -> None:
    always = Sysctl("a", INT, "", resets=("b",))
    changed = Sysctl("a", INT, "", resets=("b",), resets_on_change=True)
    for each, data, others in (
        (always, b"5", ("b",)),
        (always, b"6", ("b",)),
        (always, b"x", ()),
        (changed, b"5", ()),
        (changed, b"6", ("b",)),
    ):
        assert writing.resets(each, (5,), writing.write(each, (5,), data)) == others


def first(kind: Kind) -> Value:
    """A value that a file of this kind may have."""
    if isinstance(kind, Text):
        return min(kind.choices) if kind.choices else "old"
    if isinstance(kind, Parameter):
        return (512,)
    return (kind.stored(max(kind.minimum, 0)),) * kind.count


@pytest.mark.parametrize("row", SYSCTLS, ids=lambda row: row.path)
@given(data=WRITES)
def test_whatever_is_written(row: Sysctl, data: bytes) -> None:
    before = first(row.kind)
    written = writing.write(row, before, data)
    assert 0 <= written.consumed <= len(data)
    assert bool(written.consumed) != bool(written.error)
    kind = row.kind
    if isinstance(kind, Text):
        assert isinstance(written.value, str)
        assert len(written.value.encode("utf-8", "surrogateescape")) < kind.size
    elif isinstance(kind, Numbers):
        assert len(written.value) == kind.count
        least = min(kind.minimum, kind.stored(kind.minimum))
        assert all(least <= number <= kind.maximum for number in map(int, written.value))
    text = kind.text(written.value)
    assert kind.parse(text) == written.value
    assert writing.write(row, written.value, text) == Written(written.value, len(text))


def test_the_table() -> None:
    paths = [row.path for row in SYSCTLS]
    assert len(paths) == len(set(paths))
    rows = {row.path: row for row in SYSCTLS}
    for row in SYSCTLS:
        assert row.path.startswith(("proc/sys/", "sys/"))
        assert row.why
        assert row.mode in {0o644, 0o600, 0o400}
        for other in row.resets:
            assert row.path in rows[other].resets
    assert {row.default for row in SYSCTLS if row.default} == {*Live, *Made}
