"""``sysfsd-runc`` is a shell script first: what it hands on by itself, Python would have, too."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sysfsd import config
from sysfsd.runtime.arguments import CommandLine
from sysfsd.scripts import START

LAUNCHER = Path(START).with_name("sysfsd-runc")

# Says who it is and what it was given, each on a line of its own.
_SHOW = '#!/bin/sh\nprintf \'%s\\n\' "$0" "$@"\n'

SLOW = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The launcher, installed, beside a Python and a runtime that say who they are."""
    start = tmp_path / "lib/python3.99/site-packages/sysfsd/scripts/_start.py"
    start.parent.mkdir(parents=True)
    start.touch()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sysfsd-runc").write_bytes(LAUNCHER.read_bytes())
    for name in ("python3", "runtime"):
        (programs / name).write_text(_SHOW)
    for program in programs.iterdir():
        program.chmod(0o755)
    (tmp_path / "config").write_text(f'runtime = "{programs}/runtime"\n')
    return tmp_path


def launch(home: Path, words: list[str]) -> tuple[str, list[str]]:
    """Return what was started, ``python3`` or ``runtime``, and its arguments from ours on."""
    done = subprocess.run(
        [home / "bin/sysfsd-runc", *words], capture_output=True, text=True, check=True
    )
    program, *rest = done.stdout.split("\n")[:-1]
    if program == f"{home}/bin/python3":
        assert rest[:2] == ["-I", "-S"]
        assert rest[3] == "runc"
        return "python3", rest[4:]
    return Path(program).name, rest


SHIM = ["--root", "/run/runc/moby", "--log", "/run/b/log.json", "--log-format", "json"]


@pytest.mark.parametrize("subcommand", ["start", "state", "delete", "kill"])
def test_what_an_engine_says_of_a_container_is_handed_on(home: Path, subcommand: str) -> None:
    rest = [*SHIM, "--systemd-cgroup", subcommand, "--force", "abc"]

    for ours in (
        ["--config", f"{home}/config", "--control", "/run/c.sock"],
        ["--cpu-policy", "pin", "--memory-high", "ignore", "--config", f"{home}/config"],
    ):
        assert launch(home, [*ours, *rest]) == ("runtime", rest)


@pytest.mark.parametrize(
    "words",
    [
        [*SHIM, "create", "--bundle", "/b", "abc"],
        [*SHIM, "run", "abc"],
        [*SHIM, "exec", "--process", "/p", "abc"],
        [*SHIM, "restore", "abc"],
        ["--unknown", "start", "abc"],
        ["--unknown", "start", "delete", "abc"],
        ["-root", "start", "create", "abc"],
        ["--root", "/a", "--root", "/b", "start", "abc"],
        ["--root", "/a", "--root=/b", "start", "abc"],
        ["--root"],
        [],
    ],
)
def test_all_else_is_pythons_word_for_word(home: Path, words: list[str]) -> None:
    words = ["--config", f"{home}/config", *words]

    assert launch(home, words) == ("python3", words)


_WORDS = st.sampled_from(
    [
        *("--root", "--root=/r", "--log", "--log=l", "--log-format", "--log-format=json"),
        *("--debug", "--systemd-cgroup", "--control", "--control=/c", "--cpu-policy", "--config"),
        *("--memory-high", "-root", "--", "-", "", "*", "a b", "x", "/r", "--force", "--help"),
        *("create", "run", "exec", "start", "state", "kill", "delete", "list", "9"),
    ]
)


@SLOW
@given(st.lists(_WORDS, max_size=8))
def test_no_command_line_is_understood_in_another_way(home: Path, words: list[str]) -> None:
    words = ["--config", f"{home}/config", *words]

    program, passed = launch(home, words)

    if program == "python3":
        assert passed == words
    else:
        understood = CommandLine(words)
        assert understood.subcommand in {"start", "state", "kill", "delete"}
        assert understood.ours["config"] == f"{home}/config"
        assert CommandLine(passed).passed == understood.passed


_LINES = st.sampled_from(
    [
        *("", '# runtime = "crun"', 'state-dir = "/s"', 'on-failure = "continue"', "[other]"),
        *('runtime = "HOME/bin/runtime"', 'runtime = "HOME/bin/other"', 'runtime = """', '"""'),
        *("runtime = 'HOME/bin/other'", 'runtime="HOME/bin/other"', ' runtime = "HOME/bin/other"'),
        *('x = """', 'runtime = "HOME/bin/runtime" # as ever', '"runtime" = "HOME/bin/other"'),
        *("[sysctls]", '"vm.swappiness" = "forbid"', "x = '''", "'''", 'a\\b = "c"', "\\", "\t"),
        *('runtime = "HOME/bin\\u002fother"', 'control = "a" "', 'control = "\\"', "control = 1"),
        *("freshness-ms = 50", "cpu-budget = 0.5", "cpu-budget = .5", "cpu-budget = 05"),
        *("freshness-ms = 5_0", "freshness-ms = 1.", "freshness-ms = 1.2.3", "cpu-budget = 1e1"),
        *("freshness-ms = ", "freshness-ms = 50 # ms", "cpu-budget = -1", "cpu-budget = 0"),
    ]
)


@SLOW
@given(st.lists(_LINES, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_no_configuration_is_understood_in_another_way(
    home: Path, lines: list[str], end: str, ended: bool
) -> None:
    (home / "bin/other").write_text(_SHOW)
    (home / "bin/other").chmod(0o755)
    text = end.join(lines).replace("HOME", str(home)) + (end if ended else "")
    (home / "config").write_text(text, newline="")
    # None, and not a default: without the key it is runc, which would be started.
    words = ["--config", f"{home}/config", "start", "abc"]
    try:
        above, found, _ = f"\n{text}\n".partition("\n[sysctls]\n")
        meant = tomllib.loads(above if found else text)
    except tomllib.TOMLDecodeError:
        meant = None

    plain = config.read_plain(text)
    if plain is not None:
        assert meant is not None
        assert plain == {key: value for key, value in meant.items() if key != "sysctls"}
    if meant is None or "runtime" in meant:
        program, _ = launch(home, words)
        assert program == "python3" or (meant and program == Path(meant["runtime"]).name)


def test_the_example_is_read_without_python(home: Path) -> None:
    example = (Path(__file__).parent.parent.parent / "examples/sysfsd.toml").read_text()
    other = example.replace('runtime = "runc"', f'runtime = "{home}/bin/runtime"')
    assert other != example
    (home / "config").write_text(other)
    assert config.read_plain(other) is not None
    program, _ = launch(home, ["--config", f"{home}/config", "start", "abc"])
    assert program == "runtime"


def test_a_plain_configuration_is_read_without_python(home: Path) -> None:
    with (home / "config").open("a") as file:
        file.write('\n# more\nstate-dir = "/s"\n[sysctls]\n"vm.swappiness" = "forbid"\n')

    assert launch(home, ["--config", f"{home}/config", "start", "abc"])[0] == "runtime"
    assert config.read_plain((home / "config").read_text()) is not None


def test_a_configuration_that_is_not_there_is_pythons_to_name(home: Path) -> None:
    words = ["--config", f"{home}/none", "start", "abc"]

    assert launch(home, words) == ("python3", words)


def test_through_a_link(home: Path) -> None:
    link = home / "link"
    link.symlink_to(home / "bin/sysfsd-runc")
    done = subprocess.run([link, "create"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith(f"{home}/bin/python3\n")
