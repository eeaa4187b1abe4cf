"""How high the bars are, and which were reached; pure."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Rows = Sequence[Mapping[str, Any]]

KERNEL, LXCFS, MOUNT, PINNED = "kernel", "lxcfs", "sysfsd mount", "sysfsd pinned"
MAIN_FILES = ("meminfo", "stat", "cpuinfo")

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {"≤": operator.le, "≥": operator.ge}


@dataclass(frozen=True, slots=True)
class Bar:
    """What is wanted, and what was found."""

    name: str
    sign: str
    wanted: float
    found: float
    unit: str

    @property
    def reached(self) -> bool:
        """Whether it was."""
        return _COMPARE[self.sign](self.found, self.wanted)

    def as_dict(self) -> dict[str, Any]:
        """For the results."""
        return {**asdict(self), "reached": self.reached}

    def line(self) -> str:
        """For people."""
        said = "reached    " if self.reached else "NOT REACHED"
        return f"{said}  {self.name}: {self.found:.3g}{self.unit} ({self.sign} {self.wanted:g})"


def bars(results: Mapping[str, Any]) -> list[Bar]:
    """All those of which something was measured."""
    return [
        *_of_reads(results.get("reads", [])),
        *_of_scale(results.get("scale", [])),
        *_of_starts(results.get("starts")),
    ]


def pick(rows: Rows, **wanted: object) -> Iterator[Mapping[str, Any]]:
    """Those rows that have these values."""
    return (row for row in rows if all(row[name] == value for name, value in wanted.items()))


def value(rows: Rows, name: str, **wanted: object) -> float | None:
    """One value of the only row that has these; None if there is none."""
    return next((float(row[name]) for row in pick(rows, **wanted)), None)


def _ratio(rows: Rows, name: str, of: str, to: str, **wanted: object) -> float | None:
    above = value(rows, name, contender=of, **wanted)
    below = value(rows, name, contender=to, **wanted)
    return above / below if above is not None and below else None


def _of_reads(rows: Rows) -> Iterator[Bar]:
    for title, way, of, to, wanted in (
        ("pinned cat of {}, p50 by the kernel's", "cat", PINNED, KERNEL, 0.8),
        ("pinned pread of {}, p50 by the kernel's", "pread", PINNED, KERNEL, 0.3),
        ("sysfsd mount's cat of {}, p50 by lxcfs's", "cat", MOUNT, LXCFS, 1.0),
    ):
        for file in MAIN_FILES:
            ratio = _ratio(rows, "p50_us", of, to, file=file, way=way, clients=1)
            if ratio is not None:
                yield Bar(title.format(file), "≤", wanted, ratio, " x")
    for clients in (1, 8):
        for file in MAIN_FILES:
            case = {"file": file, "way": "cat", "clients": clients}
            # As threads and as processes: whichever is worse.
            ratios = [
                _ratio(rows, "per_second", PINNED, LXCFS, **case, **{"as": kind})
                for kind in ("threads", "processes")
            ]
            found = [ratio for ratio in ratios if ratio is not None]
            if found:
                many = "1 client" if clients == 1 else f"{clients} clients"
                name = f"pinned cats of {file} a second, {many}, by lxcfs's"
                yield Bar(name, "≥", 30, min(found), " x")


def _of_scale(rows: Rows) -> Iterator[Bar]:
    if not rows:
        return
    last = rows[-1]
    many = last["containers"]
    seconds = sum(row["register_seconds"] for row in rows)
    yield Bar(f"{many} containers registered", "≤", 10, seconds, " s")
    yield Bar(f"the daemon's memory with {many}", "≤", 150, last["rss_bytes"] / 1e6, " MB")
    # "About nothing" has to be some number.
    yield Bar(f"the idle daemon's CPU with {many}", "≤", 1, last["idle_cpu_percent"], " %")
    slower = last["cat"]["p50_us"] / rows[0]["cat"]["p50_us"]
    yield Bar(f"pinned cat with {many}, p50 by that with one", "≤", 1.2, slower, " x")
    if last["first_read"]:
        cold = last["first_read"]["p99_us"] / 1000
        yield Bar(f"first read of each of {many}, p99", "≤", 2, cold, " ms")


def _of_starts(starts: Mapping[str, Any] | None) -> Iterator[Bar]:
    if starts:
        more = starts["sysfsd"]["median_ms"] - starts["plain"]["median_ms"]
        yield Bar("docker run --runtime=sysfsd, more than plain", "≤", 150, more, " ms")
