"""The FUSE file system: which inodes there are, what bytes they have, what a request is answered.

``tree`` is pure; ``rendering`` makes bytes of views and falls back to the kernel's; ``snapshots``
keeps them for as long as one refresh lasts. ``operations`` is where errors become an errno;
``pinned`` (``sysfsd serve``) and ``callers`` (``sysfsd mount``) are the two flavours of it.
"""
