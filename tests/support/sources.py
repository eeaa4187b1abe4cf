"""The page that says where every number of every file comes from, made from what --explain says.

python -m tests.support.sources > sysfsd/views/README.md
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.facts.collector import FactsCollector
from sysfsd.kernel.cgroups import CgroupPaths, CgroupTree, read_cgroup_paths
from sysfsd.views import VIEWS, Family
from tests.support.recorded import Record
from tests.support.views import EACH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sysfsd.facts.collector import Facts

FIXTURES = Path(__file__).parent.parent / "pure" / "fixtures"
PAGE = Path(__file__).parent.parent.parent / "sysfsd" / "views" / "README.md"

DISKS = ("/proc/diskstats", "/proc/partitions")
UNCOUNTED = "0: the kernel does not count it per cgroup"

NODE_MEMINFO = "/sys/devices/system/node/nodeN/meminfo"

HEAD = """\
# Where every number comes from

Made by `python -m tests.support.sources` from what `sysfsd show CONTAINER PATH --explain` says of
two recorded containers, one on cgroup v1 and one on cgroup v2; a test keeps it so. `--explain`
names the very cgroup, and the ancestor whose limit won; here the directories are left out.

- A limit is the smallest one of the container's cgroup and all cgroups above it, and never more
  than the host has.
- A use is the container's cgroup's with all that is below it.
- What a kernel does not count for cgroups is 0, not the host's: a number that is not the
  container's is a wrong one at best, and tells of others at worst.
- Files of which the host's kernel has none are not there in containers either.
"""


class Row(NamedTuple):
    """One or several numbers with one origin."""

    file: str
    names: tuple[str, ...]
    v1: str
    v2: str


def general(source: str) -> str:
    """Say where a number comes from without naming directories and numbers of one container."""
    source = re.sub(r"tasks of \S+/ and below", "tasks of its cgroup and below", source)
    source = re.sub(r"/\S*/fixtures/\S*/([\w.{},]*[\w}])", r"`\1`", source)
    source = source.replace(" (an ancestor's)", "")
    source = re.sub(r" \(pid \d+\)", "", source)
    source = re.sub(r"spread over \d+ CPUs", "spread over its CPUs", source)
    source = re.sub(r"processor \d+ of", "the processors of", source)
    source = re.sub(r"\d+ us in \d+ us, ", "", source)
    return re.sub(r"the host's (cpu|node)\d+/", r"the host's \1N/", source)


def rows(v1: Facts, v2: Facts) -> Iterator[Row]:
    """Every number of every file, in the order of the table of views."""
    for entry, view in zip(VIEWS, EACH, strict=True):
        path = f"/{entry.path.replace('{}', 'N')}" if isinstance(entry, Family) else f"/{view.path}"
        first = _by_name(view.explain(v1))
        second = _by_name(view.explain(v2))
        if path == NODE_MEMINFO:
            # Line by line what /proc/meminfo has: say it once.
            for names in (first, second):
                for name in names.keys() - {"MemTotal", "MemFree", "MemUsed"}:
                    del names[name]
                names["all others"] = "as in /proc/meminfo, divided by `memory.numa_stat`"
        if path in DISKS:
            first, second = _one_device(first), _one_device(second)
        for name in [*first, *(name for name in second if name not in first)]:
            yield Row(path, (name,), *_lines(name, first, second))


def _lines(name: str, first: dict[str, str], second: dict[str, str]) -> tuple[str, str]:
    """Both origins. A kernel that has no such line at all would count it no more than the other."""
    v1, v2 = first.get(name, "—"), second.get(name, "—")
    if UNCOUNTED in {v1, v2} and "—" in {v1, v2}:
        return UNCOUNTED, UNCOUNTED
    return v1, v2


def _one_device(sources: Mapping[str, str]) -> dict[str, str]:
    """Which devices a container used is its own affair; who counts for it is of interest."""
    return {"each device": "; or ".join(dict.fromkeys(sources.values()))}


def _by_name(items: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name, _, source in items:
        # Members and CPUs have numbers; what they have in common is the origin.
        plain = re.sub(r"^(cpu|processor |Node )\d+", r"\1N", name).replace("Node N ", "")
        names.setdefault(plain, general(source))
    return names


def gathered(found: Sequence[Row]) -> Iterator[Row]:
    """Join neighbours with one origin: lines of one file.

    The order of vmstat's many lines means nothing: there, whatever has one origin is joined.
    """

    def origin(row: Row) -> tuple[str, str, str]:
        return row.file, row.v1, row.v2

    for file, lines in itertools.groupby(found, key=lambda row: row.file):
        ordered = list(lines)
        if file == "/proc/vmstat":
            ordered.sort(key=origin)
        for _, group in itertools.groupby(ordered, key=origin):
            each = list(group)
            yield each[0]._replace(names=tuple(name for row in each for name in row.names))


def markdown() -> str:
    """Write the page."""
    v1, v2 = (recorded(name) for name in ("cgroup-v1", "cgroup-v2-machine"))
    lines = [HEAD, "| file | what | cgroup v1 | cgroup v2 |", "|---|---|---|---|"]
    shown = list(gathered(list(rows(v1, v2))))
    single = {
        file: len(list(group)) == 1
        for file, group in itertools.groupby(shown, key=lambda row: row.file)
    }

    def place(row: Row) -> tuple[str, ...]:
        directory = row.file.rpartition("/")[0]
        if not single[row.file] or not row.file.startswith("/sys/"):
            return (row.file, *row.names)
        # The host's own files are named by their source, each another.
        same = re.sub(r"[^/]+$", "", row.v1) if row.v1.startswith("the host's cpuN/") else row.v1
        return (re.sub(r"index\d", "indexN", directory), re.sub(r"index\d", "indexN", same))

    for _, group in itertools.groupby(shown, key=place):
        lines.append(_line(list(group)))
    return "\n".join(lines) + "\n"


def _line(group: Sequence[Row]) -> str:
    first = group[0]
    if len(group) == 1:
        names = ", ".join(f"`{name}`" for name in first.names)
        return f"| `{first.file}` | {names} | {first.v1} | {_second(first)} |"
    directory = re.sub(r"index\d", "indexN", first.file.rpartition("/")[0])
    files = dict.fromkeys(row.file.rpartition("/")[2] for row in group)
    v1, v2 = first.v1, first.v2
    if v1.startswith("the host's cpuN/"):
        v1 = v2 = "the host's file of the CPU that stands behind it"
    names = ", ".join(f"`{file}`" for file in files)
    return f"| `{directory}/` | {names} | {v1} | {_second(Row('', (), v1, v2))} |"


def _second(row: Row) -> str:
    return "the same" if row.v2 == row.v1 else row.v2


def recorded(name: str) -> Facts:
    """The facts of a recorded container."""
    base = FIXTURES / name
    pid, paths = _container(base)
    collector = FactsCollector(
        tree=CgroupTree.from_mountinfo((base / "proc/self/mountinfo").read_text(), str(base)),
        proc=str(base / "proc"),
        sys=str(base / "sys"),
        clock=lambda: 100_000_000_000,
        boot_time=lambda: 1_700_000_000.0,
    )
    return collector.facts(Record(1, pid, 90.5, paths))


def _container(base: Path) -> tuple[int, CgroupPaths]:
    proc = base / "proc"
    (pid,) = [int(each.parent.name) for each in proc.glob("[0-9]*/cgroup")]
    paths = read_cgroup_paths(pid, str(proc))
    # The recorded v2 container has moved its processes below its own cgroup.
    own = tuple((name, path.removesuffix("/leaf")) for name, path in paths.entries)
    return pid, CgroupPaths(own)


if __name__ == "__main__":
    print(markdown(), end="")
