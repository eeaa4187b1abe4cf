"""The figures as a picture (SVG) that needs nothing but a browser, light or dark; pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from tests.bench.bars import KERNEL, LXCFS, MAIN_FILES, MOUNT, PINNED, value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.bench.bars import Rows

    Numbers = list[tuple[str, str, float]]
    """Of each contender: what it is called, its class in the style sheet, its number."""

    Groups = Sequence[tuple[str, Numbers]]
    """Several of these, and what each is about."""

CONTENDERS = (
    (PINNED, "sysfsd, pinned views", "pinned"),
    (KERNEL, "the kernel's own file", "kernel"),
    (LXCFS, "lxcfs", "lxcfs"),
    (MOUNT, "sysfsd mount", "mount"),
)
"""In the order of the picture: name in the results, in the legend, class in the style sheet."""

WIDTH = 860
_LEFT, _RIGHT = 190, 800
_ROW, _GAP, _HEAD = 15, 16, 58

# On a card of its own: transparent, it would depend on what is behind it. The colours are Okabe
# and Ito's, which colour-blind people can tell apart.
_STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  text { fill: #1f2328; font: 13px system-ui, -apple-system, 'Segoe UI', sans-serif }
  .title { font-weight: 600; font-size: 15px }
  .small { font-size: 11px; fill: #59636e }
  .grid { stroke: #d0d7de; stroke-width: 1 }
  .pinned { fill: #009e73 }
  .kernel { fill: #7d8590 }
  .lxcfs { fill: #d55e00 }
  .mount { fill: #0072b2 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #3d444d }
    text { fill: #e6edf3 }
    .small { fill: #9198a1 }
    .grid { stroke: #3d444d }
    .mount { fill: #56b4e9 }
  }
"""


def picture(results: Mapping[str, Any]) -> str:
    """Draw the reads of a run; raises ``ValueError`` when there are none."""
    rows = results["reads"]
    if not rows:
        raise ValueError("no reads to draw")
    panels = [
        (
            "cat: open, read to the end, close. Microseconds, median; less is better",
            [
                (f"/proc/{file}", _each(rows, "p50_us", file=file, way="cat", clients=1))
                for file in MAIN_FILES
            ],
        ),
        (
            "pread of a file held open. Microseconds, median; less is better",
            [
                (f"/proc/{file}", _each(rows, "p50_us", file=file, way="pread", clients=1))
                for file in MAIN_FILES
            ],
        ),
        (
            "cats of /proc/meminfo a second; more is better",
            [
                (title, _each(rows, "per_second", file="meminfo", way="cat", **case))
                for title, case in (
                    ("1 client", {"clients": 1}),
                    ("8 processes", {"clients": 8, "as": "processes"}),
                )
            ],
        ),
    ]
    body = [*_legend(24, 52)]
    top = 78
    for title, groups in panels:
        drawn = [(name, found) for name, found in groups if found]
        if drawn:
            body += _panel(top, title, drawn)
            top += _height(drawn) + 24
    for line in _machine(results):
        body.append(_text(24, top, line, "small"))
        top += 16
    height = top + 4
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>How fast containers read their files</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
        _text(24, 30, "How fast a container reads its own /proc", "title"),
    ]
    return "\n".join([*head, *body, "</svg>"]) + "\n"


def _each(rows: Rows, name: str, **case: object) -> Numbers:
    found = []
    for contender, legend, style in CONTENDERS:
        number = value(rows, name, contender=contender, **case)
        if number is not None:
            found.append((legend, style, number))
    return found


def _legend(left: int, top: int) -> Iterator[str]:
    for _, legend, style in CONTENDERS:
        yield f'<rect class="{style}" x="{left}" y="{top - 10}" width="12" height="12" rx="2"/>'
        yield _text(left + 18, top, legend)
        left += 200


def _height(groups: Groups) -> int:
    return _HEAD + sum(len(found) * _ROW + _GAP for _, found in groups)


def _panel(top: int, title: str, groups: Groups) -> Iterator[str]:
    numbers = [number for _, found in groups for *_, number in found]
    low, high = decades(numbers)
    yield _text(24, top + 16, title, "title")
    bottom = top + _height(groups) - 18
    for exponent in range(low, high + 1):
        x = _place(10.0**exponent, low, high)
        yield f'<line class="grid" x1="{x}" y1="{top + 44}" x2="{x}" y2="{bottom}"/>'
        yield _text(x, top + 38, f"{10.0**exponent:,g}", "small", anchor="middle")
    y = top + 50
    for name, found in groups:
        yield _text(_LEFT - 10, y + len(found) * _ROW / 2 + 4, name, anchor="end")
        for legend, style, number in found:
            end = _place(number, low, high)
            yield (
                f'<rect class="{style}" x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" '
                f'height="{_ROW - 3}" rx="2"><title>{escape(legend)}</title></rect>'
            )
            yield _text(end + 5, y + 10, readable(number), "small")
            y += _ROW
        y += _GAP


def decades(numbers: Sequence[float]) -> tuple[int, int]:
    """The powers of ten between which all numbers are; bars begin below the smallest."""
    return math.ceil(math.log10(min(numbers))) - 1, max(
        math.ceil(math.log10(max(numbers))), math.ceil(math.log10(min(numbers)))
    )


def readable(number: float) -> str:
    """A number with two or three digits that count."""
    if number >= 1000:
        return f"{float(f'{number:.3g}'):,.0f}"
    return f"{number:.3g}"


def _place(number: float, low: int, high: int) -> float:
    share = (math.log10(number) - low) / (high - low)
    return round(_LEFT + share * (_RIGHT - _LEFT), 1)


def _machine(results: Mapping[str, Any]) -> tuple[str, str]:
    machine, versions = results["machine"], results["versions"]
    virtual = "virtual " if machine["virtual"] else ""
    return (
        f"{machine['cpu']}, {machine['cpus']} {virtual}CPUs, Linux {machine['kernel']}, cgroup "
        f"{machine['cgroup']}; {results['date'][:10]}. Scales are logarithmic.",
        f"sysfsd {versions['sysfsd']} ({versions['commit']}), lxcfs {versions['lxcfs']}",
    )


def _text(x: float, y: float, text: str, style: str = "", *, anchor: str = "") -> str:
    extra = f' class="{style}"' if style else ""
    extra += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:g}" y="{y:g}"{extra}>{escape(text)}</text>'
