"""The daemon's end of the FUSE connection to the kernel.

We open ``/dev/fuse`` and mount ourselves, and give pyfuse3 one end of a socket pair; a relay copies
packets between the two. That is what makes the inode known to READ, counts and bounds requests, and
keeps the kernel's descriptor in our hands. ``packets`` is pure; ``relay`` and ``device`` do I/O.
"""
