"""JSON for what starts with every container, by the interpreter's own scanner and encoder.

``import json`` costs 10 ms of a start that takes 20: its Python half compiles regular expressions
with ``re``, for what the C half (``_json``, which does all the work in there as well) has no use
for. What is different here: only UTF-8, one document and white space around it; NaN and Infinity,
which JSON does not know, are refused.

On the hook's path: standard library only.
"""

from __future__ import annotations

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SPACE = " \t\n\r"


class _Settings:
    """What the scanner asks its context for (``Modules/_json.c``, ``scanner_new``)."""

    __slots__ = (
        "object_hook", "object_pairs_hook", "parse_constant", "parse_float", "parse_int", "strict",
    )  # fmt: skip

    def __init__(self, pairs_hook: Callable[[list[tuple[str, Any]]], object] | None) -> None:
        self.strict = True
        self.object_hook = None
        self.object_pairs_hook = pairs_hook
        self.parse_float = float
        self.parse_int = int
        self.parse_constant = _refuse


def loads(data: bytes, pairs_hook: Callable[[list[tuple[str, Any]]], object] | None = None) -> Any:
    """Parse a document; ``pairs_hook`` makes something of each object's names and values.

    Raises ``ValueError`` for what is not JSON, ``RecursionError`` for what is nested too deeply.
    """
    text = str(data, "utf-8")
    body = text.lstrip(_SPACE)
    scan = _json.make_scanner(_Settings(pairs_hook))  # type: ignore[arg-type] # any such object
    try:
        value, end = scan(body, 0)
    except (StopIteration, SystemError) as error:
        # The scanner raises json's own error, if that module is there to take it from; until
        # Python 3.12 it is not looked for, and there is no error at all. Now there is time.
        raise _explained(text) from error
    if rest := body[end:].strip(_SPACE):
        raise ValueError(f"something comes after the end: {rest[:20]!r}")
    return value


def _explained(text: str) -> ValueError:
    import json  # noqa: PLC0415 - nobody waits for an error

    try:
        json.loads(text)
    except ValueError as error:
        return error
    return ValueError("not JSON")


def dumps(value: object) -> str:
    """Return a document in ASCII without white space; raises ``TypeError`` for what has no form."""
    encode = _json.make_encoder(
        None, _fail, _json.encode_basestring_ascii, None, ":", ",", False, False, False
    )
    return "".join(encode(value, 0))


def _fail(value: object) -> object:
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def _refuse(word: str) -> object:
    raise ValueError(f"{word} is not JSON")
