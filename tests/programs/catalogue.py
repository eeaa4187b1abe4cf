"""The programs, how to run them, and the numbers to look at in what they print.

A new program is one entry of ``PROGRAMS``. Scripts are run by ``sh`` in a container of the image of
``tests/images/programs.sh``; what they print is read with regular expressions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from sysfsd.kernel.procfs import parse_cpu_list
from tests.programs import host
from tests.programs.rules import KIB, MIB, Quantity

Reader = Callable[[str], float]
"""Finds one number in what a program printed; NaN if it is not there."""


@dataclass(frozen=True, slots=True)
class Check:
    """One number of a program."""

    name: str
    quantity: Quantity
    read: Reader
    file: str
    """Where the program has it from."""
    precision: float = 0.0
    """To how much it is printed, in the quantity's unit."""
    unreachable: str = ""
    """The system call that it comes from instead, which no file system reaches."""
    explained: str = ""
    """Why it is the host's."""
    host: Callable[[], float] | None = None
    """For LESS_THAN_HOST: the host's own number."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program and how it is run."""

    name: str
    script: str
    checks: tuple[Check, ...]


# --- Readers -------------------------------------------------------------------------------------


def number(pattern: str, unit: float = 1.0) -> Reader:
    """The last match of a pattern, times a unit: programs that print twice begin with an average
    since boot."""

    def read(output: str) -> float:
        found = re.findall(pattern, output, re.MULTILINE)
        return float(found[-1]) * unit if found else math.nan

    return read


def total(pattern: str, unit: float = 1.0) -> Reader:
    """The sum of all matches; 0 if there are none."""
    return lambda output: sum(map(float, re.findall(pattern, output, re.MULTILINE))) * unit


def count(pattern: str) -> Reader:
    """How many matches there are."""
    return lambda output: len(re.findall(pattern, output, re.MULTILINE)) or math.nan


def product(*patterns: str) -> Reader:
    """The product of several numbers."""
    return lambda output: math.prod(number(pattern)(output) for pattern in patterns)


def cpu_list(pattern: str) -> Reader:
    """How many CPUs a list like ``0-3,8`` has."""

    def read(output: str) -> float:
        found = re.search(pattern, output, re.MULTILINE)
        return len(parse_cpu_list(found[1].strip())) if found else math.nan

    return read


def human(pattern: str) -> Reader:
    """A number and a letter: ``1.5G``."""

    def read(output: str) -> float:
        found = re.search(pattern, output, re.MULTILINE)
        return float(found[1]) * 1024 ** "BKMGT".index(found[2]) if found else math.nan

    return read


_UNITS = {"day": 86400, "hour": 3600, "hr": 3600, "minute": 60, "min": 60, "second": 1, "sec": 1}


def duration(pattern: str) -> Reader:
    """A time like ``2 days, 3:07``, ``1 hour, 5 minutes``, ``12 min`` or ``00:01:02``."""

    def read(output: str) -> float:
        found = re.findall(pattern, output, re.MULTILINE)
        if not found:
            return math.nan
        text: str = found[-1]
        seconds = sum(
            int(amount) * _UNITS[unit]
            for amount, unit in re.findall(r"(\d+) (day|hour|hr|minute|min|second|sec)", text)
        )
        if clock := re.search(r"(\d+):(\d+)(?::(\d+))?", text):
            hours, minutes, rest = (int(part or 0) for part in clock.groups())
            seconds += 3600 * hours + 60 * minutes + rest
        return seconds

    return read


# --- Programs ------------------------------------------------------------------------------------

_PSUTIL = """
import json, os, psutil
memory, disks = psutil.virtual_memory(), psutil.disk_io_counters()
print(json.dumps({
    "total": memory.total, "available": memory.available,
    "swap": psutil.swap_memory().total,
    "cpus": psutil.cpu_count(), "cores": psutil.cpu_count(logical=False),
    "cpu_times": len(psutil.cpu_times(percpu=True)), "busy": psutil.cpu_percent(1),
    "boot": psutil.boot_time(), "load": psutil.getloadavg()[0],
    "disk": 0 if disks is None else disks.read_bytes + disks.write_bytes,
}))
"""

_PYTHON = """
import json, os
print(json.dumps({
    "cpu_count": os.cpu_count(), "affinity": len(os.sched_getaffinity(0)),
    "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    "configured": os.sysconf("SC_NPROCESSORS_CONF"),
}))
"""

_NODE = """
const os = require("os");
console.log(JSON.stringify({
    cpus: os.cpus().length, total: os.totalmem(), free: os.freemem(), load: os.loadavg()[0],
    uptime: os.uptime(), parallelism: os.availableParallelism(),
}));
"""

# A screen of htop's, the second that it draws: the first knows no CPU times.
_HTOP = r"""
tmux -L programs -f /dev/null new-session -d -x 160 -y 40 htop --delay 5
for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    tmux -L programs capture-pane -p >/tmp/screen
    if grep -q Uptime: /tmp/screen; then break; fi
    sleep 0.5
done
sleep 1
tmux -L programs capture-pane -p
tmux -L programs kill-server
"""

_EXPORTER = r"""
prometheus-node-exporter --web.listen-address=127.0.0.1:9100 >/tmp/exporter.log 2>&1 &
for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    if busybox wget -q -O /tmp/metrics http://127.0.0.1:9100/metrics; then break; fi
    sleep 0.5
done
kill $!
grep -v '^#' /tmp/metrics
"""

_GETLOADAVG = "sysinfo"  # that is what the C library's getloadavg(3) calls


def _python(program: str) -> str:
    return f"exec python3 -c '{program}'"


def _key(name: str) -> str:
    """A member of JSON."""
    return rf'"{name}":\s*([\d.e+]+)'


def _exported(name: str) -> str:
    return rf"^{name} (\S+)$"


PROGRAMS: tuple[Program, ...] = (
    Program(
        "free",
        "free -k",
        (
            Check("total", Quantity.MEMORY_TOTAL, number(r"^Mem:\s+(\d+)", KIB), "proc/meminfo"),
            Check(
                "used",
                Quantity.MEMORY_USED,
                number(r"^Mem:(?:\s+\d+){1}\s+(\d+)", KIB),
                "proc/meminfo",
            ),
            Check(
                "free",
                Quantity.MEMORY_FREE,
                number(r"^Mem:(?:\s+\d+){2}\s+(\d+)", KIB),
                "proc/meminfo",
            ),
            Check(
                "available",
                Quantity.MEMORY_AVAILABLE,
                number(r"^Mem:(?:\s+\d+){5}\s+(\d+)", KIB),
                "proc/meminfo",
            ),
            Check("swap", Quantity.SWAP_TOTAL, number(r"^Swap:\s+(\d+)", KIB), "proc/meminfo"),
        ),
    ),
    Program(
        "top -b",
        "top -b -n 2 -d 1 | head -n 40",
        (
            Check(
                "memory",
                Quantity.MEMORY_TOTAL,
                number(r"^MiB Mem :\s+([\d.]+) total", MIB),
                "proc/meminfo",
                precision=0.05 * MIB,
            ),
            Check(
                "used",
                Quantity.MEMORY_USED,
                number(r"^MiB Mem :.* ([\d.]+) used", MIB),
                "proc/meminfo",
                precision=0.05 * MIB,
            ),
            Check("idle", Quantity.IDLE_PERCENT, number(r"^%Cpu.*?([\d.]+) id"), "proc/stat"),
            Check("load", Quantity.LOAD, number(r"load average: ([\d.]+)"), "proc/loadavg"),
            Check(
                "up",
                Quantity.UPTIME,
                duration(r" up\s+(.+?),\s+\d+ users?"),
                "proc/uptime",
                precision=60,
            ),
        ),
    ),
    Program(
        "vmstat",
        "vmstat 1 2",
        (
            Check("r", Quantity.RUNNING, number(r"^\s*(\d+)\s+\d+\s"), "proc/stat"),
            Check(
                "free",
                Quantity.MEMORY_FREE,
                number(r"^(?:\s*\d+\s){3}\s*(\d+)", KIB),
                "proc/meminfo",
            ),
            Check(
                "id",
                Quantity.IDLE_PERCENT,
                number(r"^(?:\s*\d+\s){14}\s*(\d+)"),
                "proc/stat",
                precision=0.5,
            ),
        ),
    ),
    Program(
        "vmstat -s",
        "vmstat -s",
        (
            Check(
                "total memory",
                Quantity.MEMORY_TOTAL,
                number(r"(\d+) K total memory", KIB),
                "proc/meminfo",
            ),
            Check(
                "idle cpu ticks",
                Quantity.IDLE_TIME,
                number(r"(\d+) idle cpu ticks", 0.01),
                "proc/stat",
            ),
            Check("interrupts", Quantity.NOT_COUNTED, number(r"(\d+) interrupts"), "proc/stat"),
            Check(
                "paged in, out (KiB)",
                Quantity.LESS_THAN_HOST,
                total(r"(\d+) K paged (?:in|out)"),
                "proc/vmstat",
                host=host.paged_kib,
            ),
        ),
    ),
    Program(
        "vmstat -D",
        "vmstat -D",
        (
            Check(
                "reads, writes",
                Quantity.LESS_THAN_HOST,
                total(r"(\d+) (?:total reads|writes)"),
                "proc/diskstats",
                host=host.disk_requests,
            ),
        ),
    ),
    Program(
        "uptime",
        "uptime; uptime -p",
        (
            Check("up", Quantity.UPTIME, duration(r"^up (.+)"), "proc/uptime", precision=60),
            Check("load", Quantity.LOAD, number(r"load average: ([\d.]+)"), "proc/loadavg"),
        ),
    ),
    Program(
        "nproc",
        "nproc",
        (Check("CPUs", Quantity.CPUS, number(r"(\d+)"), "", unreachable="sched_getaffinity"),),
    ),
    Program(
        "getconf",
        "getconf _NPROCESSORS_ONLN; getconf _NPROCESSORS_CONF",
        (
            Check(
                "_NPROCESSORS_ONLN",
                Quantity.CPUS,
                number(r"\A(\d+)"),
                "sys/devices/system/cpu/online",
            ),
            Check(
                "_NPROCESSORS_CONF",
                Quantity.CPUS,
                number(r"(\d+)\s*\Z"),
                "sys/devices/system/cpu/possible",
            ),
        ),
    ),
    Program(
        "lscpu",
        "lscpu",
        (
            Check("CPU(s)", Quantity.CPUS, number(r"^CPU\(s\):\s+(\d+)"), "proc/cpuinfo"),
            Check(
                "On-line CPU(s) list",
                Quantity.CPUS,
                cpu_list(r"^On-line CPU\(s\) list:\s+(.+)"),
                "sys/devices/system/cpu/online",
            ),
            Check(
                "sockets by cores by threads",
                Quantity.CPUS,
                product(
                    r"^Socket\(s\):\s+(\d+)",
                    r"^Core\(s\) per socket:\s+(\d+)",
                    r"^Thread\(s\) per core:\s+(\d+)",
                ),
                "sys/devices/system/cpu/online",
            ),
            Check(
                "NUMA node CPU(s)",
                Quantity.CPUS,
                cpu_list(r"^NUMA node\d+ CPU\(s\):[ \t]+(\S+)"),
                "sys/devices/system/node",
            ),
        ),
    ),
    Program(
        "lsmem",
        "lsmem -b --summary=only",
        (
            Check(
                "Total online memory",
                Quantity.MEMORY_TOTAL,
                number(r"^Total online memory:\s+(\d+)"),
                "sys/devices/system/memory",
            ),
        ),
    ),
    Program(
        "mpstat",
        "mpstat -P ALL -o JSON 1 1",
        (
            Check(
                "number-of-cpus",
                Quantity.CPUS,
                number(_key("number-of-cpus")),
                "sys/devices/system/cpu",
            ),
            Check("CPUs", Quantity.CPUS, count(r'"cpu": "\d+"'), "proc/stat"),
            Check(
                "idle",
                Quantity.IDLE_PERCENT,
                number(r'"cpu": "all".*"idle": ([\d.]+)'),
                "proc/stat",
            ),
        ),
    ),
    Program(
        "iostat",
        "iostat -y -c -o JSON 1 1; iostat -d -k -o JSON",
        (
            Check(
                "number-of-cpus",
                Quantity.CPUS,
                number(_key("number-of-cpus")),
                "sys/devices/system/cpu",
            ),
            Check("idle", Quantity.IDLE_PERCENT, number(_key("idle")), "proc/stat"),
            Check(
                "kB_read, kB_wrtn",
                Quantity.LESS_THAN_HOST,
                total(r'"kB_(?:read|wrtn)": (\d+)'),
                "sys/block",
                host=host.disk_kib,
                explained="whole disks are looked up in /sys/block, where the kernel shows each in "
                "the directory of its bus; `iostat -p ALL` reads /proc/diskstats",
            ),
        ),
    ),
    Program(
        "iostat -p ALL",
        "iostat -d -k -p ALL -o JSON",
        (
            Check(
                "kB_read, kB_wrtn",
                Quantity.LESS_THAN_HOST,
                total(r'"kB_(?:read|wrtn)": (\d+)'),
                "proc/diskstats",
                host=host.disk_kib,
            ),
        ),
    ),
    Program(
        "sar",
        "sar -u -r -q 1 1",
        (
            Check("CPUs", Quantity.CPUS, number(r"\((\d+) CPU\)"), "sys/devices/system/cpu"),
            Check(
                "%idle",
                Quantity.IDLE_PERCENT,
                number(r"^Average:\s+all .*\s([\d.]+)$"),
                "proc/stat",
            ),
            Check(
                "kbmemfree",
                Quantity.MEMORY_FREE,
                number(r"^Average:\s+kbmemfree.*\nAverage:\s+(\d+)", KIB),
                "proc/meminfo",
            ),
            Check(
                "kbavail",
                Quantity.MEMORY_AVAILABLE,
                number(r"^Average:\s+kbmemfree.*\nAverage:\s+\d+\s+(\d+)", KIB),
                "proc/meminfo",
            ),
            Check(
                "runq-sz",
                Quantity.RUNNING,
                number(r"^Average:\s+runq-sz.*\nAverage:\s+(\d+)"),
                "proc/loadavg",
            ),
            Check(
                "plist-sz",
                Quantity.TASKS,
                number(r"^Average:\s+runq-sz.*\nAverage:\s+\d+\s+(\d+)"),
                "proc/loadavg",
            ),
            Check(
                "ldavg-1",
                Quantity.LOAD,
                number(r"^Average:\s+runq-sz.*\nAverage:\s+\d+\s+\d+\s+([\d.]+)"),
                "proc/loadavg",
            ),
        ),
    ),
    Program(
        "htop",
        _HTOP,
        (
            Check(
                "Mem, of",
                Quantity.MEMORY_TOTAL,
                human(r"Mem\[.*/([\d.]+)([KMGT])\]"),
                "proc/meminfo",
                precision=0.5 * MIB,
            ),
            Check(
                "Mem, used",
                Quantity.MEMORY_OF_PROGRAMS,
                human(r"Mem\[\D*([\d.]+)([KMGT])/"),
                "proc/meminfo",
                precision=0.5 * MIB,
            ),
            Check(
                "CPU bars",
                Quantity.CPUS,
                count(r"(?<!\S)(?:\d+|CPU)\[.*?%\]"),
                "sys/devices/system/cpu",
            ),
            Check("load", Quantity.LOAD, number(r"Load average: ([\d.]+)"), "proc/loadavg"),
            Check("uptime", Quantity.UPTIME, duration(r"Uptime: (.*)"), "proc/uptime", precision=1),
        ),
    ),
    Program(
        "psutil",
        _python(_PSUTIL),
        (
            Check("total", Quantity.MEMORY_TOTAL, number(_key("total")), "proc/meminfo"),
            Check(
                "available", Quantity.MEMORY_AVAILABLE, number(_key("available")), "proc/meminfo"
            ),
            Check("swap", Quantity.SWAP_TOTAL, number(_key("swap")), "proc/meminfo"),
            Check(
                "cpu_count()", Quantity.CPUS, number(_key("cpus")), "sys/devices/system/cpu/online"
            ),
            Check(
                "cpu_count(logical=False)",
                Quantity.CPUS,
                number(_key("cores")),
                "sys/devices/system/cpu",
            ),
            Check("cpu_times(percpu)", Quantity.CPUS, number(_key("cpu_times")), "proc/stat"),
            Check("cpu_percent", Quantity.BUSY_PERCENT, number(_key("busy")), "proc/stat"),
            Check(
                "disk_io_counters",
                Quantity.LESS_THAN_HOST,
                number(_key("disk"), 1 / KIB),
                "proc/diskstats",
                host=host.disk_kib,
            ),
            Check(
                "boot_time",
                Quantity.HOST_BOOT,
                number(_key("boot")),
                "proc/stat",
                precision=1,
                explained="the kernel counts the start of a process from the host's boot: with "
                "another btime every process would seem to start in the future",
            ),
            Check("getloadavg", Quantity.LOAD, number(_key("load")), "", unreachable=_GETLOADAVG),
        ),
    ),
    Program(
        "Python's os",
        _python(_PYTHON),
        (
            Check(
                "cpu_count",
                Quantity.CPUS,
                number(_key("cpu_count")),
                "sys/devices/system/cpu/online",
            ),
            Check(
                "sched_getaffinity",
                Quantity.CPUS,
                number(_key("affinity")),
                "",
                unreachable="sched_getaffinity",
            ),
            Check(
                "sysconf(SC_PHYS_PAGES)",
                Quantity.MEMORY_TOTAL,
                number(_key("memory")),
                "",
                unreachable="sysinfo",
            ),
        ),
    ),
    Program(
        "Node's os",
        f"exec node -e '{_NODE}'",
        (
            Check("cpus().length", Quantity.CPUS, number(_key("cpus")), "proc/stat"),
            Check("totalmem", Quantity.MEMORY_TOTAL, number(_key("total")), "proc/meminfo"),
            Check("freemem", Quantity.MEMORY_AVAILABLE, number(_key("free")), "proc/meminfo"),
            Check("loadavg", Quantity.LOAD, number(_key("load")), "proc/loadavg"),
            Check("uptime", Quantity.UPTIME, number(_key("uptime")), "proc/uptime"),
            Check(
                "availableParallelism",
                Quantity.CPUS,
                number(_key("parallelism")),
                "",
                unreachable="sched_getaffinity",
            ),
        ),
    ),
    Program(
        "java -XshowSettings:system",
        "java -XshowSettings:system -version 2>&1",
        (
            Check(
                "Memory Limit",
                Quantity.MEMORY_TOTAL,
                human(r"Memory Limit: ([\d.]+)([KMGT])"),
                "sys/fs/cgroup",
                precision=0.005 * MIB,
            ),
            Check(
                "Effective CPU Count",
                Quantity.CPUS,
                number(r"Effective CPU Count: (\d+)"),
                "sys/fs/cgroup",
            ),
        ),
    ),
    Program(
        "java -XX:-UseContainerSupport",
        "java -XX:-UseContainerSupport -XX:+PrintFlagsFinal -version 2>&1",
        (
            Check(
                "4 times MaxHeapSize",
                Quantity.MEMORY_TOTAL,
                number(r" MaxHeapSize\s+= (\d+)", 4),
                "",
                precision=16 * MIB,
                unreachable="sysinfo",
            ),
        ),
    ),
    Program(
        "prometheus-node-exporter",
        _EXPORTER,
        (
            Check(
                "node_memory_MemTotal_bytes",
                Quantity.MEMORY_TOTAL,
                number(_exported("node_memory_MemTotal_bytes")),
                "proc/meminfo",
            ),
            Check(
                "node_memory_MemAvailable_bytes",
                Quantity.MEMORY_AVAILABLE,
                number(_exported("node_memory_MemAvailable_bytes")),
                "proc/meminfo",
            ),
            Check(
                "node_cpu_seconds_total, CPUs",
                Quantity.CPUS,
                count(r'^node_cpu_seconds_total\{cpu="\d+",mode="idle"\}'),
                "proc/stat",
            ),
            Check(
                "node_cpu_seconds_total, idle",
                Quantity.IDLE_TIME,
                total(r'^node_cpu_seconds_total\{cpu="\d+",mode="idle"\} (\S+)'),
                "proc/stat",
            ),
            Check("node_load1", Quantity.LOAD, number(_exported("node_load1")), "proc/loadavg"),
            Check(
                "node_procs_running",
                Quantity.RUNNING,
                number(_exported("node_procs_running")),
                "proc/stat",
            ),
            Check(
                "node_context_switches_total",
                Quantity.NOT_COUNTED,
                number(_exported("node_context_switches_total")),
                "proc/stat",
            ),
            Check(
                "node_disk_{read,written}_bytes_total",
                Quantity.LESS_THAN_HOST,
                total(r"^node_disk_(?:read|written)_bytes_total\{.*\} (\S+)", 1 / KIB),
                "proc/diskstats",
                host=host.disk_kib,
            ),
            Check(
                "node_vmstat_pgpg{in,out}",
                Quantity.LESS_THAN_HOST,
                total(r"^node_vmstat_pgpg(?:in|out) (\S+)"),
                "proc/vmstat",
                host=host.paged_kib,
            ),
            Check(
                "node_pressure_cpu_waiting_seconds_total",
                Quantity.LESS_THAN_HOST,
                total(_exported("node_pressure_cpu_waiting_seconds_total")),
                "proc/pressure/cpu",
                host=host.cpu_pressure,
            ),
            Check(
                "node_boot_time_seconds",
                Quantity.HOST_BOOT,
                number(_exported("node_boot_time_seconds")),
                "proc/stat",
                precision=1,
                explained="btime of /proc/stat, as psutil's",
            ),
        ),
    ),
    Program(
        "busybox top",
        "busybox top -b -n 1",
        (
            Check(
                "free", Quantity.MEMORY_FREE, number(r"^Mem:.* (\d+)K free", KIB), "proc/meminfo"
            ),
            Check("load", Quantity.LOAD, number(r"^Load average: ([\d.]+)"), "proc/loadavg"),
        ),
    ),
    Program(
        "busybox free",
        "busybox free -k",
        (
            Check(
                "total",
                Quantity.MEMORY_TOTAL,
                number(r"^Mem:\s+(\d+)", KIB),
                "",
                unreachable="sysinfo",
            ),
        ),
    ),
    Program(
        "busybox uptime",
        "busybox uptime",
        (
            Check(
                "up",
                Quantity.UPTIME,
                duration(r" up (.+?),\s+(?:\d+ user|load)"),
                "",
                precision=60,
                unreachable="sysinfo",
            ),
            Check(
                "load", Quantity.LOAD, number(r"load average: ([\d.]+)"), "", unreachable="sysinfo"
            ),
        ),
    ),
    Program(
        "busybox nproc",
        "busybox nproc",
        (Check("CPUs", Quantity.CPUS, number(r"(\d+)"), "", unreachable="sched_getaffinity"),),
    ),
)
