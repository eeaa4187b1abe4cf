"""Values of the host's that containers raise, and the journal of them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysfsd.config import from_document, load
from sysfsd.errors import UsageError
from sysfsd.kernel.procfs import parse_task_stat, read_text
from sysfsd.log import RateLimit
from sysfsd.sysctls.host import HostSysctls, Raised, decode, encode, forget, wish
from tests.pure.test_sysctl_store import record

if TYPE_CHECKING:
    from pathlib import Path

PATH = "proc/sys/vm/max_map_count"
numbers = st.integers(0, 1 << 40)


@given(numbers, st.lists(st.tuples(st.sampled_from("abc"), numbers | st.none()), max_size=12))
def test_the_largest_wish_holds_and_all_ends_where_it_began(
    original: int, steps: list[tuple[str, int | None]]
) -> None:
    host, raised = original, None
    wishes: dict[str, int] = {}
    for key, number in steps:
        if number is None:
            wishes.pop(key, None)
            raised = forget(raised, host, key) if raised else None
        else:
            wishes[key] = number
            raised = wish(raised, host, key, number)
        if raised is not None:
            host = raised.target
        assert host == max([original, *wishes.values()])
    for key in list(wishes):
        assert raised is not None
        raised = forget(raised, host, key)
        assert raised is not None
        host = raised.target
    assert host == original


def test_what_the_administrator_writes_meanwhile_stays() -> None:
    raised = wish(None, 10, "a", 50)
    assert raised.target == 50
    assert forget(raised, 77, "a") is None
    again = wish(raised, 77, "b", 60)
    assert (again.original, again.target) == (77, 77)


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.builds(
            Raised,
            numbers,
            st.lists(numbers, max_size=2).map(tuple),
            st.dictionaries(
                st.tuples(numbers, numbers).map(lambda key: f"{key[0]}-{key[1]}"), numbers
            ),
        ),
        max_size=3,
    )
)
def test_the_journal_there_and_back(raised: dict[str, Raised]) -> None:
    assert decode(encode(raised, "boot"), "boot") == raised
    assert decode(encode(raised, "boot"), "another") == {}


@given(st.binary(max_size=200))
def test_no_journal_does_worse_than_be_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data, "boot")


class Host:
    """A directory for the host's files, and a daemon that may be killed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / PATH
        self.file.parent.mkdir(parents=True)
        self.file.write_text("65530\n")
        self.daemon = self.start()

    def start(self, policy: str = "max") -> HostSysctls:
        self.daemon = HostSysctls(
            {PATH: policy},
            str(self.directory / "raised.json"),
            RateLimit(),
            root=str(self.directory),
        )
        return self.daemon

    @property
    def value(self) -> int:
        return int(self.file.read_text())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


ticks = parse_task_stat(read_text("/proc/self/stat")).start_ticks
ALIVE = replace(record(), pid=os.getpid(), started=ticks / os.sysconf("SC_CLK_TCK"))
DEAD = replace(ALIVE, pid=4194999, serial=2)


def test_raised_for_as_long_as_it_is_needed(host: Host) -> None:
    host.daemon.written(ALIVE, PATH, (262144,))
    host.daemon.written(DEAD, PATH, (1048576,))
    assert host.value == 1048576
    host.daemon.release(DEAD)
    assert host.value == 262144
    host.daemon.written(ALIVE, PATH, (1,))
    assert host.value == 65530
    host.daemon.release(ALIVE)
    assert host.value == 65530
    assert decode((host.directory / "raised.json").read_bytes(), host.daemon._boot) == {}


def test_a_successor_lowers_what_was_for_the_dead(host: Host) -> None:
    host.daemon.written(ALIVE, PATH, (262144,))
    host.daemon.written(DEAD, PATH, (1048576,))
    host.start()
    assert host.value == 262144
    host.daemon.release(ALIVE)
    assert host.value == 65530


@pytest.mark.parametrize("before", [True, False])
def test_killed_between_the_journal_and_the_file(host: Host, before: bool) -> None:
    class Killed(BaseException):
        pass

    def kill(path: str, number: int) -> None:
        if not before:
            HostSysctls._write(host.daemon, path, number)
        raise Killed

    host.daemon._write = kill  # type: ignore[method-assign]
    with pytest.raises(Killed):
        host.daemon.written(DEAD, PATH, (1048576,))
    host.start()
    assert host.value == 65530


def test_others_and_the_forbidden_are_left_alone(host: Host) -> None:
    host.start("forbid")
    assert not host.daemon.allows(PATH)
    assert host.daemon.allows("proc/sys/vm/swappiness")
    host.daemon.written(ALIVE, PATH, (262144,))
    host.daemon.written(ALIVE, "proc/sys/vm/swappiness", (1,))
    assert host.value == 65530


def test_a_host_that_does_not_take_it_says_so(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.file.unlink()
    host.daemon.written(ALIVE, PATH, (262144,))
    assert "stays as it is" in capsys.readouterr().out


def test_the_configuration() -> None:
    config = from_document(
        {
            "sysctls": {
                "vm.max_map_count": "max",
                "kernel/core_pattern": "forbid",
                "/proc/sys/fs/file-max": "max",
                "/sys/module/nf_conntrack/parameters/hashsize": "forbid",
            }
        },
        "file",
    )
    assert config.sysctls == {
        PATH: "max",
        "proc/sys/kernel/core_pattern": "forbid",
        "proc/sys/fs/file-max": "max",
        "sys/module/nf_conntrack/parameters/hashsize": "forbid",
    }


def test_a_name_without_quotes_is_a_table_to_toml(tmp_path: Path) -> None:
    path = tmp_path / "sysfsd.toml"
    path.write_text('[sysctls]\nvm.max_map_count = "max"\nfs.file-max = "forbid"\n')
    assert load(str(path)).sysctls == {PATH: "max", "proc/sys/fs/file-max": "forbid"}


def test_the_section_costs_a_start_of_a_container_little(tmp_path: Path) -> None:
    path = tmp_path / "sysfsd.toml"
    path.write_text('[sysctls]\nvm.max_map_count = "max"\n')
    script = (
        f"import sys; from sysfsd import config; config.load({str(path)!r}); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"structlog", "trio", "pyfuse3", "ctypes"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("max", "must be a table"),
        ({"vm.max_map_cuont": "max"}, "did you mean 'vm.max_map_count'"),
        ({"vm.max_map_count": "always"}, 'must be "max" or "forbid"'),
        ({"vm.max_map_count": ["max"]}, 'must be "max" or "forbid"'),
        ({"kernel.printk": "max"}, "not one number"),
        ({"kernel.core_pattern": "max"}, "not one number"),
        ({"vm.dirty_bytes": "max"}, "changes another one of the host's"),
        ({"kernel.yama.ptrace_scope": "max"}, "the host would keep for ever"),
        ({"kernel.unprivileged_bpf_disabled": "max"}, "the host would keep for ever"),
        ({"/sys/module/nf_conntrack/parameters/hashsize": "max"}, "not below /proc/sys"),
        ({"/proc/sys/vm/max_map_cuont": "max"}, "did you mean 'vm.max_map_count'"),
        ({"vm.min_free_kbytes": "max"}, "not a limit"),
        ({"kernel.panic_on_oops": "max"}, "not a limit"),
        ({"runtime": "crun"}, "put it above"),
        ({"zzz": "max"}, "'zzz' is no sysctl that sysfsd emulates; `sysfsd doctor` lists those"),
        ({"vm.max_map_count": "max", "vm/max_map_count": "forbid"}, "there twice, under two names"),
    ],
)
def test_a_configuration_that_will_not_do(section: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        from_document({"sysctls": section}, "file")


class _Killed(BaseException):
    pass


def _killed_writing(host: Host, *, before: bool) -> None:
    def kill(path: str, number: int) -> None:
        if not before:
            HostSysctls._write(host.daemon, path, number)
        raise _Killed

    host.daemon._write = kill  # type: ignore[method-assign]


def _refusing(host: Host, *refused: int) -> None:
    def write(path: str, number: int) -> None:
        if number in refused:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        HostSysctls._write(host.daemon, path, number)

    host.daemon._write = write  # type: ignore[method-assign]


def _journal(host: Host) -> dict[str, Raised]:
    return decode((host.directory / "raised.json").read_bytes(), host.daemon._boot)


@pytest.mark.parametrize("before", [True, False])
def test_killed_while_lowering_for_the_last(host: Host, before: bool) -> None:
    host.daemon.written(DEAD, PATH, (1048576,))
    _killed_writing(host, before=before)
    with pytest.raises(_Killed):
        host.daemon.release(DEAD)
    host.start()
    assert host.value == 65530
    assert _journal(host) == {}


@pytest.mark.parametrize("before", [True, False])
def test_killed_while_lowering_for_one_of_two(host: Host, before: bool) -> None:
    host.daemon.written(ALIVE, PATH, (262144,))
    host.daemon.written(DEAD, PATH, (1048576,))
    _killed_writing(host, before=before)
    with pytest.raises(_Killed):
        host.daemon.release(DEAD)
    host.start()
    assert host.value == 262144


def test_what_the_host_had_before_may_be_the_administrators_again(host: Host) -> None:
    host.daemon.written(ALIVE, PATH, (262144,))
    host.daemon.written(ALIVE, PATH, (1048576,))
    host.file.write_text("262144\n")
    host.daemon.release(ALIVE)
    assert host.value == 262144
    assert _journal(host) == {}


def test_an_administrator_who_puts_it_back_ends_former_wishes(host: Host) -> None:
    host.daemon.written(ALIVE, PATH, (1048576,))
    host.file.write_text("65530\n")
    host.daemon.written(DEAD, PATH, (100000,))
    assert host.value == 100000


def test_what_the_host_refuses_stands_in_nobodys_way(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    _refusing(host, 1048576)
    host.daemon.written(DEAD, PATH, (1048576,))
    assert "stays as it is" in capsys.readouterr().out
    assert _journal(host) == {}
    host.daemon.written(ALIVE, PATH, (262144,))
    assert host.value == 262144
    host.daemon.written(DEAD, PATH, (1048576,))
    host.daemon.release(ALIVE)
    assert host.value == 65530


def test_a_lowering_that_failed_is_tried_again(host: Host) -> None:
    host.daemon.written(DEAD, PATH, (262144,))
    _refusing(host, 65530)
    host.daemon.release(DEAD)
    assert host.value == 262144
    _refusing(host)
    host.daemon.release(replace(DEAD, pid=4194998, serial=3))
    assert host.value == 65530
    assert _journal(host) == {}


def test_the_dead_are_noticed_when_another_goes(host: Host) -> None:
    host.daemon.written(ALIVE, PATH, (100000,))
    # Released by hand while it ran, and gone since.
    host.daemon.written(DEAD, PATH, (262144,))
    host.daemon.release(replace(DEAD, pid=4194998, serial=3))
    assert host.value == 100000


def test_a_value_that_the_kernel_rounds_is_still_ours(host: Host) -> None:
    def round_up(path: str, number: int) -> None:
        HostSysctls._write(
            host.daemon, path, -(-number // 4096) * 4096 if number > 70000 else number
        )

    host.daemon._write = round_up  # type: ignore[method-assign]
    host.daemon.written(ALIVE, PATH, (262145,))
    assert host.value == 266240
    host.daemon.release(ALIVE)
    assert host.value == 65530


def test_a_journal_that_cannot_be_written_leaves_the_host_alone(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    (host.directory / "raised.json.new").mkdir()
    host.daemon.written(ALIVE, PATH, (262144,))
    assert host.value == 65530
    assert "stays as it is" in capsys.readouterr().out


def test_only_files_of_the_table_are_written(host: Host) -> None:
    other = host.directory / "other"
    other.write_text("5\n")
    raised = {name: Raised(1, (5,), {}) for name in ("other", "../../x", "proc/sys/kernel/printk")}
    (host.directory / "raised.json").write_bytes(encode(raised, host.daemon._boot))
    host.start()
    assert other.read_text() == "5\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: writes a sysctl")
def test_on_the_real_host(tmp_path: Path) -> None:
    # One more request of asynchronous I/O that may wait: nobody cares.
    path = "proc/sys/fs/aio-max-nr"
    before = int(read_text(f"/{path}"))
    daemon = HostSysctls({path: "max"}, str(tmp_path / "raised.json"), RateLimit())
    daemon.written(ALIVE, path, (before + 1,))
    raised = int(read_text(f"/{path}"))
    daemon.release(ALIVE)
    assert (raised, int(read_text(f"/{path}"))) == (before + 1, before)
