"""The values of emulated sysctls: what each container wrote, else what it is by default.

They live as long as the container and outlive the daemon: a container's are in a small file,
``<pid>-<start>``, that is replaced before a write is acknowledged. Values of a network namespace
are shared by the containers whose inits are in it, and in the file of each.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import structlog

from sysfsd import state
from sysfsd.errors import InvalidRequest
from sysfsd.kernel import capabilities, inside, namespaces
from sysfsd.kernel.procfs import boot_id, is_running, read_fd, read_text
from sysfsd.sysctls import kept as formats
from sysfsd.sysctls import writing
from sysfsd.sysctls.groups import Extent, inwards, outwards, parse_map
from sysfsd.sysctls.kept import Kept
from sysfsd.sysctls.node import Live, Made, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sysfsd.containers.record import ContainerRecord
    from sysfsd.kernel.namespaces import UsernsKey
    from sysfsd.log import RateLimit
    from sysfsd.sysctls.kept import NamespaceKey
    from sysfsd.sysctls.node import Sysctl
    from sysfsd.sysctls.values import Value

_NAME = re.compile(r"(\d{1,10})-(\d{1,20})")
_NO_UUID = "00000000-0000-0000-0000-000000000000"

_KINDS = {Live.HOSTNAME: "UTS", Live.PING_GROUPS: "network"}

_log = structlog.get_logger(__name__)


class Policy(Protocol):
    """What the administrator decided about writes (`sysfsd.sysctls.host`)."""

    def allows(self, path: str) -> bool:
        """Whether containers may write it at all."""

    def written(self, record: ContainerRecord, path: str, value: Value) -> None:
        """Take note of a value that a container wrote."""

    def release(self, record: ContainerRecord) -> None:
        """Forget about a container that is gone."""


@dataclass(slots=True)
class _Entry:
    """One container's. The descriptors keep the namespaces' numbers from becoming others'."""

    record: ContainerRecord
    name: str
    network_key: NamespaceKey
    network_fd: int
    uts_fd: int
    groups: tuple[Extent, ...]
    """The groups of its user namespace."""
    owns: frozenset[Live]
    """Of which the namespace is its own to write."""
    network_owners: Sequence[UsernsKey]
    """The user namespace that its network namespace belongs to, and those around that."""
    shares: bool
    """Whether others in its network namespace have its values there, too."""
    container: dict[str, Value] = field(default_factory=dict)
    network: dict[str, Value] = field(default_factory=dict)


class Store:
    """The values of all registered system containers. May be used from several threads."""

    def __init__(
        self,
        directory: str,
        nodes: Sequence[Sysctl],
        limit: RateLimit,
        *,
        policy: Policy,
        root: str = "/",
    ) -> None:
        """Use a directory, which is made, and drop what is in it of processes that are gone.

        Raises ``OSError``.
        """
        self._nodes = {node.path: node for node in nodes}
        self._limit = limit
        self._policy = policy
        self._root = root
        self._boot = boot_id()
        self._own_userns = namespaces.own_user_namespace()
        self._lock = threading.RLock()
        self._entries: dict[int, _Entry] = {}
        self._directory = state.open_private(directory)
        for name in os.listdir(self._directory):
            match = _NAME.fullmatch(name.removesuffix(".new"))
            if match and not is_running(int(match[1]), int(match[2])):
                self._unlink(name)

    def __len__(self) -> int:
        """Of how many containers values are kept."""
        return len(self._entries)

    def open(self, record: ContainerRecord, pidfd: int) -> None:
        """Begin with a container, or go on where the daemon before stopped.

        Raises ``InvalidRequest`` if its init, which ``pidfd`` stands for, is gone.
        """
        with self._lock, contextlib.ExitStack() as stack:
            if record.serial in self._entries:
                return
            try:
                network_fd = namespaces.open_namespace(record.pid, "net")
                stack.callback(os.close, network_fd)
                uts_fd = namespaces.open_namespace(record.pid, "uts")
                stack.callback(os.close, uts_fd)
                groups = parse_map(read_text(f"/proc/{record.pid}/gid_map"))
            except OSError as error:
                raise InvalidRequest(f"container {record.id}: {error}") from None
            if not namespaces.pidfd_alive(pidfd):
                raise InvalidRequest(f"container {record.id}: its process {record.pid} is gone")
            stack.pop_all()
            key = namespaces.namespace_key(network_fd)
            # As for sethostname(2): who has no rights over the namespace's owner, which is the
            # host for its own and for those that it hands out, renames nobody.
            owners = {Live.HOSTNAME: _owners(uts_fd), Live.PING_GROUPS: _owners(network_fd)}
            owns = frozenset(live for live, keys in owners.items() if record.userns in keys)
            # On the host's network there are strangers: they share nothing.
            shares = self._own_userns not in owners[Live.PING_GROUPS][:1]
            name = f"{record.pid}-{record.start_ticks}"
            entry = _Entry(
                record,
                name,
                key,
                network_fd,
                uts_fd,
                groups,
                owns,
                owners[Live.PING_GROUPS],
                shares,
            )
            known = self._load(name)
            same = self._of_same_init(entry)
            entry.container = same[0].container if same else known.container
            shared = self._sharing(entry)
            if shared:
                entry.network = shared[0].network
            elif known.network_key == key:
                entry.network = known.network
            self._entries[record.serial] = entry
            for path, value in entry.network.items():
                self._policy.written(record, path, value)

    def close(self, record: ContainerRecord) -> None:
        """Drop a container; its values go with it, unless its init still lives."""
        with self._lock:
            entry = self._entries.pop(record.serial, None)
            if entry is None:
                return
            self._close_descriptors(entry)
            if not is_running(record.pid, record.start_ticks):
                self._unlink(entry.name)
                self._policy.release(record)

    def close_all(self) -> None:
        """Leave everything to a successor."""
        with self._lock:
            for entry in self._entries.values():
                self._close_descriptors(entry)
            self._entries.clear()
            os.close(self._directory)

    def owns_network(self, record: ContainerRecord) -> bool:
        """Whether a container's network namespace is its user namespace's, and nobody else's."""
        entry = self._entries.get(record.serial)
        return entry is not None and entry.network_owners[:1] == [record.userns]

    def may_administer(self, record: ContainerRecord, thread: int) -> bool:
        """Whether a thread may change a container's network, as the kernel has it.

        Whoever has CAP_NET_ADMIN where the user namespace counts to which that belongs, whatever
        its ids are (``net_ctl_permissions`` of net/sysctl_net.c). Raises ``OSError`` if it is gone.
        """
        entry = self._entries.get(record.serial)
        if entry is None or not thread:
            return False
        fd = namespaces.open_namespace(thread, "user")
        try:
            counts = namespaces.namespace_key(fd) in entry.network_owners
        finally:
            os.close(fd)
        return counts and capabilities.has(thread, capabilities.CAP_NET_ADMIN)

    def open_network(self, record: ContainerRecord) -> int | None:
        """Open a container's network namespace; None if it is not its own (`owns_network`)."""
        with self._lock:
            entry = self._entries.get(record.serial)
            if entry is None or not self.owns_network(record):
                return None
            return os.dup(entry.network_fd)

    def elsewhere(self, record: ContainerRecord, node: Sysctl, thread: int) -> bytes | None:
        """Return what a thread reads in a namespace that is not the container's; else None.

        What the container wrote is not that one's: a network namespace begins with the defaults,
        and a UTS namespace has names of its own. Raises ``OSError`` if the thread is gone.
        """
        entry = self._entries.get(record.serial)
        live = node.default if isinstance(node.default, Live) else None
        if entry is None or not thread or not (live or node.scope is Scope.NETWORK):
            return None  # thread 0 is not in our pid namespace
        fd = namespaces.open_namespace(thread, "net" if live is None else live.value)
        try:
            own = namespaces.namespace_key(
                entry.uts_fd if live is Live.HOSTNAME else entry.network_fd
            )
            if namespaces.namespace_key(fd) == own:
                return None
            if live is not None:
                return _read_live(entry, node, fd)
            return self._default(record, entry, node)
        finally:
            os.close(fd)

    def read(self, record: ContainerRecord, node: Sysctl) -> bytes:
        """Return what the container reads; raises ``OSError``."""
        with self._lock:
            entry = self._entries.get(record.serial)
            written = None if entry is None else _values_of(entry, node).get(node.path)
            if written is not None:
                return node.kind.text(written)
            return self._default(record, entry, node)

    def source(self, record: ContainerRecord, node: Sysctl) -> str:
        """Say where that comes from."""
        entry = self._entries.get(record.serial)
        if isinstance(node.default, Live):
            return f"the container's {_KINDS[node.default]} namespace"
        if entry is not None and node.path in _values_of(entry, node):
            hosts = self._read_hosts(node).decode("utf-8", "replace").strip()
            return f"written by the container (kept per {node.scope.value}; the host has {hosts})"
        if isinstance(node.default, Made):
            return "made of the host's and the container's id"
        return f"the host's {self._hosts(node)}" if node.default is None else "constant"

    def write(self, record: ContainerRecord, node: Sysctl, data: bytes, offset: int) -> int:
        """Write as the kernel would and return how many bytes it took; raises ``OSError``."""
        with self._lock:
            entry = self._entries.get(record.serial)
            if entry is None or not node.writable:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            if not self._policy.allows(node.path):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            if isinstance(node.default, Live):
                return self._write_live(entry, node, data, offset)
            values = _values_of(entry, node)
            former = values.get(node.path)
            if former is None:
                former = node.kind.parse(self._default(record, entry, node))
            done = writing.write(node, former, data, offset)
            changed = dict(values)
            if done.value != former or not done.error:
                changed[node.path] = done.value
            changed |= {
                each: (0,) for each in writing.resets(node, former, done) if each in self._nodes
            }
            if changed != values:
                self._save_as(entry, node, changed)
                # Of a network namespace it is all of theirs, and lasts as long as any of them.
                for each in self._sharing(entry) if node.scope is Scope.NETWORK else [entry]:
                    self._policy.written(each.record, node.path, done.value)
            if done.error:
                raise OSError(done.error, os.strerror(done.error))
            return done.consumed

    def _write_live(self, entry: _Entry, node: Sysctl, data: bytes, offset: int) -> int:
        if node.default not in entry.owns:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if node.default is Live.HOSTNAME:
            return inside.write(entry.uts_fd, f"/{node.path}", data, offset)
        former = node.kind.parse(_read_live(entry, node, entry.network_fd))
        done = writing.write(node, former, data, offset)
        if offset:
            return done.consumed  # ignored
        assert not isinstance(done.value, str)
        groups = None if done.error else outwards(entry.groups, *done.value)
        if groups is None:
            error = done.error or errno.EINVAL
            raise OSError(error, os.strerror(error))
        inside.write(entry.network_fd, f"/{node.path}", b"%d %d\n" % groups, 0)
        return done.consumed

    def _default(self, record: ContainerRecord, entry: _Entry | None, node: Sysctl) -> bytes:
        if isinstance(node.default, Live):
            if entry is None:
                return self._read_hosts(node)
            fd = entry.uts_fd if node.default is Live.HOSTNAME else entry.network_fd
            return _read_live(entry, node, fd)
        if isinstance(node.default, Made):
            return _product_uuid(self._read_hosts(node), record.id)
        if node.default is None:
            return self._read_hosts(node)
        return node.kind.text(node.default)

    def _hosts(self, node: Sysctl) -> str:
        return os.path.join(self._root, node.path)

    def _read_hosts(self, node: Sysctl) -> bytes:
        fd = os.open(self._hosts(node), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return read_fd(fd, formats.LIMIT)
        finally:
            os.close(fd)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.warning("a container's file stays behind", file=name, error=str(error))

    def _of_same_init(self, entry: _Entry) -> list[_Entry]:
        """All records of one init, which are one container; itself, once it is there."""
        return [each for each in self._entries.values() if each.name == entry.name]

    def _sharing(self, entry: _Entry) -> list[_Entry]:
        """All whose network values are the same; itself, once it is there."""
        return [
            each
            for each in self._entries.values()
            if each.network_key == entry.network_key and (entry.shares or each.name == entry.name)
        ]

    def _save_as(self, entry: _Entry, node: Sysctl, values: dict[str, Value]) -> None:
        """Put values in the files of all whose values they are, then in force."""
        if node.scope is Scope.CONTAINER:
            self._save(entry, Kept(values, entry.network, entry.network_key))
            for each in self._of_same_init(entry):
                each.container = values
            return
        sharing = self._sharing(entry)
        for each in sharing:
            self._save(each, Kept(each.container, values, each.network_key))
        for each in sharing:
            each.network = values

    def _save(self, entry: _Entry, kept: Kept) -> None:
        data = formats.encode(kept, self._boot)
        state.replace_file(entry.name, data, dir_fd=self._directory)

    def _load(self, name: str) -> Kept:
        try:
            fd = os.open(
                name,
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                dir_fd=self._directory,
            )
            try:
                return formats.decode(read_fd(fd, formats.LIMIT), self._boot, self._nodes)
            finally:
                os.close(fd)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            suppressed = self._limit.passes(("sysctls", str(error)))
            if suppressed is not None:
                _log.warning(
                    "what a container wrote to sysctls is lost",
                    file=name,
                    error=str(error),
                    suppressed=suppressed,
                )
        return Kept({}, {}, None)

    @staticmethod
    def _close_descriptors(entry: _Entry) -> None:
        os.close(entry.network_fd)
        os.close(entry.uts_fd)


def _read_live(entry: _Entry, node: Sysctl, namespace: int) -> bytes:
    text = inside.read(namespace, f"/{node.path}")
    if node.default is not Live.PING_GROUPS:
        return text
    overflow = int(read_text("/proc/sys/kernel/overflowgid"))
    numbers = node.kind.parse(text)
    assert not isinstance(numbers, str)
    return node.kind.text(tuple(inwards(entry.groups, each, overflow) for each in numbers))


def _values_of(entry: _Entry, node: Sysctl) -> dict[str, Value]:
    return entry.container if node.scope is Scope.CONTAINER else entry.network


def _owners(namespace: int) -> list[namespaces.UsernsKey]:
    """The user namespace that a namespace belongs to, and those around it."""
    owner = namespaces.owning_user_namespace(namespace)
    try:
        return namespaces.user_namespace_lineage(owner)
    finally:
        os.close(owner)


def _product_uuid(hosts: bytes, container: str) -> bytes:
    """The host's, with the container's id for its last part: stable, and nobody else's.

    Of an id that is no number, which engines do not give, a hash.
    """
    host = hosts.decode("ascii", "replace").strip()
    if len(host) != len(_NO_UUID):
        host = _NO_UUID
    own = container[:12].lower()
    if not re.fullmatch(r"[0-9a-f]{12}", own):
        own = hashlib.sha256(container.encode()).hexdigest()[:12]
    return f"{host[:24]}{own}\n".encode()
