"""OCI state documents, good and bad."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.errors import InvalidRequest, UsageError
from sysfsd.hook import _parse, parse_state, root_filesystem

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
        {"root": 5}, {"root": ""}, {"root": "/a\0"}, {"annotations": ["dev.sysfsd.cpu-policy"]},
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


def test_a_policy_in_the_annotations() -> None:
    annotations = {"dev.sysfsd.cpu-policy": "pin", "org.other": "x"}
    for text, expected in ((annotations, {"cpu-policy": "pin"}), ({}, {}), (None, {})):
        state = parse_state(json.dumps({**RUNC, "annotations": text}).encode())
        assert state.settings == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cpu-policy", "on", "dev.sysfsd.cpu-policy must be 'quota', 'cpuset', 'off' or 'pin'"),
        ("memory-high", 1, "dev.sysfsd.memory-high must be 'limit' or 'ignore'"),
        ("cpupolicy", "pin", "dev.sysfsd.cpupolicy is no setting; those are cpu-policy and"),
    ],
)
def test_a_mistake_in_an_annotation_names_it(name: str, value: object, message: str) -> None:
    data = json.dumps({**RUNC, "annotations": {f"dev.sysfsd.{name}": value}}).encode()
    with pytest.raises(InvalidRequest) as raised:
        parse_state(data)
    assert message in str(raised.value)


def test_a_policy_in_the_flags() -> None:
    arguments = ["--cpu-policy", "pin", "--memory-high=ignore", "--control=/c"]
    assert _parse(arguments)[2] == {"cpu-policy": "pin", "memory-high": "ignore"}
    for wrong in (["--cpu-policy"], ["--cpu-policy=on"], ["--policy", "pin"]):
        with pytest.raises(UsageError):
            _parse(wrong)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    try:
        parse_state(data)
    except InvalidRequest as error:
        assert "\n" not in str(error)
