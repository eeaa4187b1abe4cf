"""What programs that nobody here wrote print in a limited container.

`catalogue` names the programs, the numbers they print and what each number is; `rules` says when
such a number is right in a container with given limits; `measure` runs them. The three know nothing
of engines: they take a function that runs a shell script in the container, and so work in any. The
image (``tests/images/programs.sh``) must be the container's.

`ways` gives a container its files in one of three ways (sysfsd, Debian's lxcfs, nothing), `bench`
has an engine and the containers, and ``python -m tests.programs.table`` prints the table of the
documentation. `lxcfs_rules` is the comparison with lxcfs file by file.
"""
