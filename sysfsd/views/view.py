"""What a view is: a path, the numbers that it shows, and how they are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sysfsd.facts.collector import Facts


class Source(NamedTuple):
    """One item of a view: its name, its value exactly as it is shown, and where that came from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class View:
    """What every container sees at one path, as a function of its facts.

    The text is made from the sources and nothing else, so that ``show --explain`` cannot say
    anything but what is shown.
    """

    path: str
    """Below the container's directory: ``proc/meminfo``."""
    sources: Callable[[Facts], Sequence[Source]]
    text: Callable[[Sequence[Source]], str]
    mode: int = 0o444
    """The permissions of the file, as the kernel's own has them."""

    def render(self, facts: Facts) -> bytes:
        """Return the content of the file; raises OSError if the container is gone."""
        return self.text(self.sources(facts)).encode()

    def explain(self, facts: Facts) -> list[Source]:
        """Return the items of the content and where they came from; raises as `render` does."""
        return list(self.sources(facts))
