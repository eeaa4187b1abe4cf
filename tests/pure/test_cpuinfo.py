"""/proc/cpuinfo in the format of each architecture."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.facts.cpu import CpuFacts
from sysfsd.facts.host import HostFacts
from sysfsd.facts.sourced import Sourced
from sysfsd.views import cpuinfo

if TYPE_CHECKING:
    from sysfsd.facts.collector import Facts

FIXTURES = Path(__file__).parent / "fixtures"
ARCHITECTURES = "i386 arm arm64 ppc64 riscv loongarch mips s390x".split()
HOST_CPUS = 4


class Host(HostFacts):
    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    @cached_property
    def cpuinfo(self) -> str:
        return self._text


def host(architecture: str) -> str:
    return (FIXTURES / "cpuinfo" / architecture).read_text()


def render(text: str, cpuset: tuple[int, ...], count: int | None = None) -> str:
    visible = Sourced(len(cpuset) if count is None else count, "quota")
    cpu = CpuFacts(visible, Sourced(cpuset, "cpuset"), None)
    facts = cast("Facts", SimpleNamespace(host=Host(text), cpu=cpu))
    return cpuinfo.text(cpuinfo.sources(facts))


def numbers(text: str) -> list[int]:
    """The CPUs, as programs count them: lines that begin with either name."""
    return [
        int(number)
        for number in re.findall(r"^(?:processor|cpu number)\s*: (\d+)$", text, re.MULTILINE)
    ]


def values(text: str, key: str) -> list[str]:
    return re.findall(rf"^{re.escape(key)}\s*: (.*)$", text, re.MULTILINE)


subsets = st.sets(st.integers(0, HOST_CPUS - 1), min_size=1).map(lambda cpus: tuple(sorted(cpus)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_fixtures_have_the_hosts_cpus(architecture: str) -> None:
    assert numbers(host(architecture)) == list(range(HOST_CPUS))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(cpuset=subsets, share=st.floats(0, 1))
def test_exactly_as_many_cpus_numbered_from_0(
    architecture: str, cpuset: tuple[int, ...], share: float
) -> None:
    count = max(1, round(len(cpuset) * share))
    text = render(host(architecture), cpuset, count)
    given_host = host(architecture)

    assert numbers(text) == list(range(count))

    # Every CPU has all the lines that the host's have, and nothing else is lost or made up.
    def keys(lines: str) -> list[str]:
        return [line.partition(":")[0].strip() for line in lines.splitlines()]

    summary = 1 if architecture == "s390x" else 0
    for key in set(keys(given_host)) - {""}:
        before, after = keys(given_host).count(key), keys(text).count(key)
        if re.fullmatch(r"processor \d+", key):
            assert after == (int(key.split()[1]) < count)
        else:
            per_cpu = {HOST_CPUS: count, HOST_CPUS + summary: count + summary}
            assert after == per_cpu.get(before, before), key
    # The blank lines are the kernel's.
    assert "\n\n\n" not in text
    assert text.endswith("\n\n") == given_host.endswith("\n\n")
    assert text.endswith("\n")


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        ("i386", "bogomips"),
        ("arm", "BogoMIPS"),
        ("ppc64", "clock"),
        ("loongarch", "BogoMIPS"),
        ("mips", "BogoMIPS"),
        ("s390x", "cpu MHz static"),
    ],
)
def test_a_cpus_own_lines_come_along(architecture: str, key: str) -> None:
    before = values(host(architecture), key)
    assert len(set(before)) == HOST_CPUS  # a fixture in which they can be told apart

    assert values(render(host(architecture), (1, 3)), key) == [before[1], before[3]]


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (
            "i386",
            {
                "physical id": ["0", "0"],
                "siblings": ["2", "2"],
                "core id": ["0", "1"],
                "cpu cores": ["2", "2"],
                "apicid": ["0", "1"],
                "initial apicid": ["0", "1"],
            },
        ),
        ("riscv", {"hart": ["0", "1"]}),
        ("loongarch", {"package": ["0", "0"], "core": ["0", "1"], "global_id": ["0", "1"]}),
        ("mips", {"package": ["0", "0"], "core": ["0", "1"], "VPE": ["0", "0"]}),
        (
            "s390x",
            {
                "# processors": ["2"],
                "max thread id": ["0"],
                "physical id": ["0", "0"],
                "core id": ["0", "1"],
                "book id": ["0", "0"],
                "drawer id": ["0", "0"],
                "address": ["0", "1"],
                "siblings": ["2", "2"],
                "cpu cores": ["2", "2"],
            },
        ),
    ],
)
def test_the_cpus_are_the_cores_of_one_package(
    architecture: str, expected: dict[str, list[str]]
) -> None:
    text = render(host(architecture), (1, 3))

    assert {key: values(text, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("architecture", "kept"),
    [
        ("arm", "\n\nHardware\t: BCM2711\nRevision\t: c03112\nSerial\t\t: 0000000000000000\nModel"),
        ("ppc64", "\n\ntimebase\t: 512000000\nplatform\t: pSeries\nmodel\t\t: IBM pSeries"),
        ("loongarch", "system type\t\t: generic-loongson-machine\n\nprocessor\t\t: 0\npackage"),
        ("mips", "machine\t\t\t: Ubiquiti EdgeRouter X\nprocessor\t\t: 0\ncpu model"),
        ("s390x", "vendor_id       : IBM/S390\n# processors    : 1\nbogomips per cpu: 3033.00\n"),
    ],
)
def test_what_is_about_the_machine_stays_where_it_was(architecture: str, kept: str) -> None:
    assert kept in render(host(architecture), (2,))


def test_serial_numbers_are_the_hosts_secret() -> None:
    for architecture, serial in (("arm", "100000001a2b3c4d"), ("s390x", "3F7A8")):
        assert serial in host(architecture)
        assert serial not in render(host(architecture), (0, 1, 2, 3))


def test_s390s_summary_has_a_line_for_each_cpu() -> None:
    text = render(
        host("s390x").replace(
            "version = 00,  identification = 3", "version = FF,  identification = 3"
        ),
        (1, 3),
    )

    assert re.findall(r"^processor \d.*", text, re.MULTILINE) == [
        "processor 0: version = 00,  identification = 000000,  machine = 8561",
        "processor 1: version = FF,  identification = 000000,  machine = 8561",
    ]
    # The summary is a paragraph, and an empty line precedes each CPU, not the end.
    assert "machine = 8561\n\ncpu number      : 0\nphysical id" in text
    assert text.endswith("cpu MHz static  : 5203\n")


def test_s390s_summary_alone_is_how_old_kernels_have_it() -> None:
    old = host("s390x").partition("\n\n")[0] + "\n"
    text = render(old, (0, 2))

    assert values(text, "# processors") == ["2"]
    assert len(re.findall(r"^processor \d:", text, re.MULTILINE)) == 2
    assert "cpu number" not in text


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, None])
def test_all_cpus_are_all_of_the_hosts_lines(architecture: str | None) -> None:
    """Nothing but topology and serial numbers is rewritten."""
    text = (
        (FIXTURES / "cgroup-v1/proc/cpuinfo").read_text()
        if architecture is None
        else host(architecture)
    )
    cpus = tuple(range(HOST_CPUS if architecture else 2))
    changed = [
        after.partition(":")[0].strip()
        for before, after in zip(text.splitlines(), render(text, cpus).splitlines(), strict=True)
        if before != after
    ]
    expected = {
        "i386": {"physical id", "siblings", "core id", "cpu cores", "apicid", "initial apicid"},
        "arm": {"Serial"},
        "riscv": {"hart"},
        "loongarch": {"package", "core"},
        "mips": {"core", "VPE"},
        "s390x": {
            "max thread id",
            "physical id",
            "core id",
            "book id",
            "drawer id",
            "address",
            "siblings",
            "cpu cores",
            "identification",
            *(f"processor {cpu}" for cpu in cpus),
        },
    }
    assert set(changed) == expected.get(architecture or "", set())


@given(st.text(alphabet=" :\n\tprocesor0123#abcx", max_size=200))
def test_any_text_gives_some_text(text: str) -> None:
    assert isinstance(render(text, (0, 1)), str)
