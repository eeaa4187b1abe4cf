"""Tests that run inside the virtual machine of ``run.sh``: systemd, and cgroup v2 alone."""
