# Sourced by tests/run.sh and examples/demo.sh: makes a machine ready, one line a step.
# Needs a shell, apt and python3; everything else is installed here.
# shellcheck shell=sh
#
#   root            the checkout's directory; set it before sourcing
#   step TEXT CMD…  run a command quietly; its output is shown when it fails
#   install_packages LEVEL…
#   make_environment
#   make_images
#   make_machine
#   make_program_image

: "${root:?set root to the directory of the checkout}"
venv=$root/.venv
setup_log=$(mktemp)

fail() {
	printf '%s\n' "$*" >&2
	exit 1
}

# Name what is done, do it, say how long it took. In a condition "set -e" means nothing, not even in
# functions: those that are steps join their commands with &&.
step() {
	printf '==> %-58s ' "$1"
	shift
	began=$(date +%s)
	if "$@" >"$setup_log" 2>&1 </dev/null; then
		printf 'ok (%d s)\n' $(($(date +%s) - began))
	else
		status=$?
		printf 'FAILED\n\n'
		cat "$setup_log"
		printf '\nThis failed: %s\n' "$*"
		exit "$status"
	fi
}

require_root() {
	[ "$(id -u)" = 0 ] || fail "$0 mounts file systems and starts containers: run it as root (sudo sh $0)"
}

# --- Debian packages -----------------------------------------------------------------------------

# What each level needs. A word with a slash is COMMAND/PACKAGE: the package is left alone when
# something else (docker-ce, say) brought the command.
packages_of() {
	case $1 in
	base) echo python3-venv python3-dev gcc libc6-dev libfuse3-dev pkg-config procps util-linux ;;
	lint) echo shellcheck ;;
	runtime) echo runc/runc crun/crun busybox-static iproute2 ;;
	engine) echo dockerd/docker.io docker/docker.io iptables/iptables iproute2 mmdebstrap ;;
	podman) echo podman/podman ;;
	vm) echo qemu-system-x86_64/qemu-system-x86 mmdebstrap e2fsprogs ;;
	esac
}

# The packages of these levels that this machine lacks.
missing_packages() {
	for level in "$@"; do
		for wanted in $(packages_of "$level"); do
			case $wanted in
			*/*) PATH=$PATH:/usr/sbin:/sbin command -v "${wanted%/*}" >/dev/null || echo "${wanted#*/}" ;;
			*) dpkg -s "$wanted" 2>/dev/null | grep -q '^Status: .* installed$' || echo "$wanted" ;;
			esac
		done
	done | sort -u
}

apt_install() {
	# Installing docker.io would start a daemon, and with it change this machine's firewall. We
	# only want its files: policy-rc.d is Debian's own way to say so.
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT INT TERM
		printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
		chmod +x /usr/sbin/policy-rc.d
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get update &&
		apt-get install --yes --no-remove --no-install-recommends "$@"
}

install_packages() {
	missing=$(missing_packages "$@")
	if [ -n "$missing" ]; then
		# shellcheck disable=SC2046,SC2086 # one word per package
		step "Debian packages: $(echo $missing | cut -c1-40)" run_apart apt_install $missing
	fi
}

# In a process of its own, for what sets traps or changes directory.
run_apart() (
	"$@"
)

# --- Python --------------------------------------------------------------------------------------

hash_of() {
	(cd "$root" && find "$@" -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z |
		xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
}

# Debian's python3, not whatever comes first on PATH: python3-dev belongs to that one.
create_venv() {
	rm -rf "$venv" &&
		/usr/bin/python3 -m venv "$venv" &&
		"$venv/bin/pip" install --quiet --upgrade 'pip>=25.1' 'setuptools>=77' &&
		install_sources --group dev
}

install_sources() {
	copy_sources &&
		cd "$sources" &&
		"$venv/bin/pip" install "$@" . &&
		rm -rf "$sources"
}

# The wheel alone, for a machine that has the rest: in wheels of the virtual environment.
make_wheel() {
	rm -rf "$venv/wheels" &&
		copy_sources &&
		"$venv/bin/pip" wheel --no-deps --no-build-isolation --wheel-dir "$venv/wheels" "$sources" &&
		rm -rf "$sources"
}

# Built from a copy: setuptools leaves a build directory, and takes deleted modules from an old one.
copy_sources() {
	sources=$(mktemp -d)
	(cd "$root" && cp -R pyproject.toml README.md LICENSE sysfsd "$sources/")
}

# A virtual environment in the checkout with sysfsd installed as a user would have it (not
# editable), made anew when pyproject.toml changed; sysfsd put in again when its sources did.
make_environment() {
	exec 9<"$root/pyproject.toml"
	flock 9
	wanted=$({ hash_of pyproject.toml && /usr/bin/python3 --version; } | sha256sum | cut -d' ' -f1)
	code=$(hash_of sysfsd)
	if [ "$(cat "$venv/environment.sha256" 2>/dev/null)" != "$wanted" ]; then
		step "Virtual environment .venv with sysfsd in it" run_apart create_venv
	elif [ "$(cat "$venv/sources.sha256" 2>/dev/null)" != "$code" ]; then
		step "sysfsd into .venv" run_apart install_sources \
			--no-deps --no-build-isolation --force-reinstall
	fi
	echo "$wanted" >"$venv/environment.sha256"
	echo "$code" >"$venv/sources.sha256"
	exec 9>&-
}

# --- Images --------------------------------------------------------------------------------------

# Sets images to the directory that has the archives.
make_images() {
	images=$(sh "$root/tests/images/build.sh" --where)
	[ -e "$images/complete" ] ||
		step "Container images with mmdebstrap (once, cached)" sh "$root/tests/images/build.sh"
}

# Makes the disk of the virtual machine.
make_machine() {
	machine=$(sh "$root/tests/vm/build.sh" --where)
	[ -e "$machine/complete" ] ||
		step "Disk of the virtual machine (once, cached)" sh "$root/tests/vm/build.sh"
}

make_program_image() {
	images=$(sh "$root/tests/images/programs.sh" --where)
	[ -e "$images/complete" ] ||
		step "Image of programs with mmdebstrap (once, cached)" sh "$root/tests/images/programs.sh"
}
