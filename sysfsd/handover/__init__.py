"""What must not end with this process: connections to the kernel, and the socket that we listen at.

A FUSE mount lives as long as somebody has its ``/dev/fuse`` open; and as long as it does, callers
wait instead of failing. So these descriptors are also elsewhere: in systemd's store
(``FileDescriptorStoreMax=``), or with a small process of ours, the *holder*.
"""
