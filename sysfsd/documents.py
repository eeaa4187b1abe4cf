"""Small JSON documents in a directory of ours alone: what a successor of this process must know.

Each is replaced at once, and those of an earlier boot are as good as none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import TYPE_CHECKING, Any

from sysfsd import state
from sysfsd.kernel.procfs import boot_id, read_fd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIMIT = 1 << 20
"""Bytes of one document."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SUFFIX = ".json"


class Documents:
    """A directory of them; a name is letters, digits, ``_`` and ``-``. May raise ``OSError``."""

    def __init__(self, directory: str, *, proc: str = "/proc") -> None:
        """Use a directory, which is made."""
        self._boot = boot_id(proc)
        self._directory = state.open_private(directory)

    def put(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one, whether or not there is one of that name."""
        data = json.dumps({"boot": self._boot, **content}).encode()
        state.replace_file(f"{name}{_SUFFIX}", data, dir_fd=self._directory)

    def remove(self, name: str) -> None:
        """Remove one; there need not be one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{name}{_SUFFIX}", dir_fd=self._directory)

    def get(self, name: str) -> dict[str, Any] | None:
        """Read one; None if there is none, of this boot, that is what we write."""
        try:
            fd = os.open(
                f"{name}{_SUFFIX}",
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                dir_fd=self._directory,
            )
        except OSError:
            return None
        try:
            document = json.loads(read_fd(fd, LIMIT))
        except (OSError, ValueError, RecursionError):
            return None
        finally:
            os.close(fd)
        if not isinstance(document, dict) or document.pop("boot", None) != self._boot:
            return None
        return document

    def all(self) -> dict[str, dict[str, Any]]:
        """Read all that can be read, by name; the others are removed."""
        found: dict[str, dict[str, Any]] = {}
        for file in sorted(os.listdir(self._directory)):
            name, suffix = os.path.splitext(file)
            document = self.get(name) if suffix == _SUFFIX and _NAME.fullmatch(name) else None
            if document is not None:
                found[name] = document
            else:
                with contextlib.suppress(OSError):
                    os.unlink(file, dir_fd=self._directory)
        return found

    def close(self) -> None:
        """Let go of the directory, and leave it as it is."""
        os.close(self._directory)


@contextlib.contextmanager
def opened(directory: str) -> Iterator[Documents]:
    """Use a directory of documents meanwhile."""
    documents = Documents(directory)
    try:
        yield documents
    finally:
        documents.close()
