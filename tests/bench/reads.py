"""Reading the same file from each contender in turn, again and again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.bench.contenders import Kind
from tests.bench.figures import Tally, total
from tests.bench.generator import CAT, PREAD, PROCESSES, THREADS
from tests.bench.processes import spent_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.bench.contenders import Contender

ROUNDS = 8
"""Of each thing with each contender, after one that does not count."""

MAIN = (Kind.KERNEL, Kind.LXCFS, Kind.MOUNT, Kind.PINNED)


@dataclass(frozen=True, slots=True)
class Case:
    """What is done."""

    file: str
    way: str
    clients: int
    kind: str
    contenders: tuple[Kind, ...] = MAIN


def cases() -> Iterator[Case]:
    """All of them."""
    for file in ("meminfo", "stat", "cpuinfo"):
        # How callers are told apart does not depend on how many there are: here only.
        yield Case(file, CAT, 1, THREADS, tuple(Kind))
        for clients in (2, 8):
            yield Case(file, CAT, clients, THREADS)
            yield Case(file, CAT, clients, PROCESSES)
        yield Case(file, PREAD, 1, THREADS)
        yield Case(file, PREAD, 8, PROCESSES)
    for file in ("uptime", "loadavg"):
        yield Case(file, CAT, 1, THREADS)


@dataclass(slots=True)
class Result:
    """What one contender did in one case."""

    case: Case
    contender: Kind
    rounds: list[Tally] = field(default_factory=list)
    cpu_ns: int = 0
    """CPU time of those who serve it, over all rounds."""

    def as_dict(self) -> dict[str, Any]:
        """For the results."""
        whole = total(self.rounds)
        return {
            "file": self.case.file,
            "way": self.case.way,
            "clients": self.case.clients,
            "as": self.case.kind,
            "contender": self.contender.value,
            **whole.as_dict(),
            "bytes_each": round(whole.bytes / whole.operations, 1),
            "daemon_cpu_us": round(self.cpu_ns / 1000 / whole.operations, 3),
            "rounds": [each.as_dict() for each in self.rounds],
        }


def measure(
    contenders: Sequence[Contender],
    wanted: Sequence[Case],
    seconds: float,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Spend about so many seconds on them all.

    The rounds are short and each contender has its turn in each: whatever else the machine does
    falls on all of them. The cases take turns as well, for a slow minute not to be all of one's.
    """
    turns = sum(len(case.contenders) for case in wanted)
    each = max(0.005, seconds / turns / (ROUNDS + 1))
    results: dict[tuple[Case, Kind], Result] = {}
    by_kind = {contender.kind: contender for contender in contenders}
    for round_ in range(ROUNDS + 1):
        tell(f"reads: round {round_} of {ROUNDS}, {turns} things of {1000 * each:.0f} ms")
        for case in wanted:
            for kind in case.contenders:
                result = results.setdefault((case, kind), Result(case, kind))
                tally, cpu = _once(by_kind[kind], case, each)
                if round_ > 0:
                    result.rounds.append(tally)
                    result.cpu_ns += cpu
    return [result.as_dict() for result in results.values()]


def _once(contender: Contender, case: Case, seconds: float) -> tuple[Tally, int]:
    before = spent_ns(contender.servers)
    tally = contender.generator.run(
        case.way,
        f"/proc/{case.file}",
        clients=case.clients,
        kind=case.kind,
        seconds=seconds,
    )
    return tally, spent_ns(contender.servers) - before
