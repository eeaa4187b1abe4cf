"""Which directories are ours for the sake of one name, and the numbers of what is in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.binds import plan_sysctls
from sysfsd.filesystem.interfaces import _MAX_FILE, _MAX_INDEX, _Place, _place, tops_of
from sysfsd.filesystem.tree import NODE_BITS, PASSED_ON, Tree, inode_of, parts_of
from sysfsd.sysctls.probe import passed_on
from sysfsd.sysctls.table import SYSCTLS
from sysfsd.views import LINKS, VIEWS

if TYPE_CHECKING:
    from sysfsd.containers.record import ContainerRecord

NEIGH = "proc/sys/net/ipv4/neigh"


@pytest.mark.parametrize(
    ("path", "directory"),
    [
        (f"{NEIGH}/default/gc_thresh1", NEIGH),
        (f"{NEIGH}/lo/gc_stale_time", None),
        (f"{NEIGH}/default", None),
        (f"{NEIGH}/default/deeper/still", None),
        ("proc/sys/net/ipv4/conf/default/forwarding", None),
        ("proc/sys/vm/swappiness", None),
    ],
)
def test_for_which_files(path: str, directory: str | None) -> None:
    assert passed_on(path) == directory


@pytest.mark.parametrize("own", [True, False])
def test_the_directory_is_bound_once_or_else_the_files(own: bool) -> None:
    nodes = [node for node in SYSCTLS if "/neigh/" in node.path or "/vm/swap" in node.path]
    record = cast("ContainerRecord", SimpleNamespace(id="web"))
    planned = plan_sysctls(record, nodes, "/exact", own_network=own)
    directories = {NEIGH, NEIGH.replace("ipv4", "ipv6")}
    files = {node.path for node in nodes if "/neigh/" in node.path}
    assert len(files) == 6
    assert planned.keys() == {"proc/sys/vm/swappiness", *(directories if own else files)}
    assert {source["directory"] for source in planned.values()} == {"/exact/containers/web"}
    assert all(source["path"] == path for path, source in planned.items())


@given(
    st.integers(0, 1),
    st.integers(0, _MAX_INDEX),
    st.integers(0, _MAX_FILE),
    st.integers(1, 1 << 30),
)
def test_a_number_says_it_all(directory: int, interface: int, file: int, serial: int) -> None:
    place = _Place(directory, interface, file)
    assert _place(place.number) == place
    assert parts_of(inode_of(serial, place.number)) == (serial, place.number)


def test_no_node_of_a_tree_has_such_a_number() -> None:
    tree = Tree(VIEWS, links=LINKS, sysctls=SYSCTLS)
    many = (1 << NODE_BITS) - 1
    numbers = []
    for path in ("sys/devices/system/cpu", "sys/devices/system/node", NEIGH):
        node = tree.node(tree.numbers[f"{path}/"])
        assert node is not None
        numbers += [number for _, number in tree.children(node, lambda _listed: [0, 63, many])]
    assert len(numbers) > 10
    assert not any(number & PASSED_ON for number in numbers)
    assert sorted(tops_of(tree).values()) == [NEIGH, NEIGH.replace("ipv4", "ipv6")]
    assert all(tree.numbers[f"{path}/"] == number for number, path in tops_of(tree).items())
