"""The policy ``pin``: a container runs on as many CPUs as it sees.

What asks sched_getaffinity(2) (``nproc``, Go's runtime, the C++ and Java ones) learns the size of
the cpuset, which no file system can change. So the daemon narrows it to as many CPUs as the quota
rounds up to.

``choice`` decides, ``remembered`` is the file that says which values are ours, ``pinner`` carries
it out; reading and writing a cpuset is ``kernel/cpusets``.
"""
