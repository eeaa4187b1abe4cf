#!/bin/sh
# Run the tests, on a machine that needs no more than a shell, apt and python3:
#
#   sudo sh tests/run.sh [LEVEL] [PYTEST ARGUMENTS…]
#
#   all         everything (the default)
#   fast        what needs no engine: lint, pure, filesystem, runtime
#   lint        ruff, mypy and shellcheck
#   pure        plain functions; no privilege
#   filesystem  a real FUSE mount, no containers
#   runtime     real runc and crun, no engine
#   engine      real Docker engines, outer and inner, and Podman
#   programs    free, top, lscpu, a JVM … in containers, with sysfsd, with lxcfs, with nothing
#   vm          in a virtual machine: systemd, Docker and cgroup v2 alone
#   bench       no tests, and not part of all: how fast it is, beside lxcfs and the kernel
#               [--only reads,scale,starts] [--seconds N] [--out DIRECTORY]
#
# Missing Debian packages are installed, Python packages go to .venv in the checkout, images are
# cached in /var/cache/sysfsd-tests (SYSFSD_TEST_CACHE). An engine that runs here is left alone.
set -eu

root=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
# shellcheck source=tests/setup.sh
. "$root/tests/setup.sh"

level=all
case ${1-} in
all | fast | lint | pure | filesystem | runtime | engine | programs | vm | bench)
	level=$1
	shift
	;;
-h | --help)
	sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
	exit
	;;
esac
case $level in
all) parts='lint pure filesystem runtime engine programs vm' ;;
fast) parts='lint pure filesystem runtime' ;;
*) parts=$level ;;
esac

wants() {
	case " $parts " in *" $1 "*) ;; *) return 1 ;; esac
}

lint() {
	cd "$root" &&
		"$venv/bin/ruff" check . &&
		"$venv/bin/ruff" format --check . &&
		"$venv/bin/mypy" &&
		find tests examples sysfsd/scripts .ci -type f \( -name '*.sh' -o -path '.ci/run' -o \
			-path 'sysfsd/scripts/sysfsd-*' \) -exec shellcheck --external-sources {} +
}

require_root
packages=base
! wants lint || packages="$packages lint"
! wants runtime || packages="$packages runtime"
! wants engine || packages="$packages runtime engine podman"
! wants programs || packages="$packages runtime engine"
! wants vm || packages="$packages engine vm"
! wants bench || packages="$packages runtime engine"
# shellcheck disable=SC2086 # one word per level
install_packages $packages
make_environment
! wants lint || step "Lint: ruff, mypy --strict, shellcheck" run_apart lint
{ ! wants engine && ! wants vm && ! wants bench; } || make_images
{ ! wants programs && ! wants vm && ! wants bench; } || make_program_image
! wants vm || { make_machine && step "Wheel of sysfsd for the virtual machine" run_apart make_wheel; }

folders=
for part in pure filesystem runtime engine programs; do
	! wants "$part" || [ ! -d "$root/tests/$part" ] || folders="$folders tests/$part"
done
rm -f "$setup_log"
cd "$root"
status=0
# shellcheck disable=SC2086 # one word per folder
[ -z "$folders" ] || "$venv/bin/python" -m pytest $folders "$@" || status=$?
! wants bench || "$venv/bin/python" -m tests.bench "$@" || status=$?
! wants vm || SYSFSD_VM_WHEELS=$venv/wheels sh tests/vm/run.sh "$@" || status=$?
[ "$status" = 0 ] || exit "$status"
