"""Each container's own view of /proc and /sys.

This package module stays empty but for the version: ``sysfsd-hook`` and ``sysfsd-runc`` import it
on the path of every container start.
"""

__version__ = "0.1.0"
