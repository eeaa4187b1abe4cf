"""What is decided about one container, rather than read from its cgroup.

``cpu-policy``: how many CPUs it sees.

- ``quota``: those of its cpuset, and no more than its quota rounded up (the default);
- ``cpuset``: those of its cpuset, whatever its quota;
- ``off``: all that are online on the host;
- ``pin``: as ``quota``, and its cpuset is narrowed to as many CPUs, so that what no file system
  reaches (sched_getaffinity(2): ``nproc``, Go) agrees.

``memory-high``: whether cgroup v2's memory.high, above which the kernel throttles and reclaims, is
a limit that the container sees (``limit``, the default) or not (``ignore``: only memory.max is).

Who decides, the first that does: an annotation of the container (``dev.sysfsd.cpu-policy``), a flag
(``--cpu-policy``), the configuration. Never its environment, which is the image's to set. None of
this gives a container anything: it sees more or less, and with ``pin`` it runs on fewer CPUs. But
pinning writes to the host's cgroups, and Podman hands the annotations of an *image* on to its
containers: only an administrator who says so (``annotations = "all"``) lets them ask for that.

On the path of every container start: no imports.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

CPU_QUOTA = "quota"
CPU_CPUSET = "cpuset"
CPU_OFF = "off"
CPU_PIN = "pin"

HIGH_LIMIT = "limit"
HIGH_IGNORE = "ignore"

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "cpu-policy": (CPU_QUOTA, CPU_CPUSET, CPU_OFF, CPU_PIN),
    "memory-high": (HIGH_LIMIT, HIGH_IGNORE),
}
"""What can be set, under the names it has everywhere, and its values; the default first."""

ANNOTATIONS = ("no-pin", "all", "ignore")
"""What the administrator lets annotations decide; the default first."""

ANNOTATION_PREFIX = "dev.sysfsd."
"""Comes before a setting's name in an OCI annotation. Nobody else's begin with it."""


class Policy:
    """The settings of one container. A value: equal by content, never changed."""

    __slots__ = ("cpu", "memory_high")

    def __init__(self, cpu: str = CPU_QUOTA, memory_high: str = HIGH_LIMIT) -> None:
        self.cpu = cpu
        self.memory_high = memory_high

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.settings() == other.settings()

    def __hash__(self) -> int:
        return hash((self.cpu, self.memory_high))

    def __repr__(self) -> str:
        return f"Policy({self.cpu!r}, {self.memory_high!r})"

    def settings(self) -> dict[str, str]:
        """All settings by name."""
        return {"cpu-policy": self.cpu, "memory-high": self.memory_high}

    def with_settings(self, settings: Mapping[str, str]) -> Policy:
        """Return this policy with some settings changed; they must be valid (see `problem`)."""
        merged = self.settings() | dict(settings)
        return Policy(merged["cpu-policy"], merged["memory-high"])


DEFAULT = Policy()


def problem(name: str, value: object) -> str | None:
    """Say what is wrong with a setting's value, to go after its name; None if nothing is."""
    values = SETTINGS.get(name)
    if values is None:
        return f"is no setting; those are {_enumerate(SETTINGS, 'and')}"
    if isinstance(value, str) and value in values:
        return None
    shown = repr(value[:80]) if isinstance(value, str) else "that"
    return f"must be {_enumerate([repr(each) for each in values], 'or')}, not {shown}"


def from_annotations(annotations: Mapping[str, object]) -> dict[str, object]:
    """Pick the settings out of a container's annotations, by name; their values are unchecked."""
    return {
        key.removeprefix(ANNOTATION_PREFIX): value
        for key, value in annotations.items()
        if key.startswith(ANNOTATION_PREFIX)
    }


def annotation_problem(annotations: Mapping[str, object]) -> str | None:
    """Say what is wrong with the first of a container's annotations that is ours and wrong."""
    for name, value in from_annotations(annotations).items():
        wrong = problem(name, value)
        if wrong is not None:
            return f"the container's annotation {ANNOTATION_PREFIX}{name} {wrong}"
    return None


def decided(
    flags: Mapping[str, str], annotations: Mapping[str, str], allowed: str
) -> dict[str, str]:
    """Merge what flags and annotations set, as the administrator (`ANNOTATIONS`) allows it.

    Raises ``ValueError``, with what to do, for an annotation that asks for what it may not have.
    """
    if allowed == "ignore":
        return dict(flags)
    if allowed == "no-pin" and annotations.get("cpu-policy") == CPU_PIN:
        raise ValueError(
            f"the container's annotation {ANNOTATION_PREFIX}cpu-policy asks to pin, which only a "
            'flag or the configuration may here; set annotations = "all" there to let it'
        )
    return {**flags, **annotations}


def _enumerate(names: Mapping[str, object] | list[str], conjunction: str) -> str:
    *first, last = names
    return f"{', '.join(first)} {conjunction} {last}"
