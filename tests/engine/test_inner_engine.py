"""An unmodified engine in a system container: Debian 12's, and sid's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.wait import until

if TYPE_CHECKING:
    from tests.engine.docker import Docker


def info(engine: Docker) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(engine("info", "--format", "{{json .}}"))
    return values


def test_its_memory_and_cpus_are_the_containers(docker: Docker, sandbox: str) -> None:
    inner = docker.inside(sandbox)
    values = info(inner)
    assert values["MemTotal"] == 1 << 30
    assert values["NCPU"] == 1
    assert "Total Memory: 1GiB" in inner("info")
    assert "CPUs: 1" in inner("info")


def test_it_uses_overlay2_on_a_disk(docker: Docker, sandbox: str) -> None:
    values = info(docker.inside(sandbox))
    assert values["Driver"] == "overlay2"
    assert ["Backing Filesystem", "overlayfs"] not in values["DriverStatus"]
    assert docker.shell(sandbox, "stat -f -c %T /var/lib/docker") != "overlayfs"


def test_it_is_no_rootless_engine(docker: Docker, sandbox: str) -> None:
    # That would be another thing: no overlay2, slirp for a network.
    assert not any(
        "rootless" in option for option in info(docker.inside(sandbox))["SecurityOptions"]
    )


def test_a_container_of_its_own(docker: Docker, sandbox: str) -> None:
    inner = docker.inside(sandbox)
    assert inner("run", "--rm", "busybox", "echo", "hello") == "hello"


def test_bridge_network_with_iptables(docker: Docker, sandbox: str) -> None:
    inner = docker.inside(sandbox)
    script = "echo greetings >index.html; exec httpd -f"
    inner("run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sh", "-c", script)
    try:
        address = inner(
            "inspect", "--format", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "web"
        )
        # Its published port and its address are reached from the system container…
        for url in ("http://127.0.0.1:8080/", f"http://{address}/"):
            until(
                lambda url=url: (
                    docker.attempt(  # type: ignore[misc]
                        "exec", sandbox, "busybox", "wget", "-qO-", url
                    ).stdout
                    == b"greetings\n"
                ),
                f"an answer of {url}",
            )
        # …and from a sibling, over the bridge.
        assert inner("run", "--rm", "busybox", "wget", "-qO-", f"http://{address}/") == "greetings"
        rules = docker.shell(sandbox, "iptables-save -t nat")
        assert "-A DOCKER" in rules
        assert f"--to-destination {address}:80" in rules
    finally:
        inner("rm", "--force", "web")


def test_inner_names_on_a_network_of_its_own(docker: Docker, sandbox: str) -> None:
    inner = docker.inside(sandbox)
    inner("network", "create", "backend")
    try:
        inner("run", "-d", "--name", "db", "--network", "backend", "busybox", "sleep", "1000")
        inner("run", "--rm", "--network", "backend", "busybox", "ping", "-c", "1", "db")
    finally:
        inner("rm", "--force", "db")
        inner("network", "rm", "backend")


def test_inner_limits(docker: Docker, sandbox: str) -> None:
    inner = docker.inside(sandbox)
    limit = inner(
        *("run", "--rm", "--memory", "64m", "busybox", "sh", "-c"),
        "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes 2>/dev/null || cat memory.max",
    )
    assert limit == str(64 << 20)


def test_inner_build(docker: Docker, sandbox: str) -> None:
    inner = docker.inside(sandbox)
    inner("run", "--name", "made", "busybox", "sh", "-c", "echo made >/made; chown 12:34 /made")
    try:
        inner("commit", "made", "made-image")
        assert inner("run", "--rm", "made-image", "stat", "-c", "%u:%g", "/made") == "12:34"
    finally:
        inner("rm", "made")
        inner.attempt("rmi", "made-image")


def test_inner_exec_and_logs(docker: Docker, sandbox: str) -> None:
    inner = docker.inside(sandbox)
    inner("run", "-d", "--name", "talker", "busybox", "sh", "-c", "echo started; exec sleep 1000")
    try:
        assert inner("exec", "talker", "id", "-u") == "0"
        until(lambda: inner("logs", "talker") == "started", "the log of the inner container")
    finally:
        inner("rm", "--force", "talker")


def test_inner_privileged_is_root_of_the_system_container_only(
    docker: Docker, sandbox: str
) -> None:
    inner = docker.inside(sandbox)
    mapped = docker.shell(sandbox, "cat /proc/self/uid_map")
    script = "cat /proc/self/uid_map; echo 0 2>/dev/null >/proc/sys/kernel/panic || echo refused"
    output = inner("run", "--rm", "--privileged", "busybox", "sh", "-c", script)
    assert output.splitlines()[0].split() == mapped.split()
    assert output.endswith("refused")


def test_inner_sysctls_and_host_network(docker: Docker, sandbox: str) -> None:
    """Its containers have the kernel's, where there is one for each, and may be given ours."""
    inner = docker.inside(sandbox)
    docker.shell(sandbox, "echo 23 >/proc/sys/vm/swappiness")
    own = ("--sysctl", "net.core.somaxconn=1234", "--sysctl", "kernel.shmmni=99")
    script = "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmni"
    assert inner("run", "--rm", *own, "busybox", "sh", "-c", script).split() == ["1234", "99"]
    network = "readlink /proc/self/ns/net"
    shown = inner("run", "--rm", "--net=host", "busybox", "sh", "-c", network)
    assert shown == docker.shell(sandbox, network)
    assert docker.shell(sandbox, "cat /proc/sys/vm/swappiness") == "23"
    bind = "/proc/sys/vm/swappiness:/swappiness"
    assert inner("run", "--rm", "-v", bind, "busybox", "cat", "/swappiness") == "23"


@pytest.fixture(scope="module")
def crun(docker: Docker, sandbox: str) -> Docker:
    """The engine inside, once it knows the runtime ``crun``."""
    runtimes = json.dumps({"runtimes": {"crun": {"path": "/usr/bin/crun"}}})
    docker.shell(
        sandbox,
        f"mkdir -p /etc/docker && echo '{runtimes}' >/etc/docker/daemon.json && "
        "kill -HUP $(cat /var/run/docker.pid)",
    )
    inner = docker.inside(sandbox)
    until(lambda: "crun" in info(inner)["Runtimes"], "the runtime crun", 20)
    return inner


@pytest.mark.parametrize(
    ("options", "script", "shown"),
    [
        ((), "id -u", "0"),
        (("--privileged",), "mount -t tmpfs none /tmp && stat -f -c %T /tmp", "tmpfs"),
        (("--net=host",), "readlink /proc/self/ns/net", None),
        (("--sysctl", "net.core.somaxconn=1234"), "cat /proc/sys/net/core/somaxconn", "1234"),
        (("--memory", "64m", "--user", "7:8"), "id -g", "8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_inner_containers_of_crun(
    docker: Docker,
    sandbox: str,
    crun: Docker,
    options: tuple[str, ...],
    script: str,
    shown: str | None,
) -> None:
    done = crun.attempt("run", "--rm", "--runtime=crun", *options, "busybox", "sh", "-c", script)
    output = (done.stdout + done.stderr).decode(errors="replace").strip()
    assert done.returncode == 0, output
    assert output == (docker.shell(sandbox, script) if shown is None else shown)


def test_what_its_own_network_lacks_is_there(docker: Docker, sandbox: str) -> None:
    """In the system container, and in nobody's way: inner runtimes mount a procfs of their own."""
    qdisc, backlog = "/proc/sys/net/core/default_qdisc", "/proc/sys/net/core/netdev_max_backlog"
    docker.shell(sandbox, f"echo fq >{qdisc}; echo 4321 >{backlog}")
    assert docker.shell(sandbox, f"cat {qdisc} {backlog}").split() == ["fq", "4321"]
    inner = docker.inside(sandbox)
    names = "ls /proc/sys/net/core"
    shown = inner("run", "--rm", "busybox", "sh", "-c", names).split()
    assert "somaxconn" in shown
    assert "default_qdisc" not in shown
    own = ("--sysctl", "net.core.somaxconn=77", "--privileged")
    read = "cat /proc/sys/net/core/somaxconn"
    assert inner("run", "--rm", *own, "busybox", "sh", "-c", read) == "77"
    assert docker.shell(sandbox, f"{read}; echo 88 >/proc/sys/net/core/somaxconn; {read}").endswith(
        "88"
    )


def test_interfaces_of_the_inner_engine_beside_what_is_added(docker: Docker, sandbox: str) -> None:
    """In one directory, and those of inner containers in procfs mounts of their own."""
    neigh = "/proc/sys/net/ipv4/neigh"
    # As Docker Swarm does for overlay networks.
    for number in (1, 2, 3):
        docker.shell(sandbox, f"sysctl -w net.ipv4.neigh.default.gc_thresh{number}={number}000")
    assert docker.shell(sandbox, f"cat {neigh}/default/*").split() == ["1000", "2000", "3000"]
    assert {"default", "docker0", "lo"} <= set(docker.shell(sandbox, f"ls {neigh}").split())
    docker.shell(sandbox, f"echo 4242 >{neigh}/docker0/gc_stale_time")
    assert docker.shell(sandbox, f"cat {neigh}/docker0/gc_stale_time") == "4242"
    inner = docker.inside(sandbox)
    inner("network", "create", "pair")
    try:
        bridge = f"br-{inner('network', 'inspect', '-f', '{{.Id}}', 'pair')[:12]}"
        assert bridge in docker.shell(sandbox, f"ls {neigh}").split()
        shown = inner("run", "--rm", "--network=pair", "busybox", "ls", neigh).split()
        assert sorted(shown) == ["eth0", "lo"]
    finally:
        inner("network", "rm", "pair")
    assert bridge not in docker.shell(sandbox, f"ls {neigh}").split()
