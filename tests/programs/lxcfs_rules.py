"""Where sysfsd and lxcfs differ in the files that both emulate, who is right, and why.

For cgroup v1. Each rule says what is true by the kernel's own files, from which both have it; the
test reads those, and holds both against them. A difference that no rule names fails the test, and
so does a rule that names none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.programs import host

if TYPE_CHECKING:
    from collections.abc import Mapping

TICKS = 100
"""USER_HZ: ticks of /proc/stat in a second, on every architecture that Docker runs on."""

V1 = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel says of a container at a moment, in its own files."""

    memory: Mapping[str, int]
    """memory.stat of its cgroup, in bytes."""
    usage: int
    limit: int
    memsw: int
    """Limit of memory and swap together, in bytes."""
    busy: tuple[float, float]
    """CPU time used, in seconds, as the kernel samples it at ticks (usage_user and usage_sys, since
    Linux 5.17) and as it adds it up (usage): the smaller and the larger of the two."""
    uptime: float
    """Of its init, in seconds."""
    tasks: int
    """Threads in its cgroup."""
    last_pid: int
    """The largest number of a process of its, as numbered inside."""
    cpus: int
    """How many it can keep busy: cpuset, and quota rounded up."""
    disk: int
    """Bytes that it read and wrote, as far as the kernel counts them."""
    host: Mapping[str, int]
    """The host's /proc/meminfo, in kB."""

    @classmethod
    def now(cls, pid: int) -> Kernel:
        """Look at the container whose init is ``pid``."""
        paths = _cgroups(pid)
        memory = V1 / "memory" / paths["memory"]
        acct = V1 / "cpuacct" / paths["cpuacct"]
        threads = (acct / "tasks").read_text().split()
        quota = int((V1 / "cpu" / paths["cpu"] / "cpu.cfs_quota_us").read_text())
        period = int((V1 / "cpu" / paths["cpu"] / "cpu.cfs_period_us").read_text())
        cpuset = _cpus((V1 / "cpuset" / paths["cpuset"] / "cpuset.effective_cpus").read_text())
        sampled = _number(acct / "cpuacct.usage_user") + _number(acct / "cpuacct.usage_sys")
        usage = _number(acct / "cpuacct.usage")
        start = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        return cls(
            memory={
                key: int(value)
                for key, value in map(str.split, (memory / "memory.stat").read_text().splitlines())
            },
            usage=_number(memory / "memory.usage_in_bytes"),
            limit=_number(memory / "memory.limit_in_bytes"),
            memsw=_number(memory / "memory.memsw.limit_in_bytes"),
            busy=(min(sampled, usage) / 1e9, max(sampled, usage) / 1e9),
            uptime=float(Path("/proc/uptime").read_text().split()[0]) - start / TICKS,
            tasks=len(threads),
            last_pid=max(map(_inner_pid, threads)),
            cpus=cpuset if quota < 0 else min(cpuset, -(-quota // period)),
            disk=_disk(V1 / "blkio" / paths["blkio"]),
            host=meminfo(Path("/proc/meminfo").read_text()),
        )


def _cgroups(pid: int) -> dict[str, str]:
    """Controller → path below its mount, for the controllers of v1."""
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    return found


def _disk(cgroup: Path) -> int:
    """The sum over the devices; of two policies that count one, the one that counts more."""
    counted: dict[str, int] = {}
    for policy in ("", "bfq.", "throttle."):
        file = cgroup / f"blkio.{policy}io_service_bytes_recursive"
        text = file.read_text() if file.exists() else ""
        for device, size in re.findall(r"^(\S+) Total (\d+)", text, re.MULTILINE):
            counted[device] = max(int(size), counted.get(device, 0))
    return sum(counted.values())


def _number(path: Path) -> int:
    return int(path.read_text())


def _cpus(text: str) -> int:
    """How many CPUs a list has."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def _inner_pid(tid: str) -> int:
    try:
        status = Path(f"/proc/{tid}/status").read_text()
    except OSError:
        return 0
    numbers = re.search(r"^NSpid:\s*(.*)", status, re.MULTILINE)
    return int(numbers[1].split()[-1]) if numbers else 0


# --- Reading what both show ----------------------------------------------------------------------

Fields = dict[str, int | float | str]


def meminfo(text: str) -> dict[str, int]:
    """Name → number."""
    return {name: int(rest.split()[0]) for name, _, rest in _lines(text, ":")}


def _swaps(text: str) -> Fields:
    rows = [line.split() for line in text.splitlines()[1:]]
    return {
        "Size": sum(int(row[2]) for row in rows),
        "Used": sum(int(row[3]) for row in rows),
    }


def _cpuinfo(text: str) -> Fields:
    found: Fields = {}
    block = -1
    for name, _, value in _lines(text, ":"):
        key = name.strip()
        block += key == "processor"
        # They change while one looks.
        if key not in {"cpu MHz", "bogomips"}:
            found[f"{block}: {key}"] = value.strip()
    return found | {"CPUs": block + 1}


def _stat(text: str) -> Fields:
    found: Fields = {}
    cpus = []
    for line in text.splitlines():
        name, *values = line.split()
        if name == "cpu":
            user, nice, system, idle, *others = map(int, values)
            found |= {"busy": user + nice + system + sum(others), "idle": idle}
        elif name.startswith("cpu"):
            cpus.append(name.removeprefix("cpu"))
        else:
            found[name] = int(values[0])
    return found | {"CPUs": ",".join(cpus)}


def oldest(shown: Mapping[str, Fields], cpus: int) -> float:
    """How long the container had run, in seconds, when the older of its two clocks was read."""
    stat = shown["proc/stat"]
    ran = float(stat["busy"]) + float(stat["idle"])
    return min(float(shown["proc/uptime"]["up"]), ran / cpus / TICKS)


def _uptime(text: str) -> Fields:
    up, idle = map(float, text.split())
    return {"up": up, "idle": idle}


def _loadavg(text: str) -> Fields:
    one, five, fifteen, tasks, last = text.split()
    running, total = tasks.split("/")
    averages: Fields = {"1": float(one), "5": float(five), "15": float(fifteen)}
    return averages | {"running": int(running), "tasks": int(total), "last pid": int(last)}


def _diskstats(text: str) -> Fields:
    """Read, written and discarded, on all devices."""
    rows = [line.split() for line in text.splitlines()]
    return {"bytes": 512 * sum(int(row[column]) for row in rows for column in (5, 9, 15))}


def _slabinfo(text: str) -> Fields:
    return {"caches": sum(not line.startswith(("#", "slabinfo")) for line in text.splitlines())}


def _line(text: str) -> Fields:
    return {"": text.strip()}


def _lines(text: str, separator: str) -> list[tuple[str, str, str]]:
    return [line.partition(separator) for line in text.splitlines() if separator in line]


FILES: Mapping[str, Callable[[str], Fields]] = {
    "proc/meminfo": lambda text: dict(meminfo(text)),
    "proc/swaps": _swaps,
    "proc/cpuinfo": _cpuinfo,
    "proc/stat": _stat,
    "proc/uptime": _uptime,
    "proc/loadavg": _loadavg,
    "proc/diskstats": _diskstats,
    "proc/slabinfo": _slabinfo,
    **{
        f"sys/devices/system/cpu/{name}": _line
        for name in ("online", "possible", "present", "offline", "isolated", "kernel_max")
    },
}
"""The files that both have, and how they are read."""


# --- Who is right --------------------------------------------------------------------------------


class Range(NamedTuple):
    """What may be shown, inclusive."""

    low: float
    high: float


Truth = int | float | str | Range
Condition = Callable[["Kernel"], bool]


def always(kernel: Kernel) -> bool:
    return True


def never(kernel: Kernel) -> bool:
    return False


def _fewer_cpus(kernel: Kernel) -> bool:
    return kernel.cpus < host.cpus()


def _one_cpu(kernel: Kernel) -> bool:
    return kernel.cpus == 1


def _many_cpus(kernel: Kernel) -> bool:
    return kernel.cpus > 1


def _host_swaps(kernel: Kernel) -> bool:
    return kernel.host["SwapTotal"] > 0


@dataclass(frozen=True, slots=True)
class Rule:
    """Some fields of a file in which the two differ."""

    file: str
    fields: str
    """A regular expression for their names."""
    why: str
    truth: Callable[[Kernel, Kernel], Truth]
    """What is true, by the kernel before and after both were read."""
    differ: Condition = always
    """When they must differ; else they may."""
    lxcfs_right: Condition = never
    """When lxcfs is right, too: it looked at another moment."""
    by_chance: bool = False
    """lxcfs shows something else, which may happen to be the same."""

    def covers(self, file: str, field: str) -> bool:
        """Whether it is about a field."""
        return file == self.file and re.fullmatch(self.fields, field) is not None


def holds(truth: Truth, value: float | str) -> bool:
    """Whether a value is true."""
    if isinstance(truth, Range):
        assert not isinstance(value, str)
        return truth.low <= value <= truth.high
    return value == truth


def _kb(size: float) -> int:
    return int(size) // 1024


def _available(before: Kernel, after: Kernel) -> Truth:
    files = before.memory["total_active_file"] + before.memory["total_inactive_file"]
    return _kb(before.limit - before.usage + files)


def _commit_limit(before: Kernel, after: Kernel) -> Truth:
    # The kernel's limit is a share of memory (vm.overcommit_ratio) and all swap.
    host = before.host
    share = (host["CommitLimit"] - host["SwapTotal"]) / host["MemTotal"]
    swap = max(0, min(_kb(before.memsw - before.limit), host["SwapTotal"]))
    exact = _kb(before.limit) * share + swap
    return Range(exact - 4, exact + 4)


def _swap_total(before: Kernel, after: Kernel) -> Truth:
    return max(0, min(_kb(before.memsw - before.limit), before.host["SwapTotal"]))


def _idle(before: Kernel, after: Kernel, *, unit: int, slack: float) -> Truth:
    return Range(
        (before.uptime * before.cpus - after.busy[1]) * unit - slack,
        (after.uptime * after.cpus - before.busy[0]) * unit + slack,
    )


REFRESH = 0.05 + 0.02
"""Seconds that a number of ours may be old, and to which the kernel's are written."""


def _mask(count: int) -> str:
    return "0" if count == 1 else f"0-{count - 1}"


NOT_COUNTED = (
    "cgroup v1 does not count it: sysfsd says 0, which a container's part of it at least is; "
    "lxcfs what all of the host have, which may be more than the container uses"
)
_HOSTS = (
    "lxcfs shows the host's: what others do, and a side channel; the kernel counts none per cgroup"
)

RULES: tuple[Rule, ...] = (
    Rule(
        "proc/meminfo",
        "MemAvailable",
        "lxcfs takes all cache for droppable; tmpfs is in it, and can only be swapped",
        _available,
    ),
    Rule(
        "proc/meminfo",
        "AnonPages",
        "lxcfs subtracts shmem from the anonymous LRU lists, on which locked pages are not",
        lambda before, after: _kb(before.memory["total_rss"]),
    ),
    Rule(
        "proc/meminfo",
        "AnonHugePages",
        "lxcfs takes the line total_rss_huge for total_rss, which it begins with: always 0",
        lambda before, after: _kb(before.memory["total_rss_huge"]),
        differ=lambda kernel: kernel.memory["total_rss_huge"] > 0,
    ),
    Rule(
        "proc/meminfo",
        "Mlocked|KReclaimable|KernelStack|PageTables|Committed_AS|VmallocUsed|Percpu",
        NOT_COUNTED,
        lambda before, after: 0,
    ),
    Rule(
        "proc/meminfo",
        "SecPageTables|NFS_Unstable|Bounce|WritebackTmp|Balloon|FileHugePages|FilePmdMapped"
        "|CmaTotal|CmaFree|Unaccepted|HardwareCorrupted|GPU.*",
        NOT_COUNTED,
        lambda before, after: 0,
        differ=never,  # 0 on many hosts
    ),
    Rule(
        "proc/meminfo",
        "CommitLimit",
        "lxcfs shows the host's, beside a MemTotal that is not",
        _commit_limit,
    ),
    Rule(
        "proc/meminfo",
        "SwapTotal|SwapFree",
        "lxcfs shows memory and swap together as swap; the limit on both, less that on memory, is "
        "what may be swap",
        _swap_total,
        differ=_host_swaps,
    ),
    Rule(
        "proc/swaps",
        "Size",
        "as SwapTotal of meminfo",
        _swap_total,
        differ=_host_swaps,
    ),
    Rule(
        "proc/cpuinfo",
        r"\d+: (siblings|cpu cores)",
        "lxcfs leaves the host's counts in a file of fewer CPUs",
        lambda before, after: str(before.cpus),
        differ=never,  # a host of many small packages
    ),
    Rule(
        "proc/cpuinfo",
        r"0: (core id|apicid|initial apicid|physical id)",
        "lxcfs leaves the host's numbers of CPUs that it counts from 0",
        lambda before, after: "0",
        differ=never,  # the first CPU of a host
    ),
    Rule(
        "proc/stat",
        "busy",
        "lxcfs counts from when it was first asked, and forgets when it is restarted",
        lambda before, after: Range(
            (before.busy[0] - REFRESH * before.cpus) * TICKS - before.cpus,
            after.busy[1] * TICKS + after.cpus,
        ),
    ),
    Rule(
        "proc/stat",
        "idle",
        "as for busy: each CPU's time since the container began, less what it used",
        lambda before, after: _idle(
            before, after, unit=TICKS, slack=REFRESH * TICKS * before.cpus + before.cpus
        ),
    ),
    Rule("proc/stat", "intr|ctxt|softirq", _HOSTS, lambda before, after: 0),
    Rule(
        "proc/stat",
        "processes",
        "lxcfs shows the host's forks; the container's processes were numbered from 1",
        lambda before, after: Range(before.tasks, after.last_pid + 50),
    ),
    Rule(
        "proc/stat",
        "procs_running",
        "lxcfs shows how many of the host's tasks want to run",
        lambda before, after: Range(1, after.tasks),
        differ=never,
        by_chance=True,  # a quiet host
    ),
    Rule(
        "proc/stat",
        "procs_blocked",
        "lxcfs shows how many of the host's tasks wait for a disk",
        lambda before, after: 0,
        differ=never,  # a quiet host
    ),
    Rule(
        "proc/uptime",
        "up",
        "read one after the other",
        lambda before, after: Range(before.uptime - REFRESH, after.uptime + REFRESH),
        differ=never,
        lxcfs_right=always,
    ),
    Rule(
        "proc/uptime",
        "idle",
        "the kernel sums the idle time over all CPUs; lxcfs subtracts the time used by all of them "
        "from the uptime of one",
        lambda before, after: _idle(before, after, unit=1, slack=REFRESH * before.cpus + 0.05),
        differ=_many_cpus,
        lxcfs_right=_one_cpu,
    ),
    Rule(
        "proc/loadavg",
        "1|5|15",
        "each takes its own sample every 5 seconds, from when it first heard of the container",
        lambda before, after: Range(0, after.tasks),
        differ=never,
        lxcfs_right=always,
    ),
    Rule(
        "proc/loadavg",
        "running",
        "whoever reads the file runs, so the kernel never says 0; lxcfs tells of its last sample",
        lambda before, after: Range(1, after.tasks),
    ),
    Rule(
        "proc/loadavg",
        "last pid",
        "lxcfs shows a pid of the host, which says nothing inside; the kernel's field is of the "
        "reader's pid namespace",
        lambda before, after: Range(after.last_pid, after.last_pid + 50),
    ),
    Rule(
        "proc/diskstats",
        "bytes",
        "lxcfs looks for files that the kernel had until 5.0 (CFQ's), and without them shows the "
        "host's disks: how others use them",
        lambda before, after: Range(before.disk, after.disk),
    ),
    Rule(
        "proc/slabinfo",
        "caches",
        "lxcfs shows the kernel's caches, the host's, to everybody; the kernel shows them to root",
        lambda before, after: 0,
    ),
    Rule(
        "sys/devices/system/cpu/possible",
        "",
        "a CPU that is not the container's cannot be plugged in; the C library counts this file",
        lambda before, after: _mask(before.cpus),
        differ=_fewer_cpus,
    ),
    Rule(
        "sys/devices/system/cpu/present",
        "",
        "as for possible",
        lambda before, after: _mask(before.cpus),
        differ=_fewer_cpus,
    ),
)
