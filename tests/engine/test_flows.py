"""The two ways people use Docker-in-Docker, as the examples have them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.conftest import SUITES

if TYPE_CHECKING:
    from tests.engine.throwaway import Throwaway

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("script", ["flow-a-network-tls.sh", "flow-b-sandbox.sh"])
def test_flow(own: Throwaway, script: str, suite: str) -> None:
    done = subprocess.run(
        ["sh", str(EXAMPLES / script)],
        env=own.environment() | {"DIND": f"sysfsd-dind:{suite}"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nhello from a container in a container" in done.stdout
    # Nothing of it is left.
    assert own.docker("ps", "--all", "--quiet", "--filter", "name=flow-") == ""
    assert own.docker("volume", "ls", "--quiet", "--filter", "name=flow-") == ""
    assert own.docker("network", "ls", "--quiet", "--filter", "name=flow-") == ""
