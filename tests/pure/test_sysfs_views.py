"""The views of /sys/devices/system: one coherent machine, and nodes that add up."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.facts.cpu import CpuFacts
from sysfsd.facts.host import HostFacts
from sysfsd.facts.memory import MemoryFacts, read_memory
from sysfsd.facts.nodes import (
    Node,
    NodesFacts,
    divide,
    free_of,
    parse_node_meminfo,
    parse_numa_stat,
    read_nodes,
)
from sysfsd.facts.sourced import Sourced
from sysfsd.filesystem.tree import Tree
from sysfsd.kernel.cgroups import CgroupPaths, CgroupTree
from sysfsd.kernel.procfs import (
    format_cpu_list,
    format_cpu_mask,
    format_cpu_range,
    parse_cpu_list,
    parse_meminfo,
)
from sysfsd.views import VIEWS, Family
from sysfsd.views import sysnode as sysnode_view
from tests.pure.test_views import FIXTURES, FakeHost, kilobytes, make_facts, recorded, render

if TYPE_CHECKING:
    from pathlib import Path

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"
KIB = 1024
HOST_CPU = FIXTURES / "cgroup-v1" / CPU

sizes = st.integers(0, 1 << 40)


# The kernel's formats of sets


@given(st.sets(st.integers(0, 300)))
def test_lists_round_trip(cpus: set[int]) -> None:
    assert parse_cpu_list(format_cpu_list(cpus)) == tuple(sorted(cpus))


@given(st.sets(st.integers(0, 199)), st.integers(200, 300))
def test_masks_are_as_wide_as_the_machine(cpus: set[int], count: int) -> None:
    words = format_cpu_mask(cpus, count).split(",")
    assert int("".join(words), 16) == sum(1 << cpu for cpu in cpus)
    assert [len(word) for word in words[1:]] == [8] * (len(words) - 1)
    assert len(words) == -(-count // 32)
    assert len(words[0]) == -(-(count - 32 * (len(words) - 1)) // 4)


@pytest.mark.parametrize(
    ("cpus", "count", "text"),
    [
        ((0,), 1, "1"),
        ((0, 1), 2, "3"),
        ((), 8, "00"),
        ((4,), 5, "10"),
        (range(34), 34, "3,ffffffff"),
        ((5,), 2, "0"),
    ],
)
def test_masks(cpus: tuple[int, ...], count: int, text: str) -> None:
    assert format_cpu_mask(cpus, count) == text


# CPUs


def test_all_of_a_host_without_smt_is_as_the_host_has_it() -> None:
    """The recorded machine has two cores in one package: what a container with both is shown."""
    facts = make_facts(host=HostFacts(sys=str(FIXTURES / "cgroup-v1/sys")), cpus=(0, 1))
    compared = 0
    for view in VIEWS:
        if not view.path.startswith(f"{CPU}/"):
            continue
        each = [view.view(0), view.view(1)] if isinstance(view, Family) else [view]
        for one in each:
            file = FIXTURES / "cgroup-v1" / one.path
            # That kernel leaves clusters unnumbered.
            if file.exists() and not one.path.endswith("/cluster_id"):
                assert one.render(facts).decode() == file.read_text(), one.path
                compared += 1
    assert compared > 70


def test_nothing_that_a_host_says_of_a_cpu_is_forgotten_by_accident() -> None:
    ours = {view.path for view in VIEWS}
    left_out = {"uevent", "cpuidle", "hotplug", "power", "enabled", "online"}
    for file in HOST_CPU.rglob("*"):
        path = re.sub(r"/cpu\d+/", "/cpu{}/", str(file.relative_to(FIXTURES / "cgroup-v1")))
        if file.is_file() and path not in ours:
            assert left_out & set(path.split("/")), path


@given(st.sets(st.integers(0, 63), min_size=1, max_size=16))
def test_the_topology_is_one_package_of_single_threads(cpus: set[int]) -> None:
    facts = make_facts(cpus=tuple(sorted(cpus)))
    count = len(cpus)
    everybody = set(range(count))
    cores = set()
    for number in range(count):

        def shown(name: str, number: int = number) -> str:
            view = next(view for view in VIEWS if view.path == f"{CPU}/cpu{{}}/topology/{name}")
            assert isinstance(view, Family)
            return view.view(number).render(facts).decode().rstrip("\n")

        cores.add((shown("physical_package_id"), shown("core_id")))
        for name, expected in (
            ("thread_siblings", {number}),
            ("core_cpus", {number}),
            ("core_siblings", everybody),
            ("package_cpus", everybody),
        ):
            assert set(parse_cpu_list(shown(f"{name}_list"))) == expected
            mask = int(shown(name).replace(",", ""), 16)
            assert {bit for bit in range(count) if mask >> bit & 1} == expected
    assert len(cores) == count


class FakeCpus(FakeHost):
    """Four cores with two threads each; level 3 shared by four CPUs."""

    def cpu_file(self, cpu: int, name: str) -> str | None:
        group = cpu // 4 * 4
        return {
            "topology/thread_siblings_list": f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n",
            "cache/index0/shared_cpu_list": f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n",
            "cache/index3/shared_cpu_list": f"{group}-{group + 3}\n",
        }.get(name)


@pytest.mark.parametrize(
    ("cpuset", "cpu", "index", "shared"),
    [
        ((0, 1, 2, 3), 0, 0, "0"),  # a core's own, though the host's threads share it
        ((0, 1, 2, 3), 2, 3, "0-3"),
        ((2, 3, 4, 5), 0, 3, "0-1"),  # 2 and 3 are in the first group, 4 and 5 in the second
        ((2, 3, 4, 5), 3, 3, "2-3"),
        ((6,), 0, 3, "0"),
    ],
)
def test_caches_are_shared_as_on_the_host(
    cpuset: tuple[int, ...], cpu: int, index: int, shared: str
) -> None:
    facts = make_facts(host=FakeCpus(), cpus=cpuset)
    view = next(v for v in VIEWS if v.path == f"{CPU}/cpu{{}}/cache/index{index}/shared_cpu_list")
    assert isinstance(view, Family)
    assert view.view(cpu).render(facts).decode() == f"{shared}\n"


def test_a_container_has_directories_for_just_its_cpus() -> None:
    tree = Tree(VIEWS)
    for cpus in ((0,), (1, 5, 7)):
        members = tree.members_by(lambda cpus=cpus: make_facts(cpus=cpus))  # type: ignore[misc]
        number = 1
        for name in CPU.split("/"):
            node = tree.node(number)
            assert node is not None
            number = tree.child(node, name.encode(), members)
        node = tree.node(number)
        assert node is not None
        names = {name.decode() for name, _ in tree.children(node, members)}
        assert {name for name in names if re.fullmatch(r"cpu\d+", name)} == {
            f"cpu{index}" for index in range(len(cpus))
        }


# Nodes


@given(
    st.lists(st.tuples(sizes, sizes), min_size=1, max_size=8),
    sizes,
)
def test_parts_add_up_and_have_room(nodes: list[tuple[int, int]], amount: int) -> None:
    weights, room = zip(*nodes, strict=True)
    parts = divide(amount, weights, room)
    assert sum(parts) == min(amount, sum(room))
    assert all(0 <= part <= cap for part, cap in zip(parts, room, strict=True))
    assert sum(divide(amount, weights)) == amount
    free = divide(amount, weights, room)
    assert sum(free_of(room, parts, sum(free))) <= sum(room) - sum(parts)


def test_parts_follow_the_weights() -> None:
    assert divide(100, (3, 1)) == (75, 25)
    assert divide(100, (3, 1), (50, 100)) == (50, 50)
    assert divide(3, (0, 0)) == (2, 1)
    assert divide(2, (1, 5, 3)) == (0, 2, 0) or sum(divide(2, (1, 5, 3))) == 2


def test_numa_stat_of_both_versions() -> None:
    v2 = "anon N0=4096 N1=8192\nfile N0=0 N1=12288\n"
    assert parse_numa_stat(v2) == {"anon": {0: 4096, 1: 8192}, "file": {0: 0, 1: 12288}}
    v1 = "total=3 N0=1 N1=2\nhierarchical_file=9 N0=4 N1=5\n"
    assert parse_numa_stat(v1) == {"total": {0: 1, 1: 2}, "hierarchical_file": {0: 4, 1: 5}}
    assert parse_numa_stat("garbage\nanon Nx=1 N0=-1\n") == {"garbage": {}, "anon": {}}


def test_one_node_shows_what_meminfo_shows() -> None:
    facts = recorded("cgroup-v1")
    whole = kilobytes(render("proc/meminfo", facts))
    text = render(f"{NODE}/node0/meminfo", facts)
    node = {name: value for name, (value, _) in parse_node_meminfo(text).items()}

    assert node["MemUsed"] == node["MemTotal"] - node["MemFree"]
    for name, value in node.items():
        if name not in {"MemUsed", "FilePages"}:
            assert value == whole.get(name, 0), name
    assert node["FilePages"] == whole["Cached"]
    # Line by line as the kernel writes them.
    host = (FIXTURES / "cgroup-v1" / NODE / "node0/meminfo").read_text().splitlines()
    lines = text.splitlines()
    assert [line.split(":")[0] for line in lines] == [line.split(":")[0] for line in host]
    assert [len(line) for line in lines] == [len(line) for line in host]


def make_nodes(totals: list[int], stat: dict[str, tuple[int, ...]]) -> NodesFacts:
    count = len(totals)
    lines = parse_node_meminfo((FIXTURES / "cgroup-v1" / NODE / "node0/meminfo").read_text())
    return NodesFacts(
        tuple(Node(number * 2, (), (10,) * count) for number in range(count)),
        "nodes",
        tuple(totals),
        stat,
        "memory.numa_stat",
        tuple((name, unit) for name, (_, unit) in lines.items()),
    )


@given(st.data())
def test_nodes_add_up_to_meminfo(data: st.DataObject) -> None:
    host = FakeHost(parse_meminfo((FIXTURES / "cgroup-v1/proc/meminfo").read_text()))
    count = data.draw(st.integers(1, 4))
    per_node = st.tuples(*[sizes] * count)
    total = data.draw(st.integers(0, host.memory("MemTotal").value))
    used = data.draw(st.integers(0, total))
    keys = ("anon", "file", "slab_reclaimable", "kernel_stack")
    memory = MemoryFacts(
        total=Sourced(total, "limit"),
        used=Sourced(used, "usage"),
        swap_total=Sourced(0, ""),
        swap_used=Sourced(0, ""),
        stat={key: data.draw(sizes) for key in keys},
        stat_source="memory.stat",
        version=2,
    )
    nodes = make_nodes(
        [data.draw(st.integers(1, 1 << 40)) for _ in range(count)],
        {key: data.draw(per_node) for key in keys},
    )
    facts = make_facts(host=host, memory=lambda: memory, nodes=nodes)
    whole = kilobytes(render("proc/meminfo", facts))
    each = [
        parse_node_meminfo(sysnode_view.meminfo_text(sysnode_view.meminfo_sources(facts, number)))
        for number in nodes.numbers
    ]
    for name in each[0]:
        added = sum(node[name][0] for node in each)
        if name == "MemUsed":
            assert added == whole["MemTotal"] - whole["MemFree"]
        else:
            assert added == whole.get("Cached" if name == "FilePages" else name, 0), name
    for node in each:
        assert 0 <= node["MemFree"][0] <= node["MemTotal"][0]
        assert node["MemUsed"][0] + node["MemFree"][0] == node["MemTotal"][0]
        assert all(value >= 0 for value, _ in node.values())


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def two_nodes(tmp_path: Path) -> Path:
    """A v2 host with CPUs 0-3 on node 0 and 4-7 on node 1, and node 3 without CPUs."""
    base = tmp_path / "sys/devices/system"
    write(base / "cpu/online", "0-7\n")
    write(base / "node/online", "0-1,3\n")
    for number, cpus, distance, total in (
        (0, "0-3", "10 21 31", 1 << 20),
        (1, "4-7", "21 10 31", 3 << 20),
        (3, "", "31 31 10", 4 << 20),
    ):
        write(base / f"node/node{number}/cpulist", f"{cpus}\n")
        write(base / f"node/node{number}/distance", f"{distance}\n")
        write(base / f"node/node{number}/meminfo", f"Node {number} MemTotal: {total} kB\n")
    group = tmp_path / "cgroup/box"
    write(group.parent / "cgroup.controllers", "memory cpuset\n")
    write(group / "cgroup.controllers", "memory cpuset\n")
    write(group / "cpuset.mems.effective", "1,3\n")
    write(group / "cpuset.cpus.effective", "2-5\n")
    write(group / "memory.numa_stat", "anon N0=0 N1=1000 N3=3000\n")
    return tmp_path


def test_only_the_nodes_that_it_may_use(two_nodes: Path) -> None:
    mount = f"30 1 0:30 / {two_nodes}/cgroup rw - cgroup2 cgroup2 rw\n"
    tree = CgroupTree.from_mountinfo(mount)
    host = HostFacts(sys=f"{two_nodes}/sys")
    cpus = CpuFacts(Sourced(4, "cpuset"), Sourced((2, 3, 4, 5), "cpuset.cpus.effective"), None)
    memory = read_memory(None, FakeHost())
    memory = MemoryFacts(
        memory.total, memory.used, memory.swap_total, memory.swap_used, {}, "memory.stat", 2
    )
    found = read_nodes(tree, CgroupPaths((("", "/box"),)), host, cpus=cpus, memory=memory)

    assert [(node.number, node.cpus, node.distances) for node in found.nodes] == [
        (1, (2, 3), (10, 31)),  # its CPUs 4 and 5, as numbered in the container
        (3, (), (31, 10)),
    ]
    assert found.source.endswith("/box/cpuset.mems.effective")
    assert found.stat == {"anon": (1000, 3000)}
    assert found.total(700) == (300, 400)

    facts = make_facts(cpus=(2, 3, 4, 5), nodes=found)
    view = {view.path.removeprefix(f"{NODE}/"): view for view in VIEWS}

    def of_node(name: str, number: int) -> str:
        family = view[f"node{{}}/{name}"]
        assert isinstance(family, Family)
        return family.view(number).render(facts).decode()

    assert render(f"{NODE}/online", facts) == "1,3\n"
    assert render(f"{NODE}/has_cpu", facts) == "1\n"
    assert [of_node("cpulist", 1), of_node("cpulist", 3)] == ["2-3\n", "\n"]
    assert [of_node("cpumap", 1), of_node("cpumap", 3)] == ["c\n", "0\n"]
    assert of_node("distance", 3) == "31 10\n"


def test_a_kernel_without_numa_has_one_node(tmp_path: Path) -> None:
    host = HostFacts(sys=str(tmp_path))
    assert host.online_nodes.value == (0,)
    assert host.node_file(0, "meminfo") is None


# Memory


def test_the_blocks_of_memory_are_the_containers_memory() -> None:
    facts = recorded("cgroup-v1")
    base = "sys/devices/system/memory"
    assert int(render(f"{base}/block_size_bytes", facts), 16) == 512 * KIB * KIB
    assert render(f"{base}/memory0/state", facts) == "online\n"
    assert format_cpu_range(1) == render(f"{base}/memory0/phys_index", facts)[-2]
