"""What an administrator decides about a container, and what it changes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.facts.callers import Caller
from sysfsd.facts.sourced import Sourced
from sysfsd.policy import DEFAULT, SETTINGS, Policy, decided, from_annotations, problem
from sysfsd.views import VIEWS, Family
from tests.pure.test_facts import FIXTURES, MIB, RECORDED, collector, record, write
from tests.support.recorded import Record
from tests.support.views import EACH

if TYPE_CHECKING:
    from pathlib import Path

    from sysfsd.facts.collector import Facts

SCOPE = "sys/fs/cgroup/system.slice/docker-abc.scope"


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "cgroup-v2", tmp_path / "v2")
    return tmp_path / "v2"


def seen(base: Path, policy: Policy, pid: int = 4242) -> Facts:
    known = record(base, pid)
    return collector(base).facts(Record(1, pid, 90.5, known.cgroup, policy=policy))


def test_the_first_value_of_each_setting_is_the_default() -> None:
    assert {name: values[0] for name, values in SETTINGS.items()} == DEFAULT.settings()


@given(st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in SETTINGS.items()}))
def test_settings_change_what_they_name(settings: dict[str, str]) -> None:
    policy = DEFAULT.with_settings(settings)

    assert policy.settings() == DEFAULT.settings() | settings
    assert (policy == DEFAULT) == (policy.settings() == DEFAULT.settings())
    assert hash(policy) == hash(Policy(policy.cpu, policy.memory_high))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("cpu-policy", "all", "must be 'quota', 'cpuset', 'off' or 'pin', not 'all'"),
        ("memory-high", "", "must be 'limit' or 'ignore', not ''"),
        ("memory-high", 7, "must be 'limit' or 'ignore', not that"),
        ("cpu-polcy", "pin", "is no setting; those are cpu-policy and memory-high"),
    ],
)
def test_a_mistake_says_what_there_is(name: str, value: object, text: str) -> None:
    assert problem(name, value) == text


def test_what_can_be_set_is_no_mistake() -> None:
    assert [problem(name, value) for name, values in SETTINGS.items() for value in values] == (
        [None] * 6
    )


def test_of_the_annotations_ours_are_taken() -> None:
    annotations = {"dev.sysfsd.cpu-policy": "pin", "cpu-policy": "off", "io.x": 1}
    assert from_annotations(annotations) == {"cpu-policy": "pin"}


@pytest.mark.parametrize(
    ("policy", "visible", "numbers"),
    [("quota", 1, (1,)), ("pin", 1, (1,)), ("cpuset", 2, (1, 2)), ("off", 4, (0, 1, 2, 3))],
)
def test_which_cpus_a_container_sees(
    v2: Path, policy: str, visible: int, numbers: tuple[int, ...]
) -> None:
    write(
        v2,
        {
            f"{SCOPE}/cgroup.controllers": "cpu cpuset memory\n",
            f"{SCOPE}/cpuset.cpus.effective": "1-2\n",
            f"{SCOPE}/cpu.max": "50000 100000\n",
            "sys/devices/system/cpu/online": "0-3\n",
        },
    )
    found = seen(v2, Policy(policy))

    assert (found.cpu.visible.value, found.cpu.numbers) == (visible, numbers)
    assert found.cpu.cpuset.value == (1, 2)
    assert len(found.cpu_times.visible) == visible
    named = policy in {"cpuset", "off"}
    assert (f"cpu-policy is {policy}" in found.cpu.visible.source) == named


@pytest.mark.parametrize("policy", SETTINGS["cpu-policy"])
def test_all_files_show_the_same_cpus(policy: str) -> None:
    found = seen(FIXTURES / RECORDED, Policy(policy), 7378)
    count = found.cpu.visible.value
    texts = {view.path: view.render(found).decode() for view in EACH}
    last = [each.view(count - 1) for each in VIEWS if isinstance(each, Family)]
    texts |= {view.path: view.render(found).decode() for view in last if "/cpu/" in view.path}

    assert texts["proc/cpuinfo"].count("processor\t") == count
    assert sum(line[:3] == "cpu" for line in texts["proc/stat"].splitlines()) == count + 1
    assert texts[f"sys/devices/system/cpu/cpu{count - 1}/topology/core_id"] == f"{count - 1}\n"
    assert texts["sys/devices/system/cpu/online"] == ("0\n" if count == 1 else f"0-{count - 1}\n")


@pytest.mark.parametrize(
    ("own", "above", "maximum", "policy", "total", "source"),
    [
        ("67108864", "max", "134217728", "limit", 64, "docker-abc.scope/memory.high"),
        ("67108864", "max", "134217728", "ignore", 128, "docker-abc.scope/memory.max"),
        ("67108864", "max", "33554432", "limit", 32, "docker-abc.scope/memory.max"),
        ("max", "33554432", "134217728", "limit", 32, "slice/memory.high (an ancestor's)"),
        ("max", "max", "134217728", "limit", 128, "docker-abc.scope/memory.max"),
        # The same in both: the one that nobody gets past.
        ("67108864", "max", "67108864", "limit", 64, "docker-abc.scope/memory.max"),
    ],
)
def test_memory_high(
    v2: Path, own: str, above: str, maximum: str, policy: str, total: int, source: str
) -> None:
    parent = SCOPE.rpartition("/")[0]
    values = {"memory.high": own, "memory.max": maximum}
    write(v2, {f"{SCOPE}/{name}": f"{value}\n" for name, value in values.items()})
    write(v2, {f"{parent}/memory.high": f"{above}\n"})
    memory = seen(v2, Policy(memory_high=policy)).memory

    assert memory.total.value == total * MIB
    assert source in memory.total.source
    assert memory.used.value <= memory.total.value


def test_callers_have_the_policy_of_the_mount(v2: Path) -> None:
    base = collector(v2)
    base._policy = Policy(memory_high="ignore")
    write(v2, {f"{SCOPE}/memory.high": "1048576\n"})
    caller = Caller(record(v2, 4242).cgroup, Sourced(0, "boot"), None, None)

    assert base.facts_of_caller(caller).memory.total.value == 256 * MIB


@pytest.mark.parametrize(
    ("allowed", "flags", "annotations", "expected"),
    [
        ("no-pin", {}, {"cpu-policy": "off"}, {"cpu-policy": "off"}),
        ("no-pin", {"cpu-policy": "pin"}, {"cpu-policy": "off"}, {"cpu-policy": "off"}),
        ("no-pin", {"cpu-policy": "pin"}, {"memory-high": "ignore"}, None),
        ("all", {}, {"cpu-policy": "pin"}, {"cpu-policy": "pin"}),
        ("ignore", {"cpu-policy": "off"}, {"cpu-policy": "pin"}, {"cpu-policy": "off"}),
    ],
)
def test_annotations_decide_what_they_may(
    allowed: str,
    flags: dict[str, str],
    annotations: dict[str, str],
    expected: dict[str, str] | None,
) -> None:
    assert decided(flags, annotations, allowed) == (expected or {**flags, **annotations})


def test_an_images_annotation_cannot_have_the_host_written_to() -> None:
    with pytest.raises(ValueError, match='set annotations = "all"'):
        decided({"memory-high": "limit"}, {"cpu-policy": "pin"}, "no-pin")
