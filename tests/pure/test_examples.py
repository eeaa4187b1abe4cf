"""The files that people copy from ``examples``."""

from __future__ import annotations

import json
from pathlib import Path

from sysfsd.config import Config, load

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def test_the_configuration_shows_the_defaults_and_all_of_them() -> None:
    shown, defaults = load(str(EXAMPLES / "sysfsd.toml")), Config()
    names = set(Config.__slots__) - {"source"}
    assert {name: getattr(shown, name) for name in names} == {
        name: getattr(defaults, name) for name in names
    }
    text = (EXAMPLES / "sysfsd.toml").read_text()
    assert all(f"\n{name.replace('_', '-')} = " in text for name in names - {"sysctls"})
    assert "\n[sysctls]\n" in text


def test_the_documents_are_json() -> None:
    runtime = json.loads((EXAMPLES / "daemon.json").read_text())["runtimes"]["sysfsd"]
    assert runtime["path"].endswith("/sysfsd-runc")
    hook = json.loads((EXAMPLES / "hooks.d" / "sysfsd.json").read_text())
    assert hook["hook"]["path"].endswith("/sysfsd-hook")
    assert hook["stages"] == ["createRuntime"]


def test_the_cdi_file_runs_the_hook_and_does_nothing_else() -> None:
    """Container Device Interface: Docker 25 and newer, Podman, containerd, CRI-O."""
    document = json.loads((EXAMPLES / "cdi" / "sysfsd.json").read_text())
    assert document["kind"] == "sysfsd.dev/views"
    (device,) = document["devices"]
    assert device["name"] == "all"
    (hook,) = device["containerEdits"].pop("hooks")
    assert device["containerEdits"] == {}
    podmans = json.loads((EXAMPLES / "hooks.d" / "sysfsd.json").read_text())
    assert hook.pop("hookName") == podmans["stages"][0]
    assert hook == podmans["hook"]
