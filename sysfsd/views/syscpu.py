"""/sys/devices/system/cpu: one coherent machine of exactly the container's CPUs.

The lists first (all CPUs are possible, present and online: a container's CPUs are numbered from 0
without holes, and one that it does not see cannot be plugged in either), then what each CPU's
directory has. The topology is that of /proc/cpuinfo: the cores of one package, one thread each.
Caches are the host's, shared among the container's CPUs as they are there.

What is written about the kernel and the machine, and is the same for all, is the host's. Left out
is what belongs to whoever runs the machine: idle states, frequencies of the moment, hotplug,
microcode, power management.

Sources: the kernel's Documentation/ABI/testing/sysfs-devices-system-cpu and
admin-guide/cputopology.rst.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sysfsd.kernel.procfs import (
    format_cpu_list,
    format_cpu_mask,
    format_cpu_range,
    parse_cpu_list,
)
from sysfsd.views.view import Family, Source, View, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sysfsd.facts.collector import Facts

_BASE = "sys/devices/system/cpu"
_CPU = f"{_BASE}/cpu{{}}"

_ONE_PACKAGE = "the container's CPUs are the cores of one package, as in /proc/cpuinfo"


def sources(facts: Facts) -> list[Source]:
    """Return the list of all CPUs."""
    visible = facts.cpu.visible
    return [Source("cpus", format_cpu_range(visible.value), visible.source)]


def _none(why: str) -> Callable[[Facts], list[Source]]:
    return lambda _facts: [Source("cpus", "", why)]


def _hosts(name: str, why: str, default: str) -> Callable[[Facts], list[Source]]:
    """A file that is the same for all containers."""

    def hosts(facts: Facts) -> list[Source]:
        text = facts.host.system_file(f"cpu/{name}")
        if text is None:
            return [Source(name, default, f"{default or 'empty'}: the host has no such file")]
        return [Source(name, text.rstrip("\n"), f"the host's: {why}")]

    return hosts


def _constant(value: str, why: str) -> Callable[[Facts, int], list[Source]]:
    return lambda _facts, _cpu: [Source("value", value, why)]


def _own_number(_facts: Facts, cpu: int) -> list[Source]:
    return [Source("value", str(cpu), _ONE_PACKAGE)]


def _own_list(_facts: Facts, cpu: int) -> list[Source]:
    return [Source("cpus", str(cpu), _ONE_PACKAGE)]


def _own_mask(facts: Facts, cpu: int) -> list[Source]:
    return [Source("cpus", format_cpu_mask((cpu,), facts.cpu.visible.value), _ONE_PACKAGE)]


def _all_list(facts: Facts, _cpu: int) -> list[Source]:
    return [Source("cpus", format_cpu_range(facts.cpu.visible.value), _ONE_PACKAGE)]


def _all_mask(facts: Facts, _cpu: int) -> list[Source]:
    count = facts.cpu.visible.value
    return [Source("cpus", format_cpu_mask(range(count), count), _ONE_PACKAGE)]


def _hosts_cpu(facts: Facts, cpu: int) -> int:
    """The host's CPU that stands behind one of the container's.

    A CPU that went away since may still be asked for; then any will do.
    """
    numbers = facts.cpu.numbers
    return numbers[min(cpu, len(numbers) - 1)]


def _of_host(name: str) -> Callable[[Facts, int], list[Source]]:
    """A file of the host's CPU, as it is; empty where that CPU has no such file."""

    def of_host(facts: Facts, cpu: int) -> list[Source]:
        number = _hosts_cpu(facts, cpu)
        text = facts.host.cpu_file(number, name) or ""
        return [Source("value", text.rstrip("\n"), f"the host's cpu{number}/{name}")]

    return of_host


def sharing_cpus(facts: Facts, cpu: int, index: int) -> tuple[int, ...]:
    """Return which of the container's CPUs share a cache with one of them, itself included.

    A cache that the host's CPU shares with its sibling threads alone is a core's own, and each of
    the container's CPUs is a core.
    """
    visible = facts.cpu.numbers
    number = _hosts_cpu(facts, cpu)
    shared = _hosts_list(facts, number, f"cache/index{index}/shared_cpu_list")
    if shared <= _hosts_list(facts, number, "topology/thread_siblings_list") | {number}:
        return (cpu,)
    return tuple(each for each, there in enumerate(visible) if there in shared or each == cpu)


def _hosts_list(facts: Facts, number: int, name: str) -> frozenset[int]:
    return frozenset(parse_cpu_list(facts.host.cpu_file(number, name) or ""))


def _shared(index: int, facts: Facts, cpu: int) -> list[Source]:
    cpus = sharing_cpus(facts, cpu, index)
    return [Source("cpus", format_cpu_list(cpus), _shared_source(facts, cpu, index))]


def _shared_mask(index: int, facts: Facts, cpu: int) -> list[Source]:
    mask = format_cpu_mask(sharing_cpus(facts, cpu, index), facts.cpu.visible.value)
    return [Source("cpus", mask, _shared_source(facts, cpu, index))]


def _shared_source(facts: Facts, cpu: int, index: int) -> str:
    return (
        f"shared_cpu_list of the host's cpu{_hosts_cpu(facts, cpu)}/cache/index{index}, renumbered"
    )


_ALL = "a container's CPUs are all online"

LISTS: Sequence[View] = (
    View(f"{_BASE}/offline", _none(_ALL), one_line),
    View(f"{_BASE}/isolated", _none("which CPUs the host keeps free is its own affair"), one_line),
    View(
        f"{_BASE}/kernel_max",
        # Programs size the masks that they hand to sched_getaffinity(2) by it, which refuses
        # smaller ones than the kernel's own.
        _hosts("kernel_max", "a constant of the kernel, the size of its CPU masks", "0"),
        one_line,
    ),
    View(f"{_BASE}/modalias", _hosts("modalias", "the model of the CPUs", ""), one_line),
    View(f"{_BASE}/smt/active", lambda _: [Source("active", "0", _ONE_PACKAGE)], one_line),
    View(
        f"{_BASE}/smt/control",
        lambda _: [Source("control", "notsupported", _ONE_PACKAGE)],
        one_line,
    ),
)
"""Files of the directory itself, beside online, possible and present."""

VULNERABILITIES = (
    "gather_data_sampling",
    "ghostwrite",
    "indirect_target_selection",
    "itlb_multihit",
    "l1tf",
    "mds",
    "meltdown",
    "mmio_stale_data",
    "old_microcode",
    "reg_file_data_sampling",
    "retbleed",
    "spec_rstack_overflow",
    "spec_store_bypass",
    "spectre_v1",
    "spectre_v2",
    "srbds",
    "tsa",
    "tsx_async_abort",
    "vmscape",
)
"""Those of Linux 6.18; a host that does not know one does not show it (`Tree` leaves it out)."""

_TOPOLOGY: Sequence[tuple[str, Callable[[Facts, int], list[Source]]]] = (
    ("physical_package_id", _constant("0", _ONE_PACKAGE)),
    ("die_id", _constant("0", _ONE_PACKAGE)),
    ("core_id", _own_number),
    ("cluster_id", _own_number),
    *((name, _own_mask) for name in ("core_cpus", "thread_siblings", "cluster_cpus")),
    *((f"{name}_list", _own_list) for name in ("core_cpus", "thread_siblings", "cluster_cpus")),
    *((name, _all_mask) for name in ("package_cpus", "core_siblings", "die_cpus")),
    *((f"{name}_list", _all_list) for name in ("package_cpus", "core_siblings", "die_cpus")),
)

CACHES = range(5)
"""Levels 1 (data, instructions) to 3, and room for a fourth."""

_CACHE_FILES = (
    "coherency_line_size",
    "id",
    "level",
    "number_of_sets",
    "physical_line_partition",
    "size",
    "type",
    "ways_of_associativity",
)

_FREQUENCIES = ("cpuinfo_max_freq", "cpuinfo_min_freq", "base_frequency")
"""What the hardware can do; the frequency of the moment would tell what others do."""


def _family(path: str, of_cpu: Callable[[Facts, int], Sequence[Source]]) -> Family:
    return Family(f"{_CPU}/{path}", f"{_BASE}/online", of_cpu, one_line)


FILES: Sequence[View | Family] = (
    *LISTS,
    *(
        View(
            f"{_BASE}/vulnerabilities/{name}",
            _hosts(f"vulnerabilities/{name}", "what its kernel does about it", "Not affected"),
            one_line,
        )
        for name in VULNERABILITIES
    ),
    *(_family(f"topology/{name}", of_cpu) for name, of_cpu in _TOPOLOGY),
    *(
        _family(f"cache/index{index}/{name}", _of_host(f"cache/index{index}/{name}"))
        for index in CACHES
        for name in _CACHE_FILES
    ),
    *(
        _family(f"cache/index{index}/{name}", partial(of_cpu, index))
        for index in CACHES
        for name, of_cpu in (("shared_cpu_list", _shared), ("shared_cpu_map", _shared_mask))
    ),
    *(_family(f"cpufreq/{name}", _of_host(f"cpufreq/{name}")) for name in _FREQUENCIES),
    _family("cpu_capacity", _of_host("cpu_capacity")),
)
"""All but the three lists with which the table of views began."""
