"""Documents that two readers might take for different ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sysfsd.errors import InvalidRequest
from sysfsd.runtime.bundle import load_document, replace_document

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "text",
    [
        '{"linux": {}, "LINUX": {}}',
        '{"linux": {}, "linux": {}}',
        '{"Linux": {}}',
        '{"linux": {"Namespaces": []}}',
        '{"linux": {"namespaces": [{"type": "user", "Path": "/x"}]}}',
        '{"hooks": {}, "Hoo\\u212as": {}}',
        '{"future": {"a": 1, "A": 2}}',
    ],
)
def test_keys_in_another_case(tmp_path: Path, text: str) -> None:
    """Go takes them for the same, and the last one wins."""
    path = tmp_path / "config.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InvalidRequest, match="key"):
        load_document(str(path))


def test_unknown_keys_are_none_of_our_business(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    document = {"linux": {"future": {"x": [1]}}, "annotations": {"org.example/A": "b"}}
    path.write_text(json.dumps(document))
    path.chmod(0o640)
    loaded = load_document(str(path))
    assert loaded == document
    loaded["more"] = 1
    replace_document(str(path), loaded)
    assert json.loads(path.read_text()) == {**document, "more": 1}
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]
