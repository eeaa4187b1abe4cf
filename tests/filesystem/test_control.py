"""The control socket against those who use it wrongly, and the registry against real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sysfsd.control.client import Client
from sysfsd.errors import (
    ContainerExists,
    DaemonUnavailable,
    InvalidRequest,
    NoRangeLeft,
    NoSuchContainer,
    NoSuchView,
)
from sysfsd.sysctls.table import SYSCTLS
from tests.support.attached import attach
from tests.support.cgroups import cgroup
from tests.support.containers import container
from tests.support.daemon import serving, sysfsd
from tests.support.tidy import count_fds
from tests.support.views import SYSCTL_POINTS, points_of_this_host
from tests.support.wait import until

if TYPE_CHECKING:
    from tests.support.containers import Container
    from tests.support.daemon import Serving


def say(daemon: Serving, data: bytes, fds: list[int] | None = None) -> Any:
    """Say something on a connection of its own; returns the decoded reply, None for none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(daemon.control)
        try:
            if fds:
                data = data[socket.send_fds(connection, [data], fds) :]
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass  # it has heard enough
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return json.loads(answer) if answer else None


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"garbage\n",
        b"\xff\xfe\n",
        b"[1,2]\n",
        b'{"method": 3}\n',
        b'{"method": "hello", "parameters": []}\n',
        b'{"method": "no-such"}\n',
        b'{"method": "' + b"x" * 100_000 + b'"}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (2 << 20),
        b'{"method": "register", "parameters": {"id": "x"}}\n',
        b'{"method": "reserve", "parameters": {"id": "x"}}\n',
        b'{"method": "resolve"}\n',
        b'{"method": "watch_root", "parameters": {"id": "x"}}\n',
        b'{"method": "show", "parameters": {"id": "x", "path": 3}}\n',
        b'{"method": "release", "parameters": {"id": null}}\n',
    ],
    ids=lambda line: line[:30].decode("ascii", "replace").strip(),
)
def test_nonsense_gets_an_error(daemon: Serving, line: bytes) -> None:
    answer = say(daemon, line)
    assert answer["error"]["code"] == "invalid"
    assert "\n" not in answer["error"]["message"]
    assert daemon.call("hello")


@pytest.mark.parametrize("line", [b"", b'{"method": "hel', b'{"method": "hello"}'])
def test_a_request_that_ends_early_gets_nothing(daemon: Serving, line: bytes) -> None:
    assert say(daemon, line) is None
    assert daemon.call("hello")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "a b", "a\0b", "é", "x" * 256, 7, None, ["x"]]
)
def test_ids_that_are_none(daemon: Serving, box: Container, name: object) -> None:
    pidfd = os.pidfd_open(box.pid)
    try:
        with pytest.raises(InvalidRequest):
            daemon.call("register", pidfd, id=name)
    finally:
        os.close(pidfd)
    assert daemon.ids() == []


def test_descriptors_are_not_kept(daemon: Serving, box: Container) -> None:
    before = count_fds(daemon.process.pid)
    pidfd, wrong = os.pidfd_open(box.pid), os.open("/dev/null", os.O_RDONLY)
    register = b'{"method": "register", "parameters": {"id": "x"}}\n'
    try:
        for line, fds in [
            (register, [wrong]),
            (register, [pidfd, pidfd]),
            (register, [pidfd] * 200),
            (b"nonsense\n", [pidfd]),
            (b'{"method": "hello"}\n', [pidfd] * 4),
            (b"unfinished", [pidfd] * 3),
        ]:
            say(daemon, line, fds)
    finally:
        os.close(pidfd)
        os.close(wrong)
    assert daemon.ids() == []
    until(lambda: count_fds(daemon.process.pid) <= before, "descriptors to be closed")


def test_a_dead_process(daemon: Serving) -> None:
    process = subprocess.Popen(["sleep", "infinity"])
    pidfd = os.pidfd_open(process.pid)
    process.kill()
    process.wait()
    try:
        for method in ("register", "reserve", "resolve"):
            with pytest.raises(InvalidRequest):
                daemon.call(method, pidfd, id="dead")
    finally:
        os.close(pidfd)
    assert daemon.ids() == []


def test_a_zombie(daemon: Serving) -> None:
    process = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(process.pid)
    try:
        until(lambda: b"Z" in _state(process.pid), "a zombie")
        with pytest.raises(InvalidRequest):
            daemon.call("register", pidfd, id="zombie")
    finally:
        process.wait()
        os.close(pidfd)


def _state(pid: int) -> bytes:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0]


def test_only_root_may_talk(tmp_path: Path) -> None:
    script = (
        "import socket, sys, os\n"
        "peer = socket.socket(socket.AF_UNIX)\n"
        "os.setuid(65534)\n"
        "peer.connect(sys.argv[1])\n"
        "print(peer.recv(10000).decode())\n"
    )
    with serving(tmp_path) as daemon:
        plain = subprocess.run(
            ["python3", "-c", script, daemon.control], capture_output=True, text=True, check=False
        )
        assert "PermissionError" in plain.stderr


def test_a_peer_that_got_past_the_sockets_mode(
    daemon: Serving, expected_log: Any, tmp_path: Path
) -> None:
    """Somebody made the socket writable for all; SO_PEERCRED still says who it is."""
    expected_log.allow("control peer refused")
    script = (
        "import socket, sys, os\n"
        "os.chdir(sys.argv[1])\n"
        "os.setuid(65534)\n"
        "peer = socket.socket(socket.AF_UNIX)\n"
        "peer.connect('control.sock')\n"
        'peer.sendall(b\'{"method": "list"}\\n\')\n'
        "print(peer.recv(10000).decode())\n"
    )
    os.chmod(daemon.control, 0o666)
    try:
        done = subprocess.run(
            ["python3", "-c", script, str(daemon.state_dir)],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        os.chmod(daemon.control, 0o600)
    assert json.loads(done.stdout)["error"]["code"] == "denied"
    assert daemon.call("stats")["control"]["denied"] >= 1


def test_many_requests_on_one_connection(daemon: Serving) -> None:
    with Client(daemon.control) as client:
        for _ in range(100):
            assert client.call("list", {}) == {"containers": []}


def test_more_connections_than_there_is_room_for(daemon: Serving) -> None:
    silent = []
    try:
        for _ in range(200):
            connection = socket.socket(socket.AF_UNIX)
            silent.append(connection)
            connection.settimeout(0.2)
            try:
                connection.connect(daemon.control)
            except OSError:
                break
        assert len(silent) > 64
    finally:
        for connection in silent:
            connection.close()

    def answers() -> bool:
        try:
            return bool(daemon.call("hello"))
        except DaemonUnavailable:  # the queue is still full
            return False

    until(answers, "an answer")


def test_the_same_init_may_register_again_but_no_other(daemon: Serving, box: Container) -> None:
    daemon.register("web", box.pid)
    daemon.register("web", box.pid)
    assert daemon.ids() == ["web"]
    with container() as other, pytest.raises(ContainerExists, match="web"):
        daemon.register("web", other.pid)
    daemon.call("release", id="web")
    daemon.call("release", id="web")
    assert daemon.ids() == []


def test_a_record_says_who_it_is(daemon: Serving, box: Container) -> None:
    daemon.register("web", box.pid)
    (record,) = daemon.call("list")["containers"]
    assert record["pid"] == box.pid
    assert record["userns"][1] == os.stat(f"/proc/{box.pid}/ns/user").st_ino
    assert any("sysfsd-test" in path for path in record["cgroup"].values())
    box.kill()
    until(lambda: daemon.ids() == [], "the record to go")


def test_resolve(daemon: Serving, box: Container) -> None:
    daemon.register("web", box.pid)
    inside, outside = os.pidfd_open(box.pid), os.pidfd_open(os.getpid())
    try:
        assert daemon.call("resolve", inside) == {"id": "web"}
        assert daemon.call("resolve", outside) == {"id": None}
    finally:
        os.close(inside)
        os.close(outside)
    daemon.call("release", id="web")


def test_ranges_are_bound_to_processes(tmp_path: Path) -> None:
    user = tmp_path.name.replace("_", "-")  # nobody has that name, and nothing needs it to exist
    config = tmp_path / "config.toml"
    config.write_text(f'subid-user = "{user}"\n')
    with serving(tmp_path, "--config", str(config)) as daemon:
        pidfd = os.pidfd_open(os.getpid())
        try:
            with pytest.raises(NoRangeLeft, match=f"{user}:10000000:6553600"):
                daemon.call("reserve", pidfd, id="web")
        finally:
            os.close(pidfd)
        assert daemon.call("stats")["ranges_in_use"] == 0


def test_show_and_ps(daemon: Serving, web: Path) -> None:
    with pytest.raises(NoSuchContainer):
        daemon.call("show", id="other", path="proc/uptime")
    with pytest.raises(NoSuchView):
        daemon.call("show", id="web", path="proc/cmdline")
    for domain in (-1, 256, True, "8", 8.0, [8]):
        with pytest.raises(InvalidRequest):
            daemon.call("show", id="web", path="proc/uptime", domain=domain)
    assert daemon.call("show", id="web", path="proc/cpuinfo", domain=8)["text"]

    shown = sysfsd("show", "w", "/proc/meminfo", control=daemon.control)
    assert shown.stdout.startswith(f"MemTotal:       {96 << 10:>8} kB\n")
    explained = sysfsd("show", "web", "proc/meminfo", "--explain", control=daemon.control)
    assert "memory.limit_in_bytes" in explained.stdout or "memory.max" in explained.stdout
    assert "web" in sysfsd("ps", control=daemon.control).stdout
    listed = json.loads(sysfsd("ps", "--json", control=daemon.control).stdout)
    assert [each["id"] for each in listed] == ["web"]
    stats = json.loads(sysfsd("stats", "--json", control=daemon.control).stdout)
    assert stats["containers"] == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["show", "nope", "/proc/uptime"], 3, "no container 'nope'"),
        (["show", "web", "/proc/nope"], 3, "no view at '/proc/nope'"),
        (["detach", "1"], 1, ""),
        (["attach", "99999999"], 1, "no process 99999999"),
        (["attach", "self"], 2, "invalid int value"),
        (["nonsense"], 2, "invalid choice"),
        ([], 2, "required"),
    ],
)
def test_exit_statuses(
    daemon: Serving, web: Path, arguments: list[str], status: int, message: str
) -> None:
    done = sysfsd(*arguments, control=daemon.control)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_daemon(tmp_path: Path) -> None:
    for arguments in (["ps"], ["stats"], ["show", "x", "y"], ["attach", str(os.getpid())]):
        done = sysfsd(*arguments, control=str(tmp_path / "nobody"))
        assert done.returncode == DaemonUnavailable.exit_status == 69
        assert "systemctl start sysfsd" in done.stderr
        assert done.stderr.count("\n") == 1


def test_attach_and_detach(daemon: Serving, box: Container) -> None:
    host = box.run("cat", "/proc/meminfo").splitlines()[0]
    attached = sysfsd("attach", str(box.pid), "--id", "box", control=daemon.control)
    assert attached.returncode == 0, attached.stderr
    assert box.run("cat", "/proc/meminfo").startswith(f"MemTotal:       {96 << 10:>8} kB ")
    assert "fuse.sysfsd" in box.run("cat", "/proc/self/mountinfo")
    assert daemon.ids() == ["box"]
    # Again is fine, and by any process of the container.
    again = sysfsd("attach", str(box.pid), control=daemon.control)
    assert again.stdout == attached.stdout
    detached = sysfsd("detach", str(box.pid), control=daemon.control)
    assert detached.returncode == 0, detached.stderr
    assert detached.stdout.replace("detached", "attached") == attached.stdout
    assert box.run("cat", "/proc/meminfo").splitlines()[0] == host
    assert daemon.ids() == []


def test_what_a_container_mounts_over_a_view_stays_inside(daemon: Serving, box: Container) -> None:
    # On a systemd host everything mounted is shared, and clones of it are peers of the original.
    subprocess.run(["mount", "--make-shared", daemon.mountpoint], check=True, timeout=10)
    attach(daemon, "box", box)
    box.run("mount", "--bind", "/proc/version", "/proc/uptime")
    assert box.run("cat", "/proc/uptime").startswith("Linux")
    mounted = Path("/proc/self/mountinfo").read_text().splitlines()
    assert sum(str(daemon.mountpoint) in line for line in mounted) == 1
    inside = box.run("cat", "/proc/self/mountinfo").splitlines()
    views = [line for line in inside if "/containers/box/" in line]
    points = {line.split()[4] for line in views}
    assert len(points) == len(views)
    assert points - SYSCTL_POINTS == {f"/{point}" for point in points_of_this_host()}
    assert not [line for line in views if "shared:" in line or "master:" in line]


def test_attach_in_a_pod_is_for_the_container_that_was_named(daemon: Serving) -> None:
    """Its containers share a pid namespace, the init of which is another one of them."""
    container_id = "5e" * 32
    sleep = "unshare --mount --cgroup sh -c 'read go; exec sleep 1000' <&0"
    pod = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
    with (
        cgroup(container_id, memory=56 << 20) as group,
        subprocess.Popen([*pod, "sh", "-c", f"{sleep} & wait"], stdin=subprocess.PIPE) as process,
    ):
        try:
            (init,) = until(lambda: children(process.pid), "the pod's init")
            (app,) = until(lambda: children(init), "the container's process")
            group.put(app, container_id)
            own = os.stat(f"/proc/{init}/ns/mnt").st_ino
            until(lambda: os.stat(f"/proc/{app}/ns/mnt").st_ino != own, "its mount namespace")
            attached = sysfsd("attach", str(app), control=daemon.control)
            assert attached.returncode == 0, attached.stderr
            assert daemon.ids() == [container_id]
            (record,) = daemon.call("list")["containers"]
            assert record["pid"] == app
            total = f"MemTotal:       {56 << 10:>8} kB"
            assert first_line_of_meminfo(app) == total
            assert first_line_of_meminfo(init) != total
        finally:
            process.kill()
            process.wait()
    until(lambda: daemon.ids() == [], "the record to go")


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def first_line_of_meminfo(pid: int) -> str:
    return subprocess.run(
        ["nsenter", "--target", str(pid), "--mount", "--pid", "head", "-n", "1", "/proc/meminfo"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    ).stdout.rstrip()


def test_the_host_itself_is_not_attached_to(daemon: Serving) -> None:
    done = sysfsd("attach", str(os.getpid()), control=daemon.control)
    assert done.returncode == 1
    assert "not in a container" in done.stderr
    assert daemon.ids() == []


def test_doctor(daemon: Serving) -> None:
    found = json.loads(sysfsd("doctor", "--json", control=daemon.control).stdout)
    checks = found["checks"]
    by_name = {check["name"]: check for check in checks}
    assert by_name["daemon"]["ok"]
    assert by_name["/dev/fuse"]["ok"]
    assert by_name["sysctls"]["ok"]
    assert all(check["fix"] for check in checks)
    states = {each["name"]: each["state"] for each in found["sysctls"]}
    assert states["vm/swappiness"] == "emulated"
    assert len(states) == len(SYSCTLS)


def test_the_process_that_made_a_container_stands_for_it(daemon: Serving) -> None:
    """As in ``unshare --pid --fork … &``, then ``sysfsd attach $!``."""
    with subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "sleep", "99"]
    ) as making:
        children = Path(f"/proc/{making.pid}/task/{making.pid}/children")
        try:
            init = until(lambda: int(children.read_text() or 0), "a child")
            until(lambda: Path(f"/proc/{init}/comm").read_text() == "sleep\n", "its program")
            for pid in (making.pid, init):
                done = sysfsd("attach", str(pid), control=daemon.control)
                assert done.returncode == 0, done.stderr
            assert [each["pid"] for each in daemon.call("list")["containers"]] == [init]
            done = sysfsd("detach", str(making.pid), control=daemon.control)
            assert done.returncode == 0, done.stderr
            assert daemon.call("list")["containers"] == []
        finally:
            making.kill()
            os.kill(init, 9)
