"""What a view is: a path, the numbers that it shows, and how they are written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sysfsd.facts.collector import Facts

MEMBER = "{}"
"""Stands for a member's number in the path of a `Family`."""


class Source(NamedTuple):
    """One item of a view: its name, its value exactly as it is shown, and where that came from."""

    name: str
    value: str
    source: str


class Reserve(NamedTuple):
    """The room that lines of a moving file get in the page cache (`sysfsd.filesystem.layout`).

    Blanks before the line's end: too many waste a little memory; too few, and a reader may once see
    a cut line when a number outgrows them. With neither, lines are as long as their text.
    """

    line: int = 0
    """Bytes of a line, at the least. For text in columns, where blanks make room already."""
    digits: int = 0
    """Bytes of each number in a line, at the least."""
    only: tuple[bytes, ...] = (b"",)
    """How lines begin that move; all others stay as they are. The default means all."""


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
    moves: Reserve | None = None
    """What its numbers need, if they move all the time; None if it changes only with the limits of
    the container, or the machine."""

    def render(self, facts: Facts) -> bytes:
        """Return the content of the file; raises OSError if the container is gone."""
        return self.text(self.sources(facts)).encode()

    def explain(self, facts: Facts) -> list[Source]:
        """Return the items of the content and where they came from; raises as `render` does."""
        return list(self.sources(facts))


@dataclass(frozen=True, slots=True)
class Family:
    """The same file of every member of a numbered set: ``cpu{}/topology/core_id``.

    Who is a member depends on the container, and may change while it runs: its CPUs, its nodes.
    """

    path: str
    """As a view's, with `MEMBER` once, in the name of a directory."""
    members: str
    """The path of the view that lists their numbers; the same for all below one directory."""
    sources: Callable[[Facts, int], Sequence[Source]]
    text: Callable[[Sequence[Source]], str]
    mode: int = 0o444
    moves: Reserve | None = None

    def view(self, member: int) -> View:
        """Return the view of one member."""
        return View(
            self.path.replace(MEMBER, str(member)),
            partial(_of_member, self.sources, member),
            self.text,
            self.mode,
            self.moves,
        )


@dataclass(frozen=True, slots=True)
class Links:
    """Symbolic links in a directory, one for each number that a view lists: ``node0/cpu3``.

    In the directories of a family, each has its own view that lists them.
    """

    directory: str
    """A directory of views, or (with `MEMBER` in it) each of a family's."""
    prefix: str
    """What their names begin with; the number follows."""
    listed: str
    """The path of the view with the numbers, with `MEMBER` where the directory has it."""
    target: str
    """What they point to, with `MEMBER` for the number."""


def _of_member(
    sources: Callable[[Facts, int], Sequence[Source]], member: int, facts: Facts
) -> Sequence[Source]:
    return sources(facts, member)


def one_line(items: Sequence[Source]) -> str:
    """Write the values in one line: the text of most files of sysfs."""
    return " ".join(item.value for item in items) + "\n"
