"""The host's control groups, v1, v2 and both at once ("hybrid"), as typed reads.

A process names its place in each hierarchy in /proc/<pid>/cgroup (`CgroupPaths`); the hierarchies
themselves are found in /proc/self/mountinfo (`CgroupTree`); the two together give the `Cgroup` that
a controller accounts the process to. Reading happens relative to directory descriptors that are
opened one component at a time without following symlinks.

Sources: cgroups(7); the kernel's admin-guide/cgroup-v1 and admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from sysfsd.kernel.mounts import decode
from sysfsd.kernel.procfs import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sysfsd.kernel.openfiles import OpenFiles

UNIFIED = ""
"""The key of the cgroup v2 hierarchy in `CgroupPaths`."""

MAX_DEPTH = 64
"""Deeper cgroups are refused: every level costs a descriptor while it is read."""

_UNLIMITED = 1 << 62
"""v1 prints "no limit" as the largest multiple of the page size: more than any machine has."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class CgroupPaths:
    """Where one process sits: a path per controller, and the v2 path under `UNIFIED`."""

    entries: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> CgroupPaths:
        """Parse /proc/<pid>/cgroup: lines of ``hierarchy:controller,controller:/path``."""
        entries: list[tuple[str, str]] = []
        # Not splitlines(): a container names its cgroups, with characters that it splits at, too.
        for line in text.split("\n"):
            fields = line.split(":", 2)
            if len(fields) == 3:
                entries.extend((name, fields[2]) for name in fields[1].split(","))
        return cls(tuple(entries))

    def get(self, controller: str) -> str | None:
        """Return the path in the hierarchy of a v1 controller, or of v2 for `UNIFIED`."""
        for name, path in self.entries:
            if name == controller:
                return path
        return None

    def as_dict(self) -> dict[str, str]:
        """Return the paths as a dictionary, for JSON."""
        return dict(self.entries)

    def contains(self, other: CgroupPaths) -> bool:
        """Whether these are somebody's own cgroups, and others are the same or below them.

        In every hierarchy, save where these name its root, which everybody is below: a v1 host
        leaves containers there in the hierarchies that their engine does not use.
        """
        own = [(name, path) for name, path in self.entries if path != "/"]
        return bool(own) and all(
            (there := other.get(name)) is not None and f"{there}/".startswith(f"{path}/")
            for name, path in own
        )

    @property
    def depth(self) -> int:
        """How far below the root of its hierarchy the deepest of these cgroups is."""
        return max((len(_names(path)) for _, path in self.entries), default=0)

    def without_init_scope(self) -> CgroupPaths:
        """Return the container's own cgroups where its init has moved into a leaf of its own.

        cgroup v2 lets a cgroup have processes or controllers below it, not both: systemd as init
        moves itself into ``init.scope`` below the cgroup it was started in, docker:dind into
        ``init``. The container is the cgroup above.
        """
        return CgroupPaths(
            tuple(
                (name, (path.removesuffix("/init.scope") or "/").removesuffix("/init") or path)
                for name, path in self.entries
            )
        )


def read_cgroup_paths(pid: int, proc: str = "/proc") -> CgroupPaths:
    """Read where a process (or thread) sits; raises OSError if it is gone."""
    return CgroupPaths.parse(read_text(f"{proc}/{pid}/cgroup"))


@dataclass(frozen=True, slots=True)
class Level:
    """One open directory on the way from a cgroup up to its root; valid inside `Cgroup.levels`."""

    fd: int
    path: str
    """The path below the mount: ``/docker/abc``, ``/`` for the root."""

    @property
    def is_root(self) -> bool:
        """Whether this is the root of its hierarchy, which stands for the whole machine."""
        return self.path == "/"

    @property
    def inode(self) -> int:
        """Its number, which is never another cgroup's on a 64-bit machine (kernfs ids)."""
        return os.fstat(self.fd).st_ino

    def read(self, name: str) -> str | None:
        """Return the text of one file of this cgroup; None if it has no such file."""
        try:
            return self._text(name)
        except OSError as error:
            # EOPNOTSUPP: the file exists, but not for this kind of cgroup (a threaded one, say).
            if error.errno == errno.EOPNOTSUPP:
                return None
            raise

    def _text(self, name: str) -> str | None:
        try:
            return read_text(name, dir_fd=self.fd)
        except FileNotFoundError:
            return None

    def read_int(self, name: str) -> int | None:
        """Return a file that holds one number; None if there is no such file."""
        text = self.read(name)
        return None if text is None else int(text)


@dataclass(frozen=True, slots=True)
class _KeptLevel(Level):
    """One whose files stay open. It has no descriptor of its own."""

    mountpoint: str
    files: OpenFiles

    @property
    def inode(self) -> int:
        """Its number."""
        return os.stat(self.mountpoint + self.path).st_ino

    def _text(self, name: str) -> str | None:
        data = self.files.read(self.mountpoint, self.path, name)
        return None if data is None else data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One cgroup of one hierarchy. Holds no descriptors: a cgroup may vanish at any time."""

    version: int
    mountpoint: str
    path: str
    files: OpenFiles | None = field(default=None, compare=False, repr=False)
    """Where its files stay open from one read to the next, if anywhere."""

    @property
    def is_root(self) -> bool:
        """Whether this is the root cgroup, which stands for the whole machine."""
        return self.path == "/"

    @contextmanager
    def levels(self) -> Iterator[tuple[Level, ...]]:
        """Open this cgroup and its ancestors: itself first, the root of the mount last.

        Raises FileNotFoundError if the cgroup is gone, NotADirectoryError or ELOOP if a component
        is not a plain directory, and EXDEV if the path leads out of the tree; where files stay
        open, only when one is read.
        """
        names = _components(self.path)
        if self.files is not None:
            paths = ["/", *accumulate(f"/{name}" for name in names)]
            yield tuple(
                _KeptLevel(-1, path, self.mountpoint, self.files) for path in reversed(paths)
            )
            return
        with ExitStack() as stack:
            fd = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            levels = [Level(fd, "/")]
            path = ""
            for name in names:
                fd = os.open(name, _DIRECTORY, dir_fd=fd)
                stack.callback(os.close, fd)
                path = f"{path}/{name}"
                levels.append(Level(fd, path))
            yield tuple(reversed(levels))

    def read(self, name: str) -> str | None:
        """Return the text of one file of this cgroup; None if it has no such file."""
        with self.levels() as levels:
            return levels[0].read(name)

    def source(self, name: str, path: str | None = None) -> str:
        """Say where a file is, for people: its full path, of this cgroup or of an ancestor."""
        path = self.path if path is None else path
        return f"{self.mountpoint}{path.rstrip('/')}/{name}"

    def subtree(self, limit: int) -> Iterator[Level]:
        """Walk this cgroup and its descendants, any depth, at most `limit` of them.

        Each level is valid until the next one is asked for. Cgroups that vanish meanwhile are
        left out. Raises as `levels` does if the first one is gone.
        """
        with replace(self, files=None).levels() as levels:
            yield from _walk(levels[0].fd, self.path, [limit], 0)


class Limit(NamedTuple):
    """A limit that holds for a cgroup, and whose it is."""

    value: int
    name: str
    """The file it was read from."""
    path: str
    """The cgroup that has it: this one or an ancestor."""


def parse_limit(text: str | None) -> int | None:
    """Parse a limit; None if there is none: ``max`` (v2), ``-1`` or the largest number (v1)."""
    if text is None or text.strip() == "max":
        return None
    value = int(text)
    return None if value < 0 or value >= _UNLIMITED else value


def smallest_limit(levels: Iterable[Level], name: str) -> Limit | None:
    """Return the smallest limit of a cgroup and its ancestors; the nearest one wins a tie.

    None if none of them is limited: in both versions a child's limit cannot lift its parent's.
    """
    best: Limit | None = None
    for level in levels:
        value = parse_limit(level.read(name))
        if value is not None and (best is None or value < best.value):
            best = Limit(value, name, level.path)
    return best


def parse_flat_keyed(text: str | None) -> Mapping[str, int]:
    """Parse lines of ``key number`` (memory.stat, cpu.stat, cpuacct.stat)."""
    values: dict[str, int] = {}
    for line in (text or "").splitlines():
        key, _, number = line.partition(" ")
        if number.isdecimal():
            values[key] = int(number)
    return values


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup filesystem."""

    version: int
    mountpoint: str
    root: str
    """The cgroup that is mounted there: ``/`` unless somebody mounted a part."""
    controllers: frozenset[str]
    """v1: the controllers it was mounted with. Empty for v2, which says so in each cgroup."""
    nsdelegate: bool = False
    """v2: whether cgroup namespaces are boundaries (cgroup-v2.rst, "Model of Delegation")."""

    def cgroup(self, path: str, files: OpenFiles | None = None) -> Cgroup | None:
        """Return the cgroup at a path of /proc/<pid>/cgroup; None if it is not under this mount.

        Raises OSError (EXDEV) for a path that leads upwards: such a process sits outside of the
        cgroup namespace that we look from, and what is mounted here says nothing about it.
        """
        _components(path)
        if self.root == "/":
            return Cgroup(self.version, self.mountpoint, path, files)
        if path == self.root or path.startswith(f"{self.root}/"):
            return Cgroup(self.version, self.mountpoint, path[len(self.root) :] or "/", files)
        return None


class CgroupTree:
    """The cgroup hierarchies of this host."""

    def __init__(self, hierarchies: Iterable[Hierarchy], files: OpenFiles | None = None) -> None:
        """Make one; in `files` stays open what is read of its cgroups."""
        self._hierarchies = tuple(hierarchies)
        self._files = files
        self._v1: dict[str, Hierarchy] = {}
        self._v2: Hierarchy | None = None
        for hierarchy in self._hierarchies:
            if hierarchy.version == 2:
                self._v2 = self._v2 or hierarchy
            for name in hierarchy.controllers:
                self._v1.setdefault(name, hierarchy)

    @classmethod
    def from_mountinfo(cls, text: str, base: str = "") -> CgroupTree:
        """Find the hierarchies in the text of a mountinfo file; `base` goes before every path."""
        return cls(_parse_hierarchies(text, base))

    @classmethod
    def of_host(cls, proc: str = "/proc") -> CgroupTree:
        """Find the hierarchies that are mounted where we run; raises OSError without procfs."""
        return cls.from_mountinfo(read_text(f"{proc}/self/mountinfo"))

    def keeping(self, files: OpenFiles) -> CgroupTree:
        """Return the same tree, with files that stay open."""
        return CgroupTree(self._hierarchies, files)

    @property
    def nsdelegate(self) -> bool:
        """Whether v2 keeps who is in a cgroup namespace from writing most files of its root."""
        return self._v2 is not None and self._v2.nsdelegate

    def controller(self, paths: CgroupPaths, name: str) -> Cgroup | None:
        """Return the cgroup that a controller accounts these paths to; None if nobody does.

        A controller lives in one hierarchy at a time, and /proc/<pid>/cgroup names it in the line
        of a v1 hierarchy exactly when it is bound to that one. Otherwise it is v2's, where it
        counts in the nearest ancestor for which it is enabled. Looked up at each request: systemd
        enables controllers while containers run.
        """
        path = paths.get(name)
        hierarchy = self._v1.get(name)
        if path is not None and hierarchy is not None:
            return hierarchy.cgroup(path, self._files)
        cgroup = self.unified(paths)
        if cgroup is None:
            return None
        with cgroup.levels() as levels:
            for level in levels:
                if name in (level.read("cgroup.controllers") or "").split():
                    return replace(cgroup, path=level.path)
        return None

    def unified(self, paths: CgroupPaths) -> Cgroup | None:
        """Return the v2 cgroup of these paths, whatever controllers it has; None without v2."""
        path = paths.get(UNIFIED)
        return None if path is None or self._v2 is None else self._v2.cgroup(path, self._files)

    def membership(self, paths: CgroupPaths) -> Cgroup | None:
        """Return the cgroup that best tells which tasks belong together: the deepest one.

        A v1 host may leave a container in the root of the hierarchies that its engine does not
        use, so that those say nothing.
        """
        best: Cgroup | None = None
        for name, path in paths.entries:
            hierarchy = self._v2 if name == UNIFIED else self._v1.get(name)
            cgroup = None if hierarchy is None else hierarchy.cgroup(path)
            if cgroup is not None and (
                best is None or len(_components(cgroup.path)) > len(_components(best.path))
            ):
                best = cgroup
        return best


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _components(path: str) -> list[str]:
    names = _names(path)
    if ".." in names or "." in names or not path.startswith("/"):
        raise OSError(errno.EXDEV, "a cgroup outside of the tree we see", path)
    if len(names) > MAX_DEPTH:
        raise OSError(errno.ENAMETOOLONG, "a cgroup too deep to look at", path)
    return names


def _walk(fd: int, path: str, budget: list[int], depth: int) -> Iterator[Level]:
    if budget[0] <= 0 or depth > MAX_DEPTH:
        return
    budget[0] -= 1
    yield Level(fd, path)
    try:
        with os.scandir(fd) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for name in names:
        try:
            child = os.open(name, _DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            continue
        try:
            yield from _walk(child, f"{path.rstrip('/')}/{name}", budget, depth + 1)
        finally:
            os.close(child)


def _parse_hierarchies(text: str, base: str) -> Iterator[Hierarchy]:
    for line in text.split("\n"):
        before, _, after = line.partition(" - ")
        fields, options = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(options) < 3 or options[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if options[0] == "cgroup2" else 1
        yield Hierarchy(
            version=version,
            mountpoint=base + decode(fields[4]),
            root=decode(fields[3]),
            # The super options of a v1 mount name its controllers among ordinary options such as
            # "rw" and "release_agent=..."; those that are no controller are never asked for.
            controllers=frozenset(options[2].split(",") if version == 1 else ()),
            nsdelegate=version == 2 and "nsdelegate" in options[2].split(","),
        )
