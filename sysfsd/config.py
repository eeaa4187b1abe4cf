"""``/etc/sysfsd/sysfsd.toml``: what an administrator can change.

``sysfsd-runc`` reads it on the path of every container start: nothing is imported until there is
something to parse.
"""

from __future__ import annotations

import os

from sysfsd.control.address import DEFAULT_SOCKET
from sysfsd.errors import UsageError
from sysfsd.policy import ANNOTATIONS, DEFAULT, SETTINGS, Policy, problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_PATH = "/etc/sysfsd/sysfsd.toml"

_LIMIT = 1 << 20


class Config:
    """The values in use. ``source`` is the file they come from, None without one."""

    __slots__ = (
        "annotations",
        "control",
        "cpu_budget",
        "cpu_policy",
        "freshness_ms",
        "limits_freshness_ms",
        "memory_high",
        "mountpoint",
        "on_failure",
        "runtime",
        "source",
        "state_dir",
        "subid_user",
        "sysctls",
    )

    def __init__(self, source: str | None = None) -> None:
        self.source = source
        self.mountpoint = "/var/lib/sysfsd"
        self.control = DEFAULT_SOCKET
        self.state_dir = "/run/sysfsd"
        self.subid_user = "sysfsd"
        """Whose ranges in /etc/subuid and /etc/subgid containers get."""
        self.runtime = "runc"
        """The real OCI runtime: ``runc``, ``crun``, or an absolute path."""
        self.on_failure = "refuse"
        """What the hook does when it cannot give a container its views: ``refuse`` the container,
        or ``continue`` with the kernel's own files."""
        self.annotations = ANNOTATIONS[0]
        """What containers' annotations may decide, see ``policy``."""
        self.cpu_policy = DEFAULT.cpu
        self.memory_high = DEFAULT.memory_high
        self.freshness_ms = 50
        """How old numbers that move may be in pinned files."""
        self.limits_freshness_ms = 1000
        """The same for what changes with limits only, unless the kernel says that they changed."""
        self.cpu_budget = 0.5
        """The share of one CPU that the daemon takes at most, as far as older numbers help."""
        self.sysctls: dict[str, str] = {}
        """What holds for emulated sysctls, by their paths: ``max`` or ``forbid``; see
        ``sysctls.policy``."""

    def policy(self) -> Policy:
        """What holds for a container that nobody decides otherwise about."""
        return Policy(self.cpu_policy, self.memory_high)


_KEYS = {
    "mountpoint": "mountpoint",
    "control": "control",
    "state-dir": "state_dir",
    "subid-user": "subid_user",
    "runtime": "runtime",
    "on-failure": "on_failure",
    "annotations": "annotations",
    "cpu-policy": "cpu_policy",
    "memory-high": "memory_high",
}

_NUMBERS = {
    "freshness-ms": ("freshness_ms", 1, 1000),
    "limits-freshness-ms": ("limits_freshness_ms", 1, 60_000),
    "cpu-budget": ("cpu_budget", 0.01, 64),
}
"""Keys whose values are numbers, and from where to where."""


def load(path: str | None = None, *, sysctls: bool = True) -> Config:
    """Read the configuration; without a path the default one, which need not exist.

    Without ``sysctls`` what it says of those is not looked at: it is the daemon's business, and a
    mistake in it must not keep the runtime from stopping containers.

    Raises ``UsageError`` that names the file and the key.
    """
    source = path or DEFAULT_PATH
    try:
        with open(source, "rb") as file:
            data = file.read(_LIMIT)
    except FileNotFoundError:
        if path is None:
            return Config()
        raise UsageError(f"{source}: no such configuration file") from None
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from None

    try:
        text = data.decode()
        document = None if sysctls else read_plain(text)
        if document is None:
            import tomllib  # noqa: PLC0415 - see above

            document = tomllib.loads(text)
    except ValueError as error:  # of the encoding, or of the grammar
        raise UsageError(f"{source} is not valid TOML: {error}") from None
    if not sysctls:
        document.pop("sysctls", None)
    return from_document(document, source)


def read_plain(text: str) -> dict[str, object] | None:
    """Read what comes before ``[sysctls]``, if it is comments, ``key = "text"`` and numbers alone.

    Hardly any file has more to it, and to import tomllib takes as long as all the rest that
    ``sysfsd-runc`` does before it hands on. None for a file with anything else, which is tomllib's.
    """
    document: dict[str, object] = {}
    for line in text.split("\n"):
        if line == "[sysctls]":
            break
        if not line.isprintable():
            return None
        if not line or line.startswith("#"):
            continue
        key, _, value = line.partition(" = ")
        if not key.replace("-", "").isalpha() or not key.isascii() or key in document:
            return None
        setting, quote, rest = value.removeprefix('"').partition('"')
        if value.startswith('"') and quote and not rest and "\\" not in setting:
            document[key] = setting
            continue
        found = _plain_number(value)
        if found is None:
            return None
        document[key] = found
    return document


def _plain_number(text: str) -> float | None:
    """A number as hardly anybody writes another: ``50``, ``0.5``; None for what is not one."""
    whole, point, fraction = text.partition(".")
    if not whole.isdecimal() or not text.isascii() or len(text) > 15:
        return None
    if whole.startswith("0") and len(whole) > 1:  # TOML has no 05
        return None
    if not point:
        return int(whole)
    return float(text) if fraction.isdecimal() else None


def from_document(document: Mapping[str, object], source: str) -> Config:
    """Check a parsed document; raises ``UsageError``."""
    config = Config(source)
    for key, value in document.items():
        if key == "sysctls":
            config.sysctls = _sysctls(value, source)
            continue
        if key in _NUMBERS:
            attribute, least, most = _NUMBERS[key]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least <= value <= most:  # type: ignore[operator]
                raise UsageError(f"{source}: {key} must be a number from {least} to {most}")
            setattr(config, attribute, value)
            continue
        attribute = _KEYS.get(key, "")
        if not attribute:
            keys = (*_KEYS, *_NUMBERS, "sysctls")
            suggestion = _suggestion(key, keys, "keys are: " + ", ".join(keys))
            raise UsageError(f"{source}: unknown key {key!r}; {suggestion}")
        if not isinstance(value, str) or not value:
            raise UsageError(f"{source}: {key} must be a text, such as {_example(key)}")
        setattr(config, attribute, value)
    for key in ("mountpoint", "control", "state-dir"):
        if not os.path.isabs(getattr(config, _KEYS[key])):
            raise UsageError(f"{source}: {key} must be an absolute path, such as {_example(key)}")
    if config.on_failure not in {"refuse", "continue"}:
        raise UsageError(f'{source}: on-failure must be "refuse" or "continue"')
    if config.annotations not in ANNOTATIONS:
        values = ", ".join(f'"{each}"' for each in ANNOTATIONS)
        raise UsageError(f"{source}: annotations must be one of {values}")
    for key in SETTINGS:
        wrong = problem(key, getattr(config, _KEYS[key]))
        if wrong is not None:
            raise UsageError(f"{source}: {key} {wrong}")
    if config.runtime not in {"runc", "crun"} and not os.path.isabs(config.runtime):
        raise UsageError(f'{source}: runtime must be "runc", "crun" or an absolute path')
    return config


def _sysctls(section: object, source: str) -> dict[str, str]:
    # Here, because hardly anybody has one, and each start of a container would pay.
    from sysfsd.sysctls.policy import canonical, flattened, problem  # noqa: PLC0415
    from sysfsd.sysctls.table import SYSCTLS  # noqa: PLC0415

    if not isinstance(section, dict):
        raise UsageError(f'{source}: sysctls must be a table: [sysctls], then "vm.name" = "max"')
    nodes = {canonical(node.path): node for node in SYSCTLS}
    found: dict[str, str] = {}
    for key, value in flattened(section):
        name = canonical(key)
        node = nodes.get(name)
        if node is None:
            suggestion = (
                "it is a key of the file: put it above [sysctls]"
                if name in _KEYS or name in _NUMBERS
                else _suggestion(name, nodes, "`sysfsd doctor` lists those")
            )
            raise UsageError(f"{source}: {key!r} is no sysctl that sysfsd emulates; {suggestion}")
        wrong = problem(node, value)
        if wrong is not None:
            raise UsageError(f"{source}: {key} {wrong}")
        if node.path in found:
            raise UsageError(f"{source}: {key} is there twice, under two names; remove one")
        found[node.path] = str(value)
    return found


def _suggestion(key: str, keys: Iterable[str], otherwise: str) -> str:
    import difflib  # noqa: PLC0415

    close = difflib.get_close_matches(key, keys, 1)
    return f"did you mean {close[0]!r}?" if close else otherwise


def _example(key: str) -> str:
    return repr(getattr(Config(), _KEYS[key]))
