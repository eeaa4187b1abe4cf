"""Who decides about a container, with the real runc and the real crun."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.throwaway import installed
from tests.support.bundles import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.runtime.conftest import Runtime
    from tests.support.bundles import Bundle

ANNOTATION = "dev.sysfsd.cpu-policy"


def half_a_cpu(bundle: Bundle, **annotations: str) -> Bundle:
    bundle.spec["linux"]["resources"]["cpu"] = {"quota": 50000, "period": 100000}
    bundle.spec["annotations"] = annotations
    bundle.save()
    return bundle


def online(bundle: Bundle, prefix: list[str]) -> str:
    done = run([*prefix, "run", "--bundle", str(bundle.path), bundle.path.name])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("flags", "annotations", "one"),
    [
        ([], {}, True),
        (["--cpu-policy", "cpuset"], {}, False),
        ([], {ANNOTATION: "cpuset"}, False),
        (["--cpu-policy", "cpuset"], {ANNOTATION: "quota"}, True),
        (["--cpu-policy=off", "--memory-high=ignore"], {"cpu-policy": "quota"}, False),
    ],
    ids=["neither", "flag", "annotation", "annotation before flag", "others' annotations"],
)
def test_annotation_before_flag_before_configuration(
    runtime: Runtime,
    new_bundle: Callable[..., Bundle],
    flags: list[str],
    annotations: dict[str, str],
    one: bool,
) -> None:
    bundle = half_a_cpu(new_bundle("cat", "/sys/devices/system/cpu/online"), **annotations)
    seen = online(bundle, [*runtime.command(), *flags])
    with open("/sys/devices/system/cpu/online", encoding="ascii") as host:
        assert seen == ("0" if one else host.read().strip())


def test_the_daemon_says_what_holds(
    runtime: Runtime, new_bundle: Callable[..., Bundle], container: Callable[[Bundle], str]
) -> None:
    bundle = half_a_cpu(new_bundle("sleep", "600"), **{ANNOTATION: "off"})
    name = container(bundle)
    with runtime.daemon.client() as client:
        containers = client.call("list", {})["containers"]
    (known,) = [each for each in containers if each["id"] == name]
    assert known["policy"] == {"cpu-policy": "off", "memory-high": "limit"}


def test_a_bad_annotation_is_one_line(runtime: Runtime, new_bundle: Callable[..., Bundle]) -> None:
    bundle = half_a_cpu(new_bundle("echo", "started"), **{ANNOTATION: "on"})
    done = run(runtime.command("run", "--bundle", str(bundle.path), bundle.path.name))

    assert done.returncode != 0
    assert "started" not in done.stdout
    assert f"{ANNOTATION} must be 'quota', 'cpuset', 'off' or 'pin', not 'on'" in done.stderr


def test_a_bad_flag_is_one_line(runtime: Runtime, new_bundle: Callable[..., Bundle]) -> None:
    bundle = new_bundle("echo", "started")
    options = ["--control", runtime.daemon.control, "--cpu-policy", "on"]
    done = run(
        [*runtime.prefix, installed("sysfsd-runc"), *options, "run", "-b", str(bundle.path), "x"]
    )

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == ("sysfsd-runc: --cpu-policy must be 'quota', 'cpuset', 'off' or 'pin', not 'on'")


def test_a_bad_annotation_where_containers_start_without_views(
    runtime: Runtime, new_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    config = tmp_path / "sysfsd.toml"
    config.write_text(f'runtime = "{runtime.name}"\non-failure = "continue"\n')
    bundle = half_a_cpu(new_bundle("echo", "started"), **{ANNOTATION: "on"})
    command = [installed("sysfsd-runc"), "--control", runtime.daemon.control]
    assert online(bundle, [*runtime.prefix, *command, "--config", str(config)]) == "started"
