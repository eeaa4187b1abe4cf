"""What the README says of a run; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.bench.bars import KERNEL, MAIN_FILES, value
from tests.bench.picture import CONTENDERS, readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.bench.bars import Rows

BEGIN = "<!-- made by: sh tests/run.sh bench -->\n"
END = "<!-- end -->\n"


def with_table(page: str, results: Mapping[str, Any]) -> str:
    """Return a page with the figures of a whole run where it has those of another.

    Raises ``ValueError`` when it has no place for them.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN.strip()} … {END.strip()} in it")
    return f"{before}{begin}{table(results)}{end}{after}"


def table(results: Mapping[str, Any]) -> str:
    """The figures that matter, as Markdown."""
    rows = results["reads"]
    machine = results["machine"]
    virtual = "virtual " if machine["virtual"] else ""
    busy = machine["load_before"] > machine["cpus"] / 2
    lines = [
        f"On {machine['cpus']} {virtual}CPUs ({machine['cpu']}), Linux {machine['kernel']}, cgroup "
        f"{machine['cgroup']}, lxcfs {results['versions']['lxcfs']}"
        + (f", while others used it too (load {machine['load_before']}):" if busy else ":"),
        "",
        f"| `cat` of {', '.join(MAIN_FILES)} | median | by the kernel's | a second, 8 processes "
        "| daemon's CPU each |",
        "|---|---|---|---|---|",
        *(_row(rows, contender, legend) for contender, legend, _ in CONTENDERS),
        "",
        *_scale(results["scale"]),
        *_starts(results["starts"]),
    ]
    return "\n".join(lines) + "\n"


def _row(rows: Rows, contender: str, legend: str) -> str:
    def each(name: str, who: str = contender, **case: object) -> list[float]:
        case = {"way": "cat", "clients": 1, **case}
        found = [value(rows, name, contender=who, file=file, **case) for file in MAIN_FILES]
        return [number for number in found if number is not None]

    medians = each("p50_us")
    ratios = [one / other for one, other in zip(medians, each("p50_us", KERNEL), strict=True)]
    many = each("per_second", clients=8, **{"as": "processes"})
    cpu = each("daemon_cpu_us")
    cells = [
        legend,
        f"{_several(medians)} µs",
        "1" if contender == KERNEL else _several(ratios),
        _several(many),
        "" if contender == KERNEL else f"{_several(cpu)} µs",
    ]
    return f"| {' | '.join(cells)} |"


def _several(numbers: list[float]) -> str:
    return " / ".join(readable(float(f"{number:.2g}")) for number in numbers)


def _scale(rows: Rows) -> Iterator[str]:
    one, last = rows[0], rows[-1]
    seconds = sum(row["register_seconds"] for row in rows)
    yield (
        f"{last['containers']} containers: registered in {seconds:.1f} s, "
        f"{last['rss_bytes'] / 1e6:.0f} MB for the daemon, {last['idle_cpu_percent']:.1f} % of a "
        f"CPU while nobody reads; a `cat` takes {readable(last['cat']['p50_us'])} µs, and "
        f"{readable(one['cat']['p50_us'])} µs with one container."
    )


def _starts(starts: Mapping[str, Any]) -> Iterator[str]:
    plain, ours = (starts[name]["median_ms"] for name in ("plain", "sysfsd"))
    yield f"`docker run`: {plain:.0f} ms, and {ours:.0f} ms with `--runtime=sysfsd`."
