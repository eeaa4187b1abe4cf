"""Names of sysctls, as sysctl(8) has them."""

from __future__ import annotations

import pytest

from sysfsd.sysctls.names import sysctl_path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vm.swappiness", "vm/swappiness"),
        ("vm/swappiness", "vm/swappiness"),
        ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("swappiness", "swappiness"),
        ("", ""),
    ],
)
def test_the_first_separator_counts(name: str, path: str) -> None:
    assert sysctl_path(name) == path
