"""The host's files under another thread's execution domain, with the real personality(2)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sysfsd.facts.callers import Callers
from sysfsd.facts.collector import FactsCollector
from sysfsd.facts.host import HostFacts
from sysfsd.kernel import personality, syscalls
from sysfsd.kernel.cgroups import CgroupPaths, CgroupTree
from sysfsd.policy import DEFAULT, Policy

if TYPE_CHECKING:
    from collections.abc import Iterator

ASK = 0xFFFFFFFF
ADDR_NO_RANDOMIZE = 0x0040000
FIXTURES = Path(__file__).parent / "fixtures" / "cpuinfo-arm64"


def machine() -> str:
    """What uname(2) tells this thread: a 32-bit name under PER_LINUX32."""
    return os.uname().machine


@pytest.fixture(autouse=True)
def _stays_as_it_was() -> Iterator[None]:
    before = syscalls.personality(ASK)
    yield
    assert syscalls.personality(ASK) == before


def test_it_is_set_while_reading_and_restored() -> None:
    own = machine()
    with personality.under(personality.PER_LINUX32):
        inside = machine()
        assert personality.domain_of(threading.get_native_id()) == personality.PER_LINUX32
    assert machine() == own
    with personality.under(None):
        assert machine() == own
    # 64-bit machines have another name for it; a 32-bit one's stays.
    assert (inside != own) == (sys.maxsize > 1 << 32)


def test_it_is_restored_after_an_error() -> None:
    own = machine()
    with pytest.raises(ZeroDivisionError), personality.under(personality.PER_LINUX32):
        raise ZeroDivisionError
    assert machine() == own


def test_it_is_this_threads_alone() -> None:
    seen: list[str] = []
    own = machine()
    with personality.under(personality.PER_LINUX32):
        # A thread takes it from the one that makes it, so this one was made for the purpose.
        go, done = threading.Event(), threading.Event()

        def other() -> None:
            syscalls.personality(personality.PER_LINUX)
            go.set()
            done.wait(20)
            seen.append(machine())

        thread = threading.Thread(target=other)
        thread.start()
        assert go.wait(20)
        inside = machine()
        done.set()
        thread.join()
    assert seen == [own]
    assert inside != own


@contextmanager
def thirty_two_bit() -> Iterator[int]:
    """A process under PER_LINUX32, with a switch set besides."""
    command = ["setarch", "linux32", "--addr-no-randomize", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"here\n")
        process.stdin.flush()
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_the_switches_of_others_are_not_taken_over() -> None:
    before = syscalls.personality(ASK)
    hostile = personality.PER_LINUX32 | ADDR_NO_RANDOMIZE
    with thirty_two_bit() as pid:
        value = int(Path(f"/proc/{pid}/personality").read_text(), 16)
        assert value & hostile == hostile
        domain = personality.domain_of(pid)
    assert domain == personality.PER_LINUX32
    with personality.under(domain):
        assert syscalls.personality(ASK) == (before & ~0xFF) | personality.PER_LINUX32


def test_who_is_gone_has_none() -> None:
    assert personality.domain_of((1 << 22) + 1) is None


class Arm64(HostFacts):
    """A host whose kernel writes cpuinfo as arm64's does, for who reads it."""

    @property
    def _proc(self) -> str:
        domain = syscalls.personality(ASK) & 0xFF
        return str(FIXTURES / ("linux32" if domain == personality.PER_LINUX32 else "linux"))

    @_proc.setter
    def _proc(self, value: str) -> None:
        pass


@pytest.mark.parametrize("domain", [None, personality.PER_LINUX, personality.PER_LINUX32])
def test_cpuinfo_is_read_under_the_readers(domain: int | None) -> None:
    text = Arm64(domain=domain).cpuinfo
    is_32_bit = domain == personality.PER_LINUX32
    assert ("ARMv8 Processor rev" in text) == is_32_bit
    assert ("vfpv4 idiva idivt lpae" in text) == is_32_bit
    assert (" fp asimd evtstrm" in text) != is_32_bit


def test_callers_are_known_by_it_where_it_matters() -> None:
    tree = CgroupTree.of_host()
    with thirty_two_bit() as pid:
        asked, own = (Callers(tree, domains=True).identify(each) for each in (pid, os.getpid()))
        unasked = Callers(tree, domains=False).identify(pid)
    assert (asked.domain, own.domain) == (personality.PER_LINUX32, personality.PER_LINUX)
    assert unasked.domain is None
    assert asked.cgroup == own.cgroup
    assert asked != own


@dataclass(frozen=True)
class Record:
    serial: int = 1
    pid: int = 1
    started: float = 1.0
    cgroup: CgroupPaths = field(default_factory=CgroupPaths)
    domain: int | None = None
    policy: Policy = DEFAULT


def test_a_containers_is_its_inits_unless_its_reader_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sysfsd.facts.host.read_text", lambda _path: machine())
    facts = FactsCollector(tree=CgroupTree(())).facts
    compatible, native = Record(domain=personality.PER_LINUX32), Record()
    assert facts(native).host.cpuinfo == machine()
    assert facts(compatible).host.cpuinfo != machine()
    assert facts(native, domain=personality.PER_LINUX32).host.cpuinfo != machine()
    assert facts(compatible, domain=personality.PER_LINUX).host.cpuinfo == machine()


def test_it_matters_where_the_kernel_says_so() -> None:
    assert personality.matters("aarch64")
    assert not personality.matters("x86_64")
    assert personality.matters() == personality.matters(machine())
