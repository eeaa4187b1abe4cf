"""What containers wrote, as a document, and the text that each node gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.containers.record import ContainerRecord
from sysfsd.kernel.cgroups import CgroupPaths
from sysfsd.sysctls import writing
from sysfsd.sysctls.kept import Kept, decode, encode
from sysfsd.sysctls.node import Made, Sysctl
from sysfsd.sysctls.store import _product_uuid
from sysfsd.sysctls.table import SYSCTLS
from sysfsd.sysctls.values import Numbers, Parameter, Text, Value

TABLE = {node.path: node for node in SYSCTLS}
WRITABLE = [node for node in SYSCTLS if not isinstance(node.default, Made)]


def record() -> ContainerRecord:
    return ContainerRecord(
        id="web", pid=1, userns=(4, 1), uid_base=1, gid_base=1, started=1.0,
        cgroup=CgroupPaths(()), serial=1, registered_ns=0,
    )  # fmt: skip


def some(node: Sysctl) -> Value:
    if isinstance(node.kind, Text):
        return "value"
    if isinstance(node.kind, Parameter):
        return (512,)
    return (max(node.kind.minimum, 0),) * node.kind.count


@given(st.sampled_from(WRITABLE), st.binary(min_size=1, max_size=60))
def test_nothing_that_is_written_does_worse_than_be_refused(node: Sysctl, data: bytes) -> None:
    before = some(node)
    done = writing.write(node, before, data)
    assert 0 <= done.consumed <= len(data)
    text = node.kind.text(done.value)
    assert text.endswith(b"\n")
    if isinstance(node.kind, Numbers):
        assert not isinstance(done.value, str)
        assert len(done.value) == node.kind.count
        assert all(node.kind.minimum <= each <= node.kind.maximum for each in done.value)
    if not done.error:
        assert node.kind.parse(text) == done.value
        # What was read can be written, and changes nothing.
        assert writing.write(node, done.value, text).value == done.value
    kept = Kept({node.path: done.value}, {}, (4, 7))
    assert decode(encode(kept, "boot"), "boot", TABLE) == kept


def test_of_another_boot_or_version() -> None:
    swappiness = "proc/sys/vm/swappiness"
    data = encode(Kept({swappiness: (1,), "proc/sys/gone": (1,)}, {}, None), "boot")
    assert decode(data, "boot", TABLE) == Kept({swappiness: (1,)}, {}, None)
    assert decode(encode(Kept({swappiness: (201,)}, {}, None), "b"), "b", TABLE).container == {}
    with pytest.raises(ValueError, match="another boot"):
        decode(data, "other", TABLE)


@given(st.binary(max_size=200))
def test_no_document_does_worse_than_be_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data, "boot", TABLE)


def test_each_has_a_path_of_its_own_and_pairs_reset_each_other() -> None:
    assert len(TABLE) == len(SYSCTLS)
    for node in SYSCTLS:
        for path in node.resets:
            assert node.path in TABLE[path].resets


def test_a_uuid_of_its_own() -> None:
    host = b"4c4c4544-0042-3510-8053-b4c04f4d3132\n"
    one, two = "0123456789abcdef" * 4, "fedcba9876543210" * 4
    assert _product_uuid(host, one) == b"4c4c4544-0042-3510-8053-0123456789ab\n"
    assert _product_uuid(host, two) != _product_uuid(host, one)
    assert _product_uuid(b"", "a name") == _product_uuid(b"", "a name")
    assert len(_product_uuid(b"", "a name")) == 37
