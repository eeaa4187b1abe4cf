"""What the probe says, against what a container's root can really open for writing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sysfsd.errors import SysfsdError
from sysfsd.sysctls import probe as module
from sysfsd.sysctls.probe import State, probe
from sysfsd.sysctls.table import SYSCTLS
from tests.support.containers import container

WHERE = (
    "proc/sys/net/core/",
    *(f"proc/sys/net/{family}/neigh/default/" for family in ("ipv4", "ipv6")),
)

WRITABLE = """
import json, os, sys
found = {}
for path in json.load(sys.stdin):
    try:
        os.close(os.open("/" + path, os.O_WRONLY))
        found[path] = "native"
    except (FileNotFoundError, NotADirectoryError):
        found[path] = "absent"
    except OSError:
        found[path] = "emulated"
print(json.dumps(found))
"""


def test_it_is_right_about_every_file() -> None:
    paths = [node.path for node in SYSCTLS if node.path.startswith("proc/sys/")]
    for directory, below, names in os.walk("/proc/sys"):
        if "binfmt_misc" in below:
            below.remove("binfmt_misc")  # another file system, mounted there or not
        paths += [os.path.join(directory, name).lstrip("/") for name in names]
    found = probe([*paths, "proc/sys/no/such/file"])

    with container(isolated=True) as box:
        script = f"import io, sys; sys.stdin = io.StringIO({json.dumps(paths)!r})\n{WRITABLE}"
        path = Path(f"/tmp/sysfsd-test-probe-{os.getpid()}.py")
        path.write_text(script)
        try:
            real = json.loads(box.run(sys.executable, "-I", "-S", str(path)))
        finally:
            path.unlink()
    assert found.pop("proc/sys/no/such/file") is State.ABSENT
    lacking = {State.ADDED, State.HIDDEN, State.ABSENT}
    states = {name: "absent" if it in lacking else it.value for name, it in found.items()}
    assert states == real
    assert min(list(states.values()).count(state) for state in ("native", "emulated")) > 10
    for name, it in found.items():
        assert (it is State.ABSENT) == (not os.path.lexists(f"/{name}"))
    added = {name for name, it in found.items() if it in lacking and name.startswith(WHERE)}
    assert len(added) > 10
    assert added == {name for name, it in found.items() if it is State.ADDED}


def test_it_leaves_us_where_we_are() -> None:
    kinds = ("user", "net", "ipc", "uts", "pid")
    before = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in kinds]
    probe(["proc/sys/vm/swappiness"])
    assert [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in kinds] == before


def probed_under(prepare: str, *unshare: str) -> str:
    """What a probe prints, or why it fails, after a shell command in other namespaces."""
    script = (
        "from sysfsd.errors import SysfsdError\n"
        "from sysfsd.sysctls.probe import probe\n"
        "try: print(*(state.value for state in probe(['proc/sys/net/ipv4/ip_forward']).values()))\n"
        "except SysfsdError as error: print(error)\n"
    )
    command = f'{prepare} && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", *unshare, "sh", "-ec", command, sys.executable, script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.rstrip("\n")


def test_a_file_that_is_mounted_read_only_is_not_native() -> None:
    assert probed_under("true", "--mount") == "native"
    read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
    assert probed_under(read_only, "--mount") == "emulated"


def test_no_namespaces_and_it_says_why() -> None:
    # The limit is one of each user namespace: the host's stays.
    said = probed_under("echo 0 > /proc/sys/user/max_user_namespaces", "--user", "--map-root-user")
    assert "No space left on device" in said
    assert "see sysctl user.max_user_namespaces" in said
    assert "\n" not in said


def test_it_does_not_wait_for_ever_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.001)
    with pytest.raises(SysfsdError, match="timed out"):
        probe(["proc/sys/vm/swappiness"])
