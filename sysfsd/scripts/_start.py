"""Start a program of ours: ``python -I -S _start.py hook|runc|holder|cli ARGUMENTS``.

``-I -S`` keeps the environment, the user's directory and every .pth file out of a program that runs
as root on each container start, and saves 6 ms of it. The price: nothing but the standard library
is importable, so this file puts the directory that holds the package on the path itself.
"""

import sys

# <directory>/sysfsd/scripts/_start.py, without os.path: it is imported, but the names read worse.
sys.path.append(__file__.rsplit("/", 3)[0])

if sys.argv[1] == "hook":
    from sysfsd.hook import main
elif sys.argv[1] == "runc":
    from sysfsd.runtime.main import main
elif sys.argv[1] == "holder":
    from sysfsd.handover.holder import main
else:
    from sysfsd.cli import main

status = main(sys.argv[2:])
if sys.argv[1] == "hook":
    # Nothing is left to be written, and taking the interpreter apart takes 2 ms.
    import os

    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
