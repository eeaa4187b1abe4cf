"""JSON by the interpreter's C half says what ``json`` says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd import jsontext

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(DOCUMENTS)
def test_what_is_written_is_read_by_both(document: Any) -> None:
    text = jsontext.dumps(document)

    assert json.loads(text) == document
    assert jsontext.loads(text.encode()) == document


@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 2]))
def test_what_json_writes_is_read(document: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)

    assert jsontext.loads(f" \n{text}\t\r".encode("utf-8", "replace")) == json.loads(
        text.encode("utf-8", "replace")
    )


@given(st.text('[]{}",:1.-e\\ntrufalsu \n\x01', max_size=12))
def test_what_json_refuses_is_refused(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            jsontext.loads(text.encode())
    else:
        assert jsontext.loads(text.encode()) == expected


@pytest.mark.parametrize(
    "data", [b"", b"[1", b'{"a"', b"1 2", b"NaN", b"[Infinity]", b'"\xff"', b"\xef\xbb\xbf1"]
)
def test_is_an_error_without_json_imported(data: bytes) -> None:
    """Until Python 3.12 the scanner takes its error from ``json``, if that is there."""
    code = "import sys; sys.path[:] = eval(sys.argv[1]); from sysfsd import jsontext\n"
    code += "try: jsontext.loads(eval(sys.argv[2]))\nexcept ValueError: print('refused')"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, repr(sys.path), repr(data)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "refused\n"


def test_pairs_and_depth() -> None:
    assert jsontext.loads(b'{"a": {"a": 1, "a": 2}}', list) == [("a", [("a", 1), ("a", 2)])]
    with pytest.raises(RecursionError):
        jsontext.loads(b"[" * 100_000)
    with pytest.raises(TypeError, match="bytes"):
        jsontext.dumps([b""])
