"""OCI state documents, good and bad."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.errors import InvalidRequest
from sysfsd.hook import parse_state, root_filesystem

RUNC = {
    "ociVersion": "1.0.2-dev", "id": "web", "status": "creating", "pid": 4321, "bundle": "/b",
    "annotations": {"a": "b"},
}  # fmt: skip
CRUN = {"ociVersion": "1.0", "id": "web", "pid": 4321, "root": "/r", "bundle": "/b",
        "status": "created"}  # fmt: skip


def test_runc_and_crun() -> None:
    assert (
        (state := parse_state(json.dumps(RUNC).encode())).id, state.pid, state.bundle,
    ) == ("web", 4321, "/b")  # fmt: skip
    assert root_filesystem(parse_state(json.dumps(CRUN).encode())) == "/r"
    assert (
        root_filesystem(parse_state(json.dumps({**CRUN, "root": "rootfs"}).encode())) == "/b/rootfs"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""}, {"id": "../x"}, {"id": "a/b"}, {"id": 7}, {"id": None}, {"id": "x" * 256},
        {"pid": 0}, {"pid": -1}, {"pid": "1"}, {"pid": True}, {"pid": None}, {"pid": 1 << 40},
        {"bundle": "relative"}, {"bundle": None}, {"bundle": "/a\0b"},
        {"root": 5}, {"root": ""}, {"root": "/a\0"},
    ],
    ids=str,
)  # fmt: skip
def test_a_field_that_makes_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        parse_state(json.dumps({**RUNC, **change}).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", json.dumps(RUNC).encode()[:-5], b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "not UTF-8", "truncated", "deep"],
)
def test_something_else_than_a_state(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_state(data)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    try:
        parse_state(data)
    except InvalidRequest as error:
        assert "\n" not in str(error)
