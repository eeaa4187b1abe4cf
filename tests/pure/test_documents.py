"""What one process leaves for the next: documents, records among them."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd import unit
from sysfsd.containers import saved
from sysfsd.containers.record import ContainerRecord
from sysfsd.documents import Documents, opened
from sysfsd.kernel.cgroups import CgroupPaths
from sysfsd.policy import SETTINGS, Policy

if TYPE_CHECKING:
    from pathlib import Path


def test_there_and_back(tmp_path: Path) -> None:
    with opened(str(tmp_path / "kept")) as kept:
        kept.put("one", {"a": [1, "ü", None]})
        kept.put("one", {"a": 2})
        kept.put("two", {})
        assert kept.get("one") == {"a": 2}
        assert kept.get("three") is None
    with opened(str(tmp_path / "kept")) as kept:
        assert kept.all() == {"one": {"a": 2}, "two": {}}
        kept.remove("one")
        kept.remove("one")
        assert kept.all() == {"two": {}}
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "kept/two.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a": 1}',
        b'{"boot": "another", "a": 1}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_what_we_did_not_write_is_as_good_as_nothing(tmp_path: Path, content: bytes) -> None:
    kept = Documents(str(tmp_path))
    (tmp_path / "odd.json").write_bytes(content)
    assert kept.get("odd") is None
    assert kept.all() == {}
    assert os.listdir(tmp_path) == []
    kept.close()


def test_other_things_in_the_directory(tmp_path: Path) -> None:
    kept = Documents(str(tmp_path))
    kept.put("good", {"a": 1})
    (tmp_path / "torn.json.new").write_text("{")
    (tmp_path / "link.json").symlink_to(tmp_path / "good.json")
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "directory.json").mkdir()
    assert kept.all() == {"good": {"a": 1}}
    assert sorted(os.listdir(tmp_path)) == ["directory.json", "good.json"]
    kept.close()


KEYS = [
    *("id", "pid", "userns", "uid_base", "gid_base", "started", "cgroup", "serial"),
    *("registered_ns", "domain", "policy"),
]
numbers = st.integers(0, 1 << 62)
records = st.builds(
    ContainerRecord,
    id=st.from_regex(r"[A-Za-z0-9_+-]{1,64}", fullmatch=True),
    pid=numbers,
    userns=st.none() | st.tuples(numbers, numbers),
    uid_base=numbers,
    gid_base=numbers,
    started=st.floats(0, 1e9),
    cgroup=st.lists(st.tuples(st.text(), st.text()), max_size=3).map(
        lambda entries: CgroupPaths(tuple(entries))
    ),
    serial=numbers,
    registered_ns=numbers,
    domain=st.none() | numbers,
    policy=st.builds(
        Policy,
        st.sampled_from(SETTINGS["cpu-policy"]),
        st.sampled_from(SETTINGS["memory-high"]),
    ),
)


@given(records)
def test_records(record: ContainerRecord) -> None:
    assert saved.decode(json.loads(json.dumps(saved.encode(record)))) == record


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(records, st.sampled_from(KEYS) | st.text(), json_values)
def test_damaged_records(record: ContainerRecord, key: str, value: Any) -> None:
    """Each is a record, or a ValueError: never anything else."""
    document = saved.encode(record) | {key: value}
    with contextlib.suppress(ValueError):
        assert isinstance(saved.decode(document), ContainerRecord)
    for name in saved.encode(record):
        without = {each: found for each, found in document.items() if each != name}
        with pytest.raises(ValueError, match="not a record"):
            saved.decode(without)


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ("", False),
        ("No jobs running.\n", False),
        ("812 sysfsd.service restart running\n", True),
        ("812 sysfsd.service stop running\n", False),
        ("812 sysfsd.service start waiting\n811 docker.service stop waiting\n", True),
        ("812 docker.service restart running\n", False),
    ],
)
def test_what_systemd_is_about_to_do(jobs: str, expected: bool) -> None:
    assert unit.is_restarted("sysfsd.service", jobs) is expected


def test_after_a_failure_it_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_RESULT", "signal")
    assert unit.restarts("sysfsd.service")
