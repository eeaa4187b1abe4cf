"""One engine and one lxcfs for all; what the programs print is measured once a container."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.programs.bench import KINDS, Bench, bench
from tests.programs.ways import Way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.programs.bench import Box, Kind, Measured


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The engine, sysfsd and lxcfs."""
    with bench(tmp_path_factory.mktemp("bench")) as running:
        yield running


@pytest.fixture(scope="session", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of container."""
    found = request.param
    assert isinstance(found, type(KINDS[0]))
    return found


@pytest.fixture(scope="session")
def measured(running: Bench, kind: Kind) -> Measured:
    """What the programs print in a container of that kind."""
    return running.measured(kind)


@pytest.fixture(scope="module")
def box(running: Bench) -> Iterator[Box]:
    """A container with a quota of one CPU, with sysfsd's views, and no busy neighbour."""
    with running.box(KINDS[0]) as box, running.way(box, Way.SYSFSD):
        yield box
