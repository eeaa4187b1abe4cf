"""The command line's own words."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from sysfsd.cli import _brief, _denied, main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("path", "user", "message"),
    [
        ("/run/x", 1000, "Permission denied: /run/x; run it as root"),
        ("/proc/1/ns/mnt", 1000, "Permission denied: /proc/1/ns/mnt; run it as root"),
        ("/proc/1/ns/mnt", 0, "may not look into process 1: it has more privileges than this"),
        ("/proc/self/ns/mnt", 0, "Permission denied: /proc/self/ns/mnt; this shell's root lacks"),
        (None, 0, "Permission denied; this shell's root lacks a privilege"),
    ],
)
def test_root_is_not_told_to_be_root(path: str | None, user: int, message: str) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", path)
    said = _denied(error, user)
    assert said.startswith(message)
    assert user != 0 or not said.endswith("as root")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("262144", "262144"),
        ("", ""),
        ("a\tb", "a b"),
        ("x" * 48, "x" * 48),
        ("x" * 49, "x" * 46 + " …"),
        ("processor\t: 0\nvendor_id\t: GenuineIntel", "processor : 0 …"),
    ],
)
def test_a_value_keeps_to_its_column(value: str, shown: str) -> None:
    assert _brief(value) == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attach", "self"], "argument PID: invalid int value: 'self'; see: sysfsd attach --help"),
        (["show", "web"], "the following arguments are required: PATH; see: sysfsd show --help"),
        (["ps", "--nonsense"], "unrecognized arguments: --nonsense; see: sysfsd --help"),
        ([], "the following arguments are required: COMMAND; see: sysfsd --help"),
    ],
)
def test_usage_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"sysfsd: {message}\n"


def test_a_file_that_is_no_toml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sysfsd.toml"
    path.write_text("mountpoint\n")
    assert main(["doctor", "--config", str(path), "--control", "/nowhere"]) == 2
    assert capsys.readouterr().err.startswith(f"sysfsd: {path} is not valid TOML: ")
