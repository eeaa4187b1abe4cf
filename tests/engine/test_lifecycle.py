"""What docker does to containers works on system containers."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.docker import DockerFailed
from tests.support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.conftest import Start
    from tests.engine.docker import Docker
    from tests.engine.throwaway import Throwaway

DIND = "sysfsd-dind:bookworm"


def upper(docker: Docker, name: str) -> Path:
    """Return the directory on disk that has what a container wrote."""
    return Path(docker.inspect(name)["GraphDriver"]["Data"]["UpperDir"])


@pytest.fixture
def image(docker: Docker) -> Iterator[str]:
    name = "test-committed:latest"
    yield name
    docker.attempt("rmi", "--force", name)


def test_run_gives_output_and_status(docker: Docker) -> None:
    assert docker("run", "--rm", "--runtime=sysfsd", "busybox", "echo", "hello") == "hello"
    assert docker("run", "--rm", "--runtime=sysfsd", "-i", "busybox", "cat", stdin=b"in") == "in"
    done = docker.attempt("run", "--rm", "--runtime=sysfsd", "busybox", "sh", "-c", "exit 7")
    assert done.returncode == 7


def test_run_with_a_terminal(docker: Docker) -> None:
    script = "test -t 0 && tty && id -u"
    output = docker("run", "--rm", "-t", "--runtime=sysfsd", "busybox", "sh", "-c", script)
    assert output.split() == ["/dev/pts/0", "0"]


def test_run_as_a_user(docker: Docker) -> None:
    output = docker("run", "--rm", "--runtime=sysfsd", "--user", "1000:1000", "busybox", "id")
    assert output.startswith("uid=1000 gid=1000")


def test_standard_streams_can_be_opened_again(docker: Docker) -> None:
    script = "echo out >/dev/stdout; echo err >/dev/stderr"
    done = docker.attempt("run", "--rm", "--runtime=sysfsd", "busybox", "sh", "-c", script)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_exec(docker: Docker, start: Start) -> None:
    name = start("--hostname", "inside")
    assert docker.exec(name, "hostname") == "inside"
    assert docker.exec(name, "cat", stdin=b"over") == "over"
    assert docker(
        "exec", "-u", "1000", "-w", "/tmp", "-e", "A=b", name, "sh", "-c", "id -u; pwd; echo $A"
    ).split() == [
        "1000",
        "/tmp",
        "b",
    ]
    assert docker.attempt("exec", name, "sh", "-c", "exit 3").returncode == 3


def test_stop_and_start_keep_files_and_give_a_new_life(
    own: Throwaway, docker: Docker, start: Start
) -> None:
    name = start()
    docker.shell(name, "echo kept >/root/file; chown 5:6 /root/file")
    docker("stop", "--time", "1", name)
    with own.daemon.client() as client:
        assert client.call("list", {})["containers"] == []
    docker("start", name)
    assert docker.exec(name, "cat", "/root/file") == "kept"
    assert docker.exec(name, "stat", "-c", "%u:%g", "/root/file") == "5:6"
    with own.daemon.client() as client:
        assert len(client.call("list", {})["containers"]) == 1
    assert docker.exec(name, "cat", "/proc/uptime") != ""


def test_restart(docker: Docker, start: Start) -> None:
    name = start()
    first = docker.pid(name)
    docker("restart", "--time", "1", name)
    assert docker.pid(name) != first
    assert docker.exec(name, "id", "-u") == "0"


def test_pause_and_unpause(docker: Docker, start: Start) -> None:
    name = start(command=("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"))
    docker("pause", name)
    assert docker.inspect(name)["State"]["Paused"]
    written = len(docker("logs", name).splitlines())
    docker("unpause", name)
    until(lambda: len(docker("logs", name).splitlines()) > written, "it goes on")


def test_logs(docker: Docker, start: Start) -> None:
    name = start(command=("sh", "-c", "echo one; echo two >&2; exec sleep 1000"))
    until(lambda: b"two" in docker.attempt("logs", name).stderr, "its log")
    assert docker("logs", name) == "one"


def test_kill_and_wait(docker: Docker, start: Start) -> None:
    name = start()
    docker("kill", name)
    assert docker("wait", name) == "137"


def test_top_and_stats(docker: Docker, start: Start) -> None:
    name = start("--memory", "64m")
    assert "sleep 1000" in docker("top", name)
    usage = json.loads(docker("stats", "--no-stream", "--format", "{{json .}}", name))
    assert "64MiB" in usage["MemUsage"]


def test_cp_both_ways(docker: Docker, start: Start, tmp_path: Path) -> None:
    name = start()
    (tmp_path / "in").write_text("from the host")
    docker("cp", str(tmp_path / "in"), f"{name}:/root/in")
    assert docker.exec(name, "cat", "/root/in") == "from the host"
    assert docker.exec(name, "stat", "-c", "%u:%g", "/root/in") == "0:0"
    docker.shell(name, "mkdir /root/tree; echo back >/root/tree/file; chown 7:8 /root/tree/file")
    docker("cp", f"{name}:/root/tree", str(tmp_path))
    assert (tmp_path / "tree" / "file").read_text() == "back\n"
    archive = docker.attempt("cp", f"{name}:/root/tree", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.getmember("tree/file")
        assert (file.uid, file.gid) == (7, 8)


def test_files_of_a_running_container_after_cp(
    docker: Docker, start: Start, tmp_path: Path
) -> None:
    # docker cp mounts the container's own overlay beside ours.
    name = start("--workdir", "/srv/deep")
    (tmp_path / "in").write_text("in")
    for _ in range(2):
        docker("cp", str(tmp_path / "in"), f"{name}:/srv/deep/in")
        docker.shell(name, "echo more >>/srv/deep/in; touch /srv/deep/own; ls /srv/deep >/dev/null")
    assert docker.exec(name, "ls") == "in\nown"


def test_commit_keeps_zero_based_ids(docker: Docker, start: Start, image: str) -> None:
    name = start()
    docker.shell(
        name,
        "echo x >/mine; echo y >/theirs; chown 1000:100 /theirs; chmod 4755 /mine; "
        "ln -s /mine /link; chown -h 33:33 /link",
    )
    layer = upper(docker, name)
    for file, owner in (("mine", (0, 0)), ("theirs", (1000, 100)), ("link", (33, 33))):
        status = (layer / file).lstat()
        assert (status.st_uid, status.st_gid) == owner
    docker("commit", name, image)
    script = "stat -c '%n %u:%g %a' /mine /theirs /link"
    expected = ["/mine 0:0 4755", "/theirs 1000:100 644", "/link 33:33 777"]
    # The same in a plain container, and in another system container of it.
    assert docker("run", "--rm", image, "sh", "-c", script).splitlines() == expected
    ours = docker("run", "--rm", "--runtime=sysfsd", image, "sh", "-c", script)
    assert ours.splitlines() == expected


def test_diff_names_what_changed_and_nothing_of_ours(docker: Docker, start: Start) -> None:
    name = start()
    docker.shell(name, "echo x >/root/new")
    changed = {line.split(" ", 1)[1] for line in docker("diff", name).splitlines()}
    assert "/root/new" in changed
    assert not [path for path in changed if "sysfsd" in path]


def test_rm_leaves_nothing_on_disk(own: Throwaway, docker: Docker, start: Start) -> None:
    name = start()
    docker.shell(name, "mkdir -p /var/lib/docker/x; chown 1:1 /var/lib/docker/x")
    layer = upper(docker, name)
    assert layer.exists()
    docker("rm", "--force", name)
    assert not layer.parent.exists()
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(layer.parent) not in mounts
    assert os.listdir(Path(own.daemon.mountpoint) / "containers") == []


def test_docker_data_is_on_a_disk_and_lives_as_long_as_the_container(
    docker: Docker, start: Start
) -> None:
    name = start(image=DIND, command=("sleep", "1000"))
    kind = docker.exec(name, "stat", "-f", "-c", "%T", "/var/lib/docker")
    assert kind != "overlayfs"
    assert docker.exec(name, "stat", "-c", "%u:%g", "/var/lib/docker") == "0:0"
    docker.shell(name, "echo mark >/var/lib/docker/mark")
    backing = next(upper(docker, name).parent.rglob("mark"))
    assert (backing.stat().st_uid, backing.stat().st_gid) == (0, 0)
    docker("stop", "--time", "1", name)
    docker("start", name)
    assert docker.exec(name, "cat", "/var/lib/docker/mark") == "mark"
    docker("rm", "--force", name)
    assert not backing.exists()


def test_docker_data_in_a_volume_stays_there(docker: Docker, start: Start) -> None:
    docker("volume", "create", "inner-data")
    try:
        name = start("-v", "inner-data:/var/lib/docker")
        docker.shell(name, "echo mark >/var/lib/docker/mark")
        docker("rm", "--force", name)
        other = start("-v", "inner-data:/var/lib/docker")
        assert docker.exec(other, "cat", "/var/lib/docker/mark") == "mark"
        docker("rm", "--force", other)
    finally:
        docker("volume", "rm", "inner-data")


def test_docker_data_of_the_image_comes_along(docker: Docker, start: Start, image: str) -> None:
    # An image that carries inner images, made by a plain container.
    script = """
        mkdir -p /var/lib/docker/deep
        echo mark >/var/lib/docker/deep/mark
        chown 9 /var/lib/docker/deep
    """
    docker("run", "--name", "maker", "busybox", "sh", "-c", script)
    try:
        docker("commit", "maker", image)
    finally:
        docker("rm", "maker")
    name = start(image=image)
    assert docker.exec(name, "cat", "/var/lib/docker/deep/mark") == "mark"
    assert docker.exec(name, "stat", "-c", "%u", "/var/lib/docker/deep") == "9"
    assert docker.exec(name, "stat", "-f", "-c", "%T", "/var/lib/docker") != "overlayfs"


def test_inner_containers_survive_a_restart(docker: Docker, start: Start) -> None:
    name = start(image=DIND, command=())
    inner = docker.inside(name)
    inner.wait_for_engine()
    inner("import", "-", "tiny", stdin=bytes(10240))  # an empty archive
    docker("restart", "--time", "10", name)
    inner.wait_for_engine()
    assert "tiny" in inner("images", "--format", "{{.Repository}}")


def test_read_only_root(docker: Docker) -> None:
    with pytest.raises(DockerFailed, match="Read-only file system"):
        docker("run", "--rm", "--read-only", "--runtime=sysfsd", "busybox", "touch", "/new")


def test_tmpfs_and_shm(docker: Docker) -> None:
    script = "echo x >/scratch/x; stat -c %u /scratch/x; df -k /dev/shm | tail -n 1"
    options = ["--tmpfs", "/scratch", "--shm-size", "8m"]
    output = docker("run", "--rm", *options, "--runtime=sysfsd", "busybox", "sh", "-c", script)
    assert output.split()[0] == "0"
    assert "8192" in output
