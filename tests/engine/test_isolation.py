"""What a system container's root may do, and what it may not."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.throwaway import IDS, serving, subordinate_ids
from tests.support.wait import until

if TYPE_CHECKING:
    from tests.engine.conftest import Start
    from tests.engine.docker import Docker
    from tests.engine.throwaway import Throwaway

DIND = "sysfsd-dind:bookworm"
CAP_SYS_ADMIN = 1 << 21


def status_of(text: str) -> dict[str, str]:
    return {
        name: value.strip()
        for name, _, value in (line.partition(":") for line in text.splitlines())
    }


def test_root_is_nobody_on_the_host(docker: Docker, start: Start) -> None:
    name = start()
    uid = int(status_of(Path(f"/proc/{docker.pid(name)}/status").read_text())["Uid"].split()[0])
    inside, outside, count = docker.exec(name, "cat", "/proc/self/uid_map").split()
    assert (int(inside), int(outside), int(count)) == (0, uid, IDS)
    assert uid >= 1 << 16


def test_exec_has_the_capabilities_of_its_user_namespace(docker: Docker, start: Start) -> None:
    name = start()
    first = status_of(docker.exec(name, "cat", "/proc/1/status"))
    added = status_of(docker.exec(name, "cat", "/proc/self/status"))
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        assert int(added[kind], 16) == int(first[kind], 16)
    assert int(added["CapEff"], 16) & CAP_SYS_ADMIN
    # Of its own namespace: what it is good for ends there.
    docker.shell(name, "mkdir /m && mount -t tmpfs none /m && umount /m")
    assert "ermission" in docker.refused(
        "exec", name, "sh", "-c", "echo 1 >/proc/sys/vm/drop_caches"
    )


def test_what_is_the_hosts_below_sys_kernel_is_empty(docker: Docker, start: Start) -> None:
    name = start()
    there = docker.shell(
        name, "ls -d /sys/kernel/config /sys/kernel/debug /sys/kernel/tracing || :"
    )
    assert "/sys/kernel/debug" in there
    for directory in (*there.split(), "/sys/kernel/security"):
        assert docker.shell(name, f"find {directory} -mindepth 1 2>&1 || :") in {
            "",
            f"find: {directory}: No such file or directory",
        }


def test_exec_as_a_user_has_none(docker: Docker, start: Start) -> None:
    name = start()
    status = status_of(docker("exec", "-u", "1000", name, "cat", "/proc/self/status"))
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapPrm"], 16) == 0
    assert docker.refused("exec", "-u", "1000", name, "mount", "-t", "tmpfs", "none", "/tmp")


def test_cap_drop_is_respected(docker: Docker, start: Start) -> None:
    name = start("--cap-drop", "ALL")
    for process in ("1", "self"):
        status = status_of(docker.exec(name, "cat", f"/proc/{process}/status"))
        assert not int(status["CapEff"], 16) & CAP_SYS_ADMIN


LIMIT_FILES = r"""
for file in $(find /sys/fs/cgroup -maxdepth 2 -type f -name '*memory.*limit*' \
    -o -maxdepth 2 -name 'memory.max' -o -maxdepth 2 -name 'memory.high' \
    -o -maxdepth 2 -name 'memory.swap.max' -o -maxdepth 2 -name pids.max \
    -o -maxdepth 2 -name 'cpu.cfs_quota_us' -o -maxdepth 2 -name 'cpu.max' \
    -o -maxdepth 2 -name 'cpuset.cpus' -o -maxdepth 2 -name 'devices.allow'); do
  for value in max -1 4294967296 0-63 'a *:* rwm'; do
    (echo "$value" >"$file") 2>/dev/null && echo "$file took $value"
  done
done
true
"""


def test_limits_cannot_be_raised_from_inside(docker: Docker, start: Start) -> None:
    name = start(
        "--memory",
        "128m",
        "--pids-limit",
        "77",
        "--cpus",
        "1",
        image=DIND,
        command=("sleep", "1000"),
    )
    # There are such files to write to.
    assert docker.shell(name, "find /sys/fs/cgroup -maxdepth 2 -name 'pids.max'") != ""
    assert docker.shell(name, LIMIT_FILES) == ""
    # Nor by giving oneself the right to.
    docker.shell(name, "chmod -R u+rwX /sys/fs/cgroup 2>/dev/null || true")
    docker.shell(name, "chown -R root /sys/fs/cgroup 2>/dev/null || true")
    assert docker.shell(name, LIMIT_FILES) == ""
    assert docker.shell(name, "awk '/^MemTotal/ { print $2 }' /proc/meminfo") == str(128 << 10)


def test_limits_hold(docker: Docker, start: Start) -> None:
    name = start("--pids-limit", "20")
    script = "for i in $(seq 40); do sleep 100 & done; wait"
    assert "can't fork" in docker.refused("exec", name, "sh", "-c", script)


def test_a_child_cgroup_is_its_own_to_make(docker: Docker, start: Start) -> None:
    name = start("--memory", "128m", image=DIND, command=("sleep", "1000"))
    script = """
        cd /sys/fs/cgroup; [ ! -d memory ] || cd memory
        mkdir child && sh -c 'echo $$ >child/cgroup.procs && cat /proc/self/cgroup'
    """
    assert "/child" in docker.shell(name, script)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--privileged",), "privileged"),
        (("--pid=host",), "--pid=host"),
        (("--network=host",), "--network=host"),
        (("--ipc=host",), "--ipc=host"),
        (("--uts=host",), "--uts=host"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_refusals_say_why(docker: Docker, options: tuple[str, ...], reason: str) -> None:
    output = docker.refused("run", "--rm", "--runtime=sysfsd", *options, "busybox", "true")
    assert "sysfsd-runc" in output
    assert reason in output
    assert "leave that option out" in output


def test_ranges_differ_and_are_freed(own: Throwaway, docker: Docker, start: Start) -> None:
    one, two = start(), start()

    def base(name: str) -> int:
        return int(docker.exec(name, "cat", "/proc/self/uid_map").split()[1])

    first, second = base(one), base(two)
    assert abs(first - second) >= IDS
    docker("stop", "--time", "1", one)
    # As many again as there are ranges would not fit if they were not given back.
    with own.daemon.client() as client:
        assert {c["uid_base"] for c in client.call("list", {})["containers"]} == {second}


def test_no_range_left_says_so(own: Throwaway, docker: Docker, start: Start) -> None:
    user = f"{own.directory.name}-one"
    with ExitStack() as stack:
        stack.enter_context(subordinate_ids(user, containers=1))
        stack.enter_context(serving(own.other, config=f'subid-user = "{user}"\n'))
        name = start(runtime="sysfsd-other")
        output = docker.refused("run", "--rm", "--runtime=sysfsd-other", "busybox", "true")
        assert "/etc/subuid" in output
        docker("rm", "--force", name)
        # And there is one again.
        docker("run", "--rm", "--runtime=sysfsd-other", "busybox", "true")


def test_no_daemon_says_so(docker: Docker) -> None:
    output = docker.refused("run", "--rm", "--runtime=sysfsd-other", "busybox", "true")
    assert "sysfsd" in output
    assert "does not answer" in output


def test_twenty_at_once(own: Throwaway, docker: Docker, start: Start) -> None:
    count = 20
    names: list[str] = []
    failures: list[BaseException] = []

    def one(number: int) -> None:
        try:
            options = ["--memory", f"{40 + number}m", "--cpuset-cpus", str(number % 2)]
            names.append(start(*options, image=DIND, command=("sleep", "1000")))
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            failures.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    totals, bases = set(), set()
    for name in names:
        script = "awk '/^MemTotal/ { print $2 }' /proc/meminfo; cut -d' ' -f1 /proc/uptime"
        total, _ = docker.shell(name, script).split()
        limit = docker.inspect(name)["HostConfig"]["Memory"]
        assert int(total) == limit >> 10
        totals.add(total)
        bases.add(docker.exec(name, "cat", "/proc/self/uid_map").split()[1])
    assert len(totals) == len(bases) == count
    docker("kill", *names)

    def registered() -> int:
        with own.daemon.client() as client:
            return len(client.call("list", {})["containers"])

    until(lambda: registered() == 0, "all records go")


def test_stops_of_all_kinds_free_the_record(own: Throwaway, docker: Docker, start: Start) -> None:
    for how in (("kill",), ("stop", "--time", "1"), ("rm", "--force")):
        name = start()
        docker(*how, name)

        def registered() -> int:
            with own.daemon.client() as client:
                return len(client.call("list", {})["containers"])

        until(lambda: registered() == 0, f"the record goes after docker {how[0]}")
