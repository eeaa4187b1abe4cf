"""Sysctls (and a few writable files of sysfs) that the kernel keeps from a container's root.

What a container writes is the container's: it reads it back as from the kernel, and nothing else
comes of it, unless the administrator says otherwise.
"""
