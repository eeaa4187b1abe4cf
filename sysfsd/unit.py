"""What systemd is about to do with a unit of ours that has stopped."""

from __future__ import annotations

import os
import subprocess

_SECONDS = 10


def restarts(unit: str) -> bool:
    """Whether it will be started again at once; to be asked from ``ExecStopPost=``.

    After a failure it is (``Restart=``), or its ``OnFailure=`` sees to what is left; and when
    somebody restarts it there is a job that says so. If systemd does not answer, it is not.
    """
    if os.environ.get("SERVICE_RESULT", "success") != "success":
        return True
    try:
        jobs = subprocess.run(
            ["systemctl", "list-jobs", "--plain", "--no-legend", unit],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return is_restarted(unit, jobs.stdout)


def is_restarted(unit: str, jobs: str) -> bool:
    """Whether a list of jobs (number, unit, type, state) has that of a restart or start; pure."""
    for line in jobs.splitlines():
        fields = line.split()
        if len(fields) >= 3 and fields[1] == unit and fields[2] in {"restart", "start"}:
            return True
    return False
