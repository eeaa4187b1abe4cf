"""What the daemon does for each request; ``protocol`` names them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import trio

from sysfsd import __version__
from sysfsd.binds import plan_additions, plan_sysctls
from sysfsd.containers.record import check_id
from sysfsd.errors import InvalidRequest, NoSuchContainer, NoSuchView
from sysfsd.kernel.personality import PER_LINUX, PER_LINUX32
from sysfsd.policy import CPU_PIN, decided, problem
from sysfsd.views import Source, View, attach_points, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sysfsd.attach import BindSource
    from sysfsd.coherence import Coherence
    from sysfsd.containers.record import ContainerRecord
    from sysfsd.containers.registry import Registry
    from sysfsd.containers.reservations import Reservations
    from sysfsd.control.protocol import Message
    from sysfsd.control.server import Method
    from sysfsd.facts.collector import FactsCollector
    from sysfsd.filesystem.tree import Tree
    from sysfsd.pinning.pinner import Pinner
    from sysfsd.sysctls.node import Sysctl
    from sysfsd.sysctls.store import Store


class Methods:
    """The methods of the control protocol, bound to the parts of one daemon."""

    def __init__(
        self,
        *,
        registry: Registry,
        reservations: Reservations,
        coherence: Coherence,
        collector: FactsCollector,
        pinner: Pinner,
        sysctls: Store,
        annotations: str,
        tree: Tree,
        binds: Callable[[ContainerRecord], Mapping[str, BindSource]],
        exact: str,
        mountpoint: str,
        state_dir: str,
        stage: str,
        stats: Mapping[str, Callable[[], object]],
    ) -> None:
        self._registry = registry
        self._reservations = reservations
        self._coherence = coherence
        self._collector = collector
        self._pinner = pinner
        self._sysctls = sysctls
        self._annotations = annotations
        self._tree = tree
        self._points = attach_points(tree.views)
        self._binds = binds
        self._exact = exact
        self._hello = {
            "version": __version__,
            "pid": os.getpid(),
            "mountpoint": mountpoint,
            "state_dir": state_dir,
            "stage": stage,
        }
        self._stage = stage
        self._stats = stats

    def table(self) -> Mapping[str, Method]:
        """Every method by its name in the protocol."""
        return {
            "hello": self.hello,
            "reserve": self.reserve,
            "watch_root": self.watch_root,
            "register": self.register,
            "release": self.release,
            "list": self.list_containers,
            "show": self.show,
            "resolve": self.resolve,
            "stats": self.stats,
        }

    async def hello(self, _parameters: Message, _fds: Sequence[int]) -> Message:
        """Who we are."""
        return dict(self._hello)

    async def reserve(self, parameters: Message, fds: Sequence[int]) -> Message:
        """A range of ids for a container that is being created."""
        container = check_id(parameters.get("id"))
        chosen = self._reservations.reserve(container, _only(fds))
        return {
            "uid_base": chosen.uid_base,
            "gid_base": chosen.gid_base,
            "size": chosen.size,
            "stage": self._stage,
        }

    async def watch_root(self, parameters: Message, fds: Sequence[int]) -> Message:
        """Keep an engine's overlay and the container's in step; their roots come along."""
        container = check_id(parameters.get("id"))
        if len(fds) != 2:
            raise InvalidRequest("watch_root needs two descriptors: the engine's and our overlay")
        # What isn't reserved is never freed, either.
        if container not in self._reservations:
            raise InvalidRequest(f"watch_root comes after reserve: no range is {container}'s")
        self._coherence.watch(container, *fds)
        roots = self._coherence.roots_of(container)
        if roots is not None:
            self._reservations.note(container, roots._asdict())
        return {}

    async def register(self, parameters: Message, fds: Sequence[int]) -> Message:
        """A record, and with it the views."""
        container = check_id(parameters.get("id"))
        try:
            settings = decided(
                _settings(parameters.get("policy", {})),
                _settings(parameters.get("annotations", {})),
                self._annotations,
            )
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        record = self._registry.register(container, _only(fds), settings)
        self._reservations.bind(container, _only(fds))
        self._collector.track(record)
        # Whose root is the host's has the host's own.
        sysctls = () if record.userns is None else self._tree.sysctls
        if sysctls:
            self._sysctls.open(record, _only(fds))
        if settings or record.policy.cpu == CPU_PIN:
            # Before its first process counts its CPUs.
            await self._pinner.settle()
        own_network = self._sysctls.owns_network(record)
        covered = plan_sysctls(record, sysctls, self._exact, own_network=own_network)
        return {
            "directory": f"containers/{container}",
            "views": [*self._points, *covered],
            "binds": {**self._binds(record), **covered},
            "additions": plan_additions(sysctls),
            "warning": self._pinner.trouble(container),
        }

    async def release(self, parameters: Message, _fds: Sequence[int]) -> Message:
        """Drop a record."""
        self._registry.release(check_id(parameters.get("id")))
        return {}

    async def list_containers(self, _parameters: Message, _fds: Sequence[int]) -> Message:
        """All records."""
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return {"containers": [_describe(record, boot) for record in self._registry.records()]}

    async def show(self, parameters: Message, _fds: Sequence[int]) -> Message:
        """A view as that container sees it, or where each of its numbers comes from."""
        container, path = check_id(parameters.get("id")), parameters.get("path")
        if not isinstance(path, str):
            raise InvalidRequest("show needs a path")
        await trio.lowlevel.checkpoint()
        # Nobody else gets a turn from here on: whoever asks for the facts of a container that is
        # gone has them kept for ever.
        record = self._registry.find(container)
        if record is None:
            raise NoSuchContainer(f"no container {container!r} is registered; see: sysfsd ps")
        facts = self._collector.facts(record, domain=_domain(parameters.get("domain")))
        node = self._tree.file(path, self._tree.members_by(lambda: facts))
        if node.sysctl is not None and record.userns is None:
            raise NoSuchView(f"{container} has no user namespace: its sysctls are the kernel's own")
        view = self._sysctl_view(record, node.sysctl) if node.sysctl else node.view
        assert view is not None
        if parameters.get("explain"):
            return {"sources": [source._asdict() for source in view.explain(facts)]}
        return {"text": view.render(facts).decode("utf-8", "replace")}

    def _sysctl_view(self, record: ContainerRecord, node: Sysctl) -> View:
        text = self._sysctls.read(record, node).decode("utf-8", "replace").rstrip("\n")
        source = Source(node.path.rpartition("/")[2], text, self._sysctls.source(record, node))
        return View(node.path, lambda _facts: [source], one_line)

    async def resolve(self, parameters: Message, fds: Sequence[int]) -> Message:
        """Which container a process belongs to; with a path, what `show` says of that as well."""
        record = self._registry.resolve(_only(fds))
        if record is None or "path" not in parameters:
            return {"id": None if record is None else record.id}
        try:
            shown = await self.show({**parameters, "id": record.id}, ())
        except (NoSuchContainer, NoSuchView):
            shown = {}
        return {"id": record.id, **shown}

    async def stats(self, _parameters: Message, _fds: Sequence[int]) -> Message:
        """Counters."""
        return {name: count() for name, count in self._stats.items()}


def _domain(value: object) -> int | None:
    if value is None or (type(value) is int and value in {PER_LINUX, PER_LINUX32}):
        return value
    raise InvalidRequest(f"domain is an execution domain, {PER_LINUX} or {PER_LINUX32}")


def _only(fds: Sequence[int]) -> int:
    if len(fds) != 1:
        raise InvalidRequest(f"one pidfd must come along, not {len(fds)} descriptors")
    return fds[0]


def _settings(given: object) -> dict[str, str]:
    """Check the settings of a policy in a request."""
    if not isinstance(given, dict):
        raise InvalidRequest("a policy is an object with settings and their values")
    for name, value in given.items():
        wrong = problem(name, value)
        if wrong is not None:
            raise InvalidRequest(f"{name} {wrong}")
    return given


def _describe(record: ContainerRecord, boot: float) -> Message:
    return {
        "id": record.id,
        "pid": record.pid,
        "userns": None if record.userns is None else list(record.userns),
        "uid_base": record.uid_base,
        "gid_base": record.gid_base,
        "started": boot + record.started,
        "cgroup": record.cgroup.as_dict(),
        "policy": record.policy.settings(),
    }
