#!/bin/sh
# Build the container images that the demo and the engine tests use, and cache them.
#
#   sh tests/images/build.sh           build what is not there yet
#   sh tests/images/build.sh --where   print the directory of the archives, build nothing
#
# Four archives for `docker import` (see load.sh, which gives them their configuration):
#
#   dind-bookworm.tar  dind-sid.tar    an engine with our dockerd-entrypoint.sh
#   cli-bookworm.tar   cli-sid.tar     the docker command, the libraries it needs, and busybox
#   busybox.tar                        one static binary, for inner containers
#
# The cache (SYSFSD_TEST_CACHE, default /var/cache/sysfsd-tests) has a directory for each state of
# the recipe, named by its hash: a changed recipe builds anew, a second run builds nothing.
# Needs root, mmdebstrap and Debian's package archive; no container registry.
set -eu

here=$(dirname -- "$(readlink -f -- "$0")")
cache=${SYSFSD_TEST_CACHE:-/var/cache/sysfsd-tests}
recipe=$(cat "$here/build.sh" "$here/dind/"* | sha256sum | cut -c1-12)
images=$cache/$recipe
umask 022

if [ "${1-}" = --where ]; then
	echo "$images"
	exit
fi

# Left out of the images: what no test looks at.
lean() {
	for path in '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' '/usr/share/info/*' \
		'/usr/lib/*/gconv/*' '/usr/share/zoneinfo/*' \
		/usr/bin/ctr /usr/bin/dnet /usr/sbin/ovrouter /usr/bin/containerd-shim \
		/usr/bin/containerd-shim-runc-v1; do
		echo "--dpkgopt=path-exclude=$path"
	done
}

# Put the docker command of a root file system into an image of its own: $1 suite, $2 root.
cli_image() {
	new=$(mktemp -d)
	mkdir -p "$new/bin" "$new/usr/bin" "$new/tmp" "$new/root" "$new/etc"
	chmod 1777 "$new/tmp"
	cp "$2/usr/bin/docker" "$new/usr/bin/docker"
	cp "$2/bin/busybox" "$new/bin/busybox"
	chroot "$2" ldd /usr/bin/docker | grep -o '/[^ ]*' | sort -u | while read -r library; do
		mkdir -p "$new$(dirname "$library")"
		cp -L "$2$library" "$new$library"
	done
	busybox_commands "$new"
	tar -C "$new" -cf "$images/cli-$1.tar.part" .
	mv "$images/cli-$1.tar.part" "$images/cli-$1.tar"
	rm -rf "$new"
}

busybox_commands() {
	for command in $(chroot "$1" /bin/busybox --list); do
		[ -e "$1/bin/$command" ] || ln -s busybox "$1/bin/$command"
	done
	echo 'root:x:0:0:root:/root:/bin/sh' >"$1/etc/passwd"
	echo 'root:x:0:' >"$1/etc/group"
}

busybox_image() {
	new=$(mktemp -d)
	mkdir -p "$new/bin" "$new/tmp" "$new/root" "$new/etc"
	chmod 1777 "$new/tmp"
	cp "$1/bin/busybox" "$new/bin/busybox"
	busybox_commands "$new"
	tar -C "$new" -cf "$images/busybox.tar.part" .
	mv "$images/busybox.tar.part" "$images/busybox.tar"
	rm -rf "$new"
}

# $1 suite, then mmdebstrap's options
build() {
	suite=$1
	shift
	[ ! -e "$images/dind-$suite.tar" ] || return 0
	# shellcheck disable=SC2016,SC2046 # mmdebstrap's shell expands $1; no path of ours has a blank
	mmdebstrap --variant=minbase --components=main --aptopt='APT::Install-Recommends "false"' \
		--aptopt='Acquire::Retries "3"' $(lean) \
		--include=docker.io,crun,iptables,iproute2,procps,util-linux,openssl,busybox-static,ca-certificates \
		--customize-hook="copy-in $here/dind/dockerd-entrypoint.sh /usr/local/bin" \
		--customize-hook="sh $here/build.sh --derive $suite \"\$1\"" \
		--customize-hook='rm -rf "$1"/var/log/* "$1"/var/cache/debconf/*' \
		"$@" "$suite" "$images/dind-$suite.part.tar"
	mv "$images/dind-$suite.part.tar" "$images/dind-$suite.tar"
}

# mmdebstrap calls us back while it has the root file system laid out.
if [ "${1-}" = --derive ]; then
	cli_image "$2" "$3"
	[ "$2" != bookworm ] || busybox_image "$3"
	exit
fi

mkdir -p "$images"
exec 9>"$cache/lock"
flock 9
[ ! -e "$images/complete" ] || exit 0
export TMPDIR="$images" # on a disk: an engine unpacked takes 400 MB
# Merged from the start, else the package that merges brings all of perl.
build bookworm --include=usr-is-merged --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
	>"$images/bookworm.log" 2>&1 &
bookworm=$!
status=0
# sid's release file may be older than it says it may be.
build sid --include=docker-cli --aptopt='Acquire::Check-Valid-Until "false"' \
	>"$images/sid.log" 2>&1 || status=$?
wait "$bookworm" || status=$?
if [ "$status" != 0 ]; then
	tail -n 40 "$images/bookworm.log" "$images/sid.log"
	exit "$status"
fi
touch "$images/complete"
# Those of older recipes, unless another checkout may be at it.
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$recipe" ! -name "vm-*" ! -name "programs-*" -mtime +1 -exec rm -rf {} +
