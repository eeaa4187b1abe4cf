#!/bin/sh
# Build the disk of the virtual machine that `tests/run.sh vm` boots, and cache it.
#
#   sh tests/vm/build.sh           build it if it is not there yet
#   sh tests/vm/build.sh --where   print the directory it is in, build nothing
#
#   vmlinuz    Debian trixie's cloud kernel: NVMe and ext4 are built in, so it needs no initramfs
#   disk.ext4  systemd, Docker, runc, crun, and /opt/sysfsd: a virtual environment with everything
#              that pyproject.toml asks for, but sysfsd, which each run brings along
#
# The cache is that of tests/images/build.sh. Needs root, mmdebstrap, Debian's archive and PyPI.
set -eu

here=$(dirname -- "$(readlink -f -- "$0")")
root=$(dirname -- "$(dirname -- "$here")")
cache=${SYSFSD_TEST_CACHE:-/var/cache/sysfsd-tests}
umask 022

# What sysfsd and its tests need from PyPI, one a line; the checkers look at sources, on the host.
requirements() {
	/usr/bin/python3 -c '
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))
wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
wanted += project["dependency-groups"]["dev"]
print(*(line for line in wanted if not line.startswith(("ruff", "mypy", "types-"))), sep="\n")
' "$root/pyproject.toml"
}

recipe=$({ requirements && cat "$here/build.sh" "$here/guest/"*; } | sha256sum | cut -c1-12)
built=$cache/vm-$recipe

if [ "${1-}" = --where ]; then
	echo "$built"
	exit
fi

# mmdebstrap calls us back while it has the root file system laid out: $2.
if [ "${1-}" = --inside ]; then
	system=$2
	certificates=/etc/ssl/certs/ca-certificates.crt
	# A company's own authority, if this host trusts one, for as long as we download.
	cp "$system$certificates" "$system/tmp/certificates"
	cp "${PIP_CERT:-$certificates}" "$system$certificates"
	requirements >"$system/tmp/requirements"
	chroot "$system" python3 -m venv /opt/sysfsd
	chroot "$system" /opt/sysfsd/bin/pip install --no-cache-dir --requirement /tmp/requirements
	chroot "$system" apt-get --yes --purge autoremove gcc libc6-dev python3-dev libfuse3-dev pkg-config
	cp "$system/tmp/certificates" "$system$certificates"
	rm -f "$system/tmp/"*
	cp "$here/guest/sysfsd-tests.service" "$system/etc/systemd/system/"
	# Only what the tests ask for is started: emulated, every service costs seconds of the boot.
	chroot "$system" systemctl set-default --quiet multi-user.target
	chroot "$system" systemctl enable --quiet sysfsd-tests.service
	chroot "$system" systemctl mask --quiet apt-daily.timer apt-daily-upgrade.timer \
		dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
		systemd-networkd.service getty@.service serial-getty@.service
	chroot "$system" systemctl disable --quiet docker.service docker.socket containerd.service
	echo sysfsd-vm >"$system/etc/hostname"
	echo '127.0.0.1 localhost sysfsd-vm' >"$system/etc/hosts"
	: >"$system/etc/resolv.conf"
	rm -rf "$system/var/log/"* "$system/var/cache/debconf/"*
	exit
fi

build() {
	system=$built/system
	rm -rf "$system"
	set --
	for path in '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' '/usr/share/info/*' \
		/usr/bin/ctr /usr/bin/containerd-shim /usr/bin/containerd-shim-runc-v1 '/boot/initrd*'; do
		set -- "$@" "--dpkgopt=path-exclude=$path"
	done
	# shellcheck disable=SC2016 # mmdebstrap's shell expands $1
	INITRD=No mmdebstrap --variant=minbase --components=main --mode=root --format=directory \
		--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Retries "3"' "$@" \
		--include=linux-image-cloud-amd64,systemd,systemd-sysv,dbus,udev,kmod,e2fsprogs,procps \
		--include=util-linux,iproute2,iptables,docker.io,docker-cli,runc,crun,busybox-static \
		--include=python3,python3-venv,libfuse3-4,ca-certificates \
		--include=python3-dev,gcc,libc6-dev,libfuse3-dev,pkg-config \
		--customize-hook="sh $here/build.sh --inside \"\$1\"" \
		trixie "$system" &&
		cp "$system"/boot/vmlinuz-* "$built/vmlinuz" &&
		mke2fs -q -t ext4 -m 0 -d "$system" "$built/disk.part" 6G &&
		rm -rf "$system" &&
		mv "$built/disk.part" "$built/disk.ext4"
}

mkdir -p "$built"
exec 9>"$cache/lock"
flock 9
[ ! -e "$built/complete" ] || exit 0
export TMPDIR="$built" # on a disk: the system takes 700 MB
if ! build >"$built/log" 2>&1; then
	tail -n 40 "$built/log"
	exit 1
fi
touch "$built/complete"
# Those of older recipes, unless another checkout may be at it.
find "$cache" -mindepth 1 -maxdepth 1 -type d -name 'vm-*' ! -name "vm-$recipe" -mtime +1 \
	-exec rm -rf {} +
