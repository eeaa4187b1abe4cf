"""On what the figures were made: without that they say nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

from sysfsd import __version__

ROOT = Path(__file__).parent.parent.parent


def machine() -> dict[str, str | int | float]:
    """The hardware and the kernel."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)", cpuinfo, re.MULTILINE)
    clock = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cpus": os.cpu_count() or 1,
        "virtual": bool(re.search(r"^flags.*\bhypervisor\b", cpuinfo, re.MULTILINE)),
        "memory_mib": psutil.virtual_memory().total >> 20,
        "kernel": platform.release(),
        "clocksource": clock.read_text().strip() if clock.exists() else "",
        "cgroup": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """What was measured, and with what."""
    return {
        "sysfsd": __version__,
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "python": platform.python_version(),
        "pyfuse3": metadata.version("pyfuse3"),
        "runc": _output("runc", "--version").partition("\n")[0].removeprefix("runc version "),
    }


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
