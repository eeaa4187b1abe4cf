#!/bin/sh
# Build the image that tests/programs runs, and cache it: programs that nobody here wrote.
#
#   sh tests/images/programs.sh           build what is not there yet
#   sh tests/images/programs.sh --where   print the directory, build nothing
#
# The directory holds
#
#   programs.tar   for `docker import`: procps, sysstat, htop, a JVM, Node, …
#   lxcfs/         Debian's lxcfs with the libraries it needs: lxcfs/run ARGUMENTS… starts it. Not
#                  installed on this machine, where it would start at the next boot.
#
# Cached as tests/images/build.sh does, in a directory of its own. Needs root, mmdebstrap and
# Debian's package archive; no container registry.
set -eu

here=$(dirname -- "$(readlink -f -- "$0")")
cache=${SYSFSD_TEST_CACHE:-/var/cache/sysfsd-tests}
recipe=programs-$(sha256sum <"$here/programs.sh" | cut -c1-12)
images=$cache/$recipe
umask 022

if [ "${1-}" = --where ]; then
	echo "$images"
	exit
fi

# Left out of the image: what no test looks at.
lean() {
	for path in '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' '/usr/share/info/*' \
		'/usr/lib/*/gconv/*' '/usr/share/zoneinfo/*' '/usr/share/icons/*'; do
		echo "--dpkgopt=path-exclude=$path"
	done
}

# Take lxcfs and all that it loads out of a root file system: $1 root.
lxcfs() {
	new=$images/lxcfs.part
	rm -rf "$new"
	mkdir -p "$new/lib"
	cp "$1/usr/bin/lxcfs" "$1"/usr/lib/*/lxcfs/liblxcfs.so "$new/lib/"
	chroot "$1" sh -c 'ldd /usr/bin/lxcfs /usr/lib/*/lxcfs/liblxcfs.so' |
		grep -o '/[^ :]*' | sort -u | while read -r library; do
		cp -L "$1$library" "$new/lib/"
	done
	# shellcheck disable=SC2016 # dpkg-query expands it
	chroot "$1" dpkg-query --show --showformat='${Version}\n' lxcfs >"$new/version"
	# Under the loader of the same distribution: this machine's C library may be older.
	cat >"$new/run" <<'RUN'
#!/bin/sh
lib=$(dirname -- "$(readlink -f -- "$0")")/lib
exec "$lib"/ld-linux*.so.* --library-path "$lib" "$lib/lxcfs" "$@"
RUN
	chmod +x "$new/run"
	mv "$new" "$images/lxcfs"
}

# mmdebstrap calls us back while it has the root file system laid out.
if [ "${1-}" = --derive ]; then
	[ -e "$images/lxcfs" ] || lxcfs "$2"
	exit
fi

mkdir -p "$images"
exec 9>"$images/lock"
flock 9
[ ! -e "$images/complete" ] || exit 0
export TMPDIR="$images" # on a disk: unpacked it takes 600 MB
# Merged from the start, else the package that merges brings all of perl. The packages of the JVM
# link manual pages and fail where there is no directory for them.
# shellcheck disable=SC2016,SC2046 # mmdebstrap's shell expands $1; no path of ours has a blank
mmdebstrap --variant=minbase --components=main --aptopt='APT::Install-Recommends "false"' \
	--aptopt='Acquire::Retries "3"' $(lean) \
	--include=usr-is-merged --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
	--include=procps,util-linux,coreutils,sysstat,htop,tmux,strace,busybox-static,lxcfs \
	--include=python3-minimal,python3-psutil,nodejs,default-jre-headless,prometheus-node-exporter \
	--include=redis-server,postgresql,systemd \
	--setup-hook='mkdir -p "$1/usr/share/man/man1"' \
	--customize-hook="sh $here/programs.sh --derive \"\$1\"" \
	--customize-hook='rm -rf "$1"/var/log/* "$1"/var/cache/debconf/*' \
	bookworm "$images/programs.part.tar" >"$images/programs.log" 2>&1 || {
	status=$?
	tail -n 40 "$images/programs.log"
	exit "$status"
}
mv "$images/programs.part.tar" "$images/programs.tar"
touch "$images/complete"
# Those of older recipes, unless another checkout may be at it.
find "$cache" -mindepth 1 -maxdepth 1 -type d -name 'programs-*' ! -name "$recipe" -mtime +1 \
	-exec rm -rf {} +
