"""Kernel facts: what the kernel knows about one container, before any file is written out.

Reading happens here, formatting in ``sysfsd.views``. Every number is `Sourced`: it carries the
file, the cgroup and the reason it has, for ``sysfsd show --explain``.
"""
