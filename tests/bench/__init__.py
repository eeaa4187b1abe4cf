"""The benchmark: the kernel's own files, lxcfs, ``sysfsd mount`` and pinned views, side by side.

    sh tests/run.sh bench [--only reads,scale,starts] [--seconds N] [--out DIRECTORY]

A benchmark reports, it does not judge: nothing here fails because of a time.
"""
