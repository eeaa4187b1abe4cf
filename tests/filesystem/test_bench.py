"""The parts of the benchmark that measure work; what they find is nobody's concern here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench import scale
from tests.bench.figures import percentile
from tests.bench.generator import CAT, PREAD, PROCESSES, THREADS, compiled, generating, workplace

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The load generator."""
    return compiled("load.c", tmp_path_factory.mktemp("load"))


@pytest.mark.parametrize("way", [CAT, PREAD])
@pytest.mark.parametrize(("clients", "kind"), [(1, THREADS), (3, THREADS), (3, PROCESSES)])
def test_each_operation_reads_the_whole_file_and_is_counted_once(
    program: Path, tmp_path: Path, way: str, clients: int, kind: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 5000)
    with generating(program) as generator:
        for _ in range(2):
            tally = generator.run(way, str(file), clients=clients, kind=kind, seconds=0.02)
            assert tally.operations >= clients
            assert tally.bytes == 5000 * tally.operations
            assert sum(tally.buckets.values()) == tally.operations
            assert 0 < percentile(tally.buckets, 1) <= tally.nanoseconds * 1.01
            assert tally.nanoseconds >= 20_000_000


def test_a_file_that_cannot_be_read_is_no_result(program: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with generating(program) as generator:
        for path, reason in ((tmp_path / "missing", "No such file"), (empty, "No data")):
            with pytest.raises(ValueError, match=reason):
                generator.run(CAT, str(path), clients=2, kind=PROCESSES, seconds=0.02)


def test_a_crowd_is_registered_and_read_and_gone() -> None:
    with workplace() as directory:
        rows = scale.measure(directory, lambda _: None, sizes=(1, 4), idle=0.01)
    assert [(row["containers"], row["registered"]) for row in rows] == [(1, 0), (4, 3)]
    assert rows[1]["first_read"]["operations"] == 3
    assert all(row["cat"]["operations"] > 0 and row["rss_bytes"] > 0 for row in rows)
