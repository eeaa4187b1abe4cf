"""The configuration file, logs, and the command line's own words."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sysfsd import config
from sysfsd.cli import _find
from sysfsd.errors import NoSuchContainer, UsageError
from sysfsd.kernel.cgroups import CgroupPaths
from sysfsd.log import RateLimit
from sysfsd.policy import Policy
from sysfsd.running import id_from_cgroup

if TYPE_CHECKING:
    from collections.abc import Set
    from pathlib import Path


def test_defaults_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", str(tmp_path / "none"))
    loaded = config.load()
    assert loaded.source is None
    assert loaded.mountpoint == "/var/lib/sysfsd"
    assert loaded.control == "/run/sysfsd/control.sock"
    assert (loaded.runtime, loaded.on_failure, loaded.subid_user) == ("runc", "refuse", "sysfsd")


def test_every_key(tmp_path: Path) -> None:
    path = tmp_path / "sysfsd.toml"
    path.write_text(
        'mountpoint = "/m"\ncontrol = "/c"\nstate-dir = "/s"\nsubid-user = "1000"\n'
        'runtime = "/opt/runc"\non-failure = "continue"\n'
        'cpu-policy = "pin"\nmemory-high = "ignore"\nannotations = "ignore"\n'
        "cpu-budget = 0.25\nfreshness-ms = 100\nlimits-freshness-ms = 2500\n"
    )
    loaded = config.load(str(path))
    values = (loaded.mountpoint, loaded.control, loaded.state_dir, loaded.subid_user)
    assert values == ("/m", "/c", "/s", "1000")
    assert (loaded.runtime, loaded.on_failure) == ("/opt/runc", "continue")
    assert loaded.policy() == Policy("pin", "ignore")
    assert loaded.annotations == "ignore"
    lives = loaded.freshness_ms, loaded.limits_freshness_ms
    assert (loaded.cpu_budget, *lives) == (0.25, 100, 2500)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('on-falure = "refuse"', "unknown key 'on-falure'; did you mean 'on-failure'?"),
        ("cpu-budget = 0", "cpu-budget must be a number from 0.01 to 64"),
        ('freshness-ms = "50"', "freshness-ms must be a number from 1 to 1000"),
        ("freshness-ms = 1001", "freshness-ms must be a number from 1 to 1000"),
        ("limits-freshness-ms = true", "limits-freshness-ms must be a number from 1 to 60000"),
        ('zzz = "x"', "unknown key 'zzz'; keys are: mountpoint, control"),
        ("mountpoint = 3", "mountpoint must be a text, such as '/var/lib/sysfsd'"),
        ('control = ""', "control must be a text"),
        ('mountpoint = "relative"', "mountpoint must be an absolute path"),
        ('on-failure = "maybe"', 'on-failure must be "refuse" or "continue"'),
        ('cpu-policy = "on"', "cpu-policy must be 'quota', 'cpuset', 'off' or 'pin', not 'on'"),
        ('annotations = "pin"', 'annotations must be one of "no-pin", "all", "ignore"'),
        ('memory-high = "max"', "memory-high must be 'limit' or 'ignore', not 'max'"),
        ('runtime = "youki"', 'runtime must be "runc", "crun" or an absolute path'),
        ("[[[", "sysfsd.toml is not valid TOML: "),
        ('mountpoint = "\xff"'.encode("latin-1"), "sysfsd.toml is not valid TOML: "),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "sysfsd.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as raised:
        config.load(str(path))
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such configuration file"):
        config.load(str(tmp_path / "none"))


SLOW_TO_IMPORT = frozenset(
    """
    collections contextlib dataclasses enum functools inspect json logging pathlib re selectors
    signal socket subprocess tempfile tomllib typing
    """.split()
)
"""Each takes 2 to 15 ms, of a start of a container that takes five processes of ours."""


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("sysfsd.config", SLOW_TO_IMPORT),
        ("sysfsd.hook", SLOW_TO_IMPORT),
        (
            "sysfsd.runtime.main, sysfsd.config, sysfsd.control.client, sysfsd.runtime.bundle, "
            "sysfsd.runtime.refusals, sysfsd.runtime.spec, sysfsd.runtime.stage, sysfsd.scripts",
            SLOW_TO_IMPORT,
        ),
        ("sysfsd.cli", {"trio", "pyfuse3", "structlog", "psutil"}),
    ],
)
def test_light_modules_stay_light(modules: str, forbidden: Set[str]) -> None:
    script = f"import sys; sys.path.insert(0, ''); import {modules}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True
    )
    assert not forbidden & set(done.stdout.split())


def test_an_ordinary_file_is_read_without_tomllib(tmp_path: Path) -> None:
    path = tmp_path / "sysfsd.toml"
    path.write_text('# ours\nruntime = "crun"\n[sysctls]\n"vm.swappiness" = "forbid"\n')
    script = (
        "import sys; sys.path.insert(0, ''); from sysfsd import config; "
        f"print(config.load({str(path)!r}, sysctls=False).runtime, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True
    )
    runtime, *loaded = done.stdout.split()
    assert runtime == "crun"
    assert not SLOW_TO_IMPORT & set(loaded)


def test_a_container_by_the_beginning_of_its_id() -> None:
    containers = [{"id": "abc1"}, {"id": "abc12"}, {"id": "xyz"}]
    assert _find("x", containers) == "xyz"
    assert _find("abc1", containers) == "abc1"
    for name, error in (("ab", UsageError), ("q", NoSuchContainer), ("", NoSuchContainer)):
        with pytest.raises(error):
            _find(name, containers)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/docker/" + "a1" * 32, "a1" * 32),
        ("/system.slice/docker-" + "b2" * 32 + ".scope", "b2" * 32),
        ("/machine.slice/libpod-" + "c3" * 32 + ".scope/container", "c3" * 32),
        # What is below the engine's is named by whoever runs in there.
        ("/docker/" + "a1" * 32 + "/docker/" + "d4" * 32, "a1" * 32),
        ("/user.slice", None),
    ],
)
def test_the_id_an_engine_gave(path: str, expected: str | None) -> None:
    assert id_from_cgroup(CgroupPaths((("memory", path),))) == expected


def test_what_repeats_is_said_once_in_a_while() -> None:
    now = [100.0]
    limit = RateLimit(10, max_keys=2, clock=lambda: now[0])
    assert [limit.passes("a") for _ in range(4)] == [0, None, None, None]
    now[0] += 10
    assert limit.passes("a") == 3
    assert limit.passes("b") == 0
    # Hostile keys take no memory, and cannot silence those that are known.
    assert [limit.passes(f"hostile {number}") for number in range(100)] == [None] * 100
    now[0] += 10
    assert limit.passes("b") == 0


def test_a_crash_is_logged_without_the_values_of_variables() -> None:
    script = (
        "from sysfsd import log\n"
        "log.configure('info')\n"
        "secret = 'of a container'\n"
        "try: raise ExceptionGroup('two', [ValueError(1), KeyError(2)])\n"
        "except Exception as error: log.crashed(error)\n"
        "import logging; logging.getLogger('pyfuse3').error('library %s', 'says')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    crashed, library = (json.loads(line) for line in done.stderr.splitlines())
    assert crashed["level"] == "error"
    assert "KeyError" in str(crashed)
    assert "of a container" not in done.stderr
    assert library["event"] == "library says"


def test_a_mistake_about_sysctls_does_not_keep_the_runtime_from_its_work(tmp_path: Path) -> None:
    path = tmp_path / "sysfsd.toml"
    path.write_text('runtime = "crun"\n[sysctls]\n"vm.max_map_cuont" = "max"\n')
    assert config.load(str(path), sysctls=False).runtime == "crun"
    with pytest.raises(UsageError, match="did you mean"):
        config.load(str(path))
