#!/bin/sh
# The guest's side of run.sh: install sysfsd as the README says, run the tests, say how it went.
# What run.sh packed is in the current directory; stdout is the host's.
set -eu

cd "$(dirname -- "$(readlink -f -- "$0")")/../../.."
set -a
# shellcheck source=/dev/null # run.sh writes it
. ./environment
set +a
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export SYSFSD_VM=1 SYSFSD_RESULTS=/root/results PYTHONUNBUFFERED=1

# Of the host's monotonic clock there is none here: how long since the kernel started.
since_boot() {
	cut -d' ' -f1 /proc/uptime
}

install_sysfsd() {
	/opt/sysfsd/bin/pip install --quiet --no-index --no-deps --disable-pip-version-check ./*.whl
	echo 'sysfsd:10000000:6553600' | tee -a /etc/subuid /etc/subgid
	ln -s /opt/sysfsd/bin/sysfsd /usr/local/bin/sysfsd
	cp checkout/systemd/sysfsd* /etc/systemd/system/
	mkdir -p /etc/docker /etc/sysfsd
	echo 'annotations = "all"' >/etc/sysfsd/sysfsd.toml
	cp checkout/examples/daemon.json /etc/docker/daemon.json
	systemctl daemon-reload
}

# The archives came as disks: put them where tests/images/load.sh looks for them.
place_images() {
	images=$(sh checkout/tests/images/build.sh --where)
	mkdir -p "$images"
	for archive in busybox dind-bookworm; do
		[ ! -e "/dev/disk/by-id/virtio-$archive" ] ||
			ln -s "/dev/disk/by-id/virtio-$archive" "$images/$archive.tar"
	done
	touch "$images/complete"
	programs=$(sh checkout/tests/images/programs.sh --where)
	mkdir -p "$programs"
	if [ -e /dev/disk/by-id/virtio-programs ]; then
		ln -s /dev/disk/by-id/virtio-programs "$programs/programs.tar"
		touch "$programs/complete"
	fi
}

echo "$(uname -sr), systemd $(systemctl --version | sed -n '1s/[^ ]* \([^ ]*\).*/\1/p'), up for $(since_boot) s"
mkdir -p "$SYSFSD_RESULTS"
status=0
install_sysfsd >install.log 2>&1 || status=$?
if [ "$status" = 0 ]; then
	place_images >install.log 2>&1 || status=$?
fi
if [ "$status" = 0 ]; then
	echo "Installed, up for $(since_boot) s"
	set --
	# What has to do with controllers; other folders are run when they are named.
	folders='tests/vm tests/filesystem/test_live_cgroup.py tests/filesystem/test_live_disk.py'
	folders="$folders tests/filesystem/test_sysctl_differential.py tests/filesystem/test_sysctl_probe.py"
	folders="$folders tests/filesystem/test_passed_on.py::test_no_module_is_loaded_for_a_name"
	# Minutes of a JVM and the like in emulation: when they are named, too.
	folders="$folders --ignore=tests/vm/test_programs.py"
	while IFS= read -r argument; do
		[ -z "$argument" ] || set -- "$@" "$argument"
		case $argument in tests/*) folders= ;; esac
	done <arguments
	if [ "${1-}" = --script ]; then
		shift
	else
		# shellcheck disable=SC2086 # one word per folder
		set -- -m pytest -p no:cacheprovider -p tests.vm.instant --tb=short --no-summary $folders "$@"
	fi
	(cd checkout && exec /opt/sysfsd/bin/python "$@" </dev/null) 2>&1 || status=$?
else
	cat install.log
fi
tar -cf /dev/disk/by-id/virtio-results -C "$SYSFSD_RESULTS" . || true
echo "Up for $(since_boot) s"
echo "The tests in the virtual machine ended with status $status"
