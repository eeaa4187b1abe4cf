"""Pressure: parsed and written again, of the container's own cgroup or of none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.binds import plan
from sysfsd.facts.collector import Facts, FactsCollector
from sysfsd.facts.pressure import RESOURCES, Stall, parse_pressure, resources_of_kernel
from sysfsd.kernel import syscalls
from sysfsd.kernel.cgroups import CgroupPaths, CgroupTree
from sysfsd.views import VIEWS
from tests.support.recorded import Record
from tests.support.views import view

FIXTURES = Path(__file__).parent / "fixtures"
SCOPE = "/system.slice/docker-abc.scope"
NOTHING = "avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
IRQ = "full avg10=0.12 avg60=1.20 avg300=99.99 total=18446744073709551\n"
"""In the kernel's format (psi_show): it was not recorded."""


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """A recorded v2 tree whose scope has been under pressure, and so has the host."""
    shutil.copytree(FIXTURES / "cgroup-v2", tmp_path / "v2")
    for directory in (SCOPE, ""):
        for resource in ("cpu", "memory", "io"):
            target = tmp_path / f"v2/sys/fs/cgroup{directory}/{resource}.pressure"
            shutil.copy(FIXTURES / f"pressure/{resource}.pressure", target)
    return tmp_path / "v2"


def facts(base: Path, paths: dict[str, str]) -> Facts:
    return collector(base).facts(Record(1, 4242, 90.5, CgroupPaths(tuple(paths.items()))))


def collector(base: Path) -> FactsCollector:
    mountinfo = (base / "proc/self/mountinfo").read_text()
    return FactsCollector(
        tree=CgroupTree.from_mountinfo(mountinfo, str(base)), proc=str(base / "proc")
    )


def render(resource: str, found: Facts) -> str:
    return view(f"proc/pressure/{resource}").render(found).decode()


@pytest.mark.parametrize("resource", ["cpu", "memory", "io"])
def test_the_containers_own_file_as_the_kernel_wrote_it(v2: Path, resource: str) -> None:
    found = facts(v2, {"": SCOPE})
    recorded = (FIXTURES / f"pressure/{resource}.pressure").read_text()
    assert render(resource, found) == recorded
    assert found.pressure(resource).source.endswith(f"{SCOPE}/{resource}.pressure")


def test_numbers_of_a_recorded_file() -> None:
    assert parse_pressure((FIXTURES / "pressure/cpu.pressure").read_text()) == (
        Stall("some", 3054, 592, 125, 3731799),
        Stall("full", 0, 0, 0, 27673),
    )


def test_interrupts_have_one_line(v2: Path) -> None:
    (v2 / f"sys/fs/cgroup{SCOPE}/irq.pressure").write_text(IRQ)
    assert render("irq", facts(v2, {"": SCOPE})) == IRQ


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("paths", [{"": "/"}, {}, {"memory": "/web"}], ids=["root", "none", "v1"])
def test_never_the_hosts(v2: Path, resource: str, paths: dict[str, str]) -> None:
    found = facts(v2, paths)
    lines = ["full "] if resource == "irq" else ["some ", "full "]
    assert render(resource, found) == "".join(line + NOTHING for line in lines)
    assert found.pressure(resource).source.startswith("0: ")


def test_a_host_of_v1_counts_none() -> None:
    found = facts(FIXTURES / "cgroup-v1", {"memory": "/engine/web"})
    assert render("cpu", found) == f"some {NOTHING}full {NOTHING}"


def test_counting_that_is_switched_off(v2: Path) -> None:
    (v2 / f"sys/fs/cgroup{SCOPE}/cpu.pressure").unlink()  # what cgroup.pressure = 0 does
    found = facts(v2, {"": SCOPE})
    assert render("cpu", found) == f"some {NOTHING}full {NOTHING}"
    assert "cpu.pressure" in found.pressure("cpu").source


def test_a_container_that_is_gone_is_an_error(v2: Path) -> None:
    with pytest.raises(FileNotFoundError):
        render("cpu", facts(v2, {"": f"{SCOPE}/gone"}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "some avg10=0.0 avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=-1.00 avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=\n",
        "most avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    ],
)
def test_what_is_no_pressure_file(text: str) -> None:
    with pytest.raises(ValueError, match="pressure file"):
        parse_pressure(text)


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        stalls = parse_pressure(text)
    except ValueError:
        return
    assert all(0 <= share <= 10000 for stall in stalls for share in stall[1:4])


shares = st.integers(0, 10000)


@given(st.lists(st.builds(Stall, st.sampled_from(["some", "full"]), shares, shares, shares,
                          st.integers(0, 2**64 - 1)), min_size=1, max_size=3))  # fmt: skip
def test_what_is_written_is_read_again(stalls: list[Stall]) -> None:
    from sysfsd.views import pressure
    from sysfsd.views.view import Source

    items = [Source(stall.kind, pressure.numbers(stall), "") for stall in stalls]
    assert parse_pressure(pressure.text(items)) == tuple(stalls)


def test_an_average_above_the_whole_is_the_whole() -> None:
    (stall,) = parse_pressure("full avg10=100.01 avg60=100.00 avg300=0.09 total=1\n")
    assert stall == Stall("full", 10000, 10000, 9, 1)


def bound(
    base: Path, paths: dict[str, str], *, namespace: str = "host", pressure: str | None = None
) -> dict[str, tuple[str, str, int]]:
    """What is planned for a container in a cgroup namespace, with a pressure mount or none."""
    for pid, name in (("self", "host"), ("4242", namespace)):
        link = base / f"proc/{pid}/ns/cgroup"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        (base / name).touch()
        link.symlink_to(base / name)
    mountinfo = (base / "proc/self/mountinfo").read_text()
    planned = plan(
        CgroupTree.from_mountinfo(mountinfo, str(base)),
        Record(1, 4242, 90.5, CgroupPaths(tuple(paths.items()))),
        pressure=pressure,
        proc=str(base / "proc"),
    )
    return {
        view: (source["directory"], source["path"], source["magic"])
        for view, source in planned.items()
    }


def test_the_kernels_own_files_are_bound(v2: Path) -> None:
    natively = (f"{v2}/sys/fs/cgroup", f"{SCOPE[1:]}/io.pressure", syscalls.CGROUP2_SUPER_MAGIC)
    assert bound(v2, {"": SCOPE})["proc/pressure/io"] == natively
    assert set(bound(v2, {"": SCOPE})) <= {view.path for view in VIEWS}
    # Nobody's cgroup namespace, or no pressure mount: there is nothing better.
    assert bound(v2, {"": SCOPE}, pressure="/run/p")["proc/pressure/io"] == natively
    assert bound(v2, {"": SCOPE}, namespace="its")["proc/pressure/io"] == natively


def test_where_a_namespace_may_not_write_them_the_pressure_mounts_are(v2: Path) -> None:
    found = bound(v2, {"": SCOPE}, namespace="its", pressure="/run/p")
    assert found["proc/pressure/io"] == ("/run/p", "io", syscalls.FUSE_SUPER_MAGIC)

    mountinfo = v2 / "proc/self/mountinfo"
    mountinfo.write_text(mountinfo.read_text().replace(",nsdelegate", ""))
    found = bound(v2, {"": SCOPE}, namespace="its", pressure="/run/p")
    assert found["proc/pressure/io"][1] == f"{SCOPE[1:]}/io.pressure"


@pytest.mark.parametrize("paths", [{"": "/"}, {}, {"memory": "/web"}], ids=["root", "none", "v1"])
def test_without_a_cgroup_of_its_own_the_subtrees_are(v2: Path, paths: dict[str, str]) -> None:
    assert bound(v2, paths, namespace="its", pressure="/run/p") == {}


def test_a_kernel_without_pressure_has_no_such_files(tmp_path: Path) -> None:
    assert resources_of_kernel(str(tmp_path)) == []
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/io").touch()
    assert resources_of_kernel(str(tmp_path)) == ["io"]
