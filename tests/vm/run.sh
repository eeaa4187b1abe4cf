#!/bin/sh
# Boot the virtual machine of build.sh, run tests in it, print what they print.
#
#   sh tests/vm/run.sh [PYTEST ARGUMENTS…]
#
# `tests/run.sh vm` calls this, with the directory of sysfsd's wheel in SYSFSD_VM_WHEELS. Fails when
# the tests fail, hang, or did not run. Nothing of the machine outlives it, and its disk stays as it
# was built. Without a path among the arguments, the folders are those that inside.sh names; with
# "--script FILE ARGUMENTS…" that Python script is run instead of pytest.
#
#   SYSFSD_VM_ACCEL     kvm or tcg (emulation); by default kvm where the processor can
#   SYSFSD_VM_DEADLINE  seconds until the machine is switched off, 3300 by default
#   SYSFSD_VM_RESULTS   a directory for what tests leave in /root/results
set -eu

here=$(dirname -- "$(readlink -f -- "$0")")
root=$(dirname -- "$(dirname -- "$here")")
built=$(sh "$here/build.sh" --where)
deadline=${SYSFSD_VM_DEADLINE:-3300}

# /dev/kvm alone says little: without these flags (a guest of PVM, say) it can't boot what we have.
accelerator() {
	if [ -w /dev/kvm ] && grep -qwE '^flags.*(vmx|svm)' /proc/cpuinfo; then
		echo kvm
	else
		echo tcg
	fi
}
accel=${SYSFSD_VM_ACCEL:-$(accelerator)}
case $accel in
kvm) processor=host slowness=2 ;;
*)
	# One thread for all processors: with one for each, QEMU may run code that another processor has
	# just patched (issue 4669 of QEMU), and this kernel, which patches itself whenever the first
	# quota comes or the last one goes, panics with "Oops: int3". It takes about an eighth longer.
	accel=tcg,thread=single processor=max slowness=10
	;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# The guest's disk "checkout" is a tar archive, without a file system around it.
mkdir "$work/stage"
tar -C "$root" --exclude=__pycache__ -cf - pyproject.toml README.md LICENSE sysfsd tests systemd examples |
	tar --one-top-level="$work/stage/checkout" -xf -
cp "${SYSFSD_VM_WHEELS:?the directory of the wheel to install}"/sysfsd-*.whl "$work/stage/"
printf '%s\n' "$@" >"$work/stage/arguments"
cat >"$work/stage/environment" <<EOF
CI=${CI-}
SYSFSD_TEST_SLOWNESS=$slowness
EOF
tar -C "$work/stage" -cf "$work/checkout.tar" .
rm -rf "$work/stage"

# Sets $disks to more of qemu's arguments: a disk that the guest finds under a name.
disks=
disk() {
	disks="$disks -drive if=none,id=$1,format=raw,$2 -device virtio-blk-pci,drive=$1,serial=$1"
}
truncate -s 1G "$work/scratch"
truncate -s 64M "$work/results"
disk checkout "readonly=on,file=$work/checkout.tar"
disk scratch "file=$work/scratch"
disk results "file=$work/results"
images=$(sh "$root/tests/images/build.sh" --where)
for archive in busybox dind-bookworm; do
	[ ! -e "$images/complete" ] || disk "$archive" "readonly=on,file=$images/$archive.tar"
done
programs=$(sh "$root/tests/images/programs.sh" --where)
[ ! -e "$programs/complete" ] || disk programs "readonly=on,file=$programs/programs.tar"

# Drivers that udev would load for what qemu and its processor pretend to have: seconds of the boot.
unwanted=modprobe.blacklist=kvm_amd,kvm_intel,powernow_k8,acpi_cpufreq,ata_piix,aesni_intel,psmouse

# With a UUID, without which the kernel has no product_uuid.
echo "Booting a virtual machine ($accel); it is switched off after $deadline s at the latest"
# Four processors on two nodes, so that there is something to be left out of a cpuset.
# shellcheck disable=SC2086 # one word per argument
timeout --foreground --kill-after=10 "$deadline" qemu-system-x86_64 \
	-accel "$accel" -cpu "$processor" -smp 4,sockets=2,cores=2 -m 3G \
	-object memory-backend-ram,id=m0,size=2G -numa node,nodeid=0,cpus=0-1,memdev=m0 \
	-object memory-backend-ram,id=m1,size=1G -numa node,nodeid=1,cpus=2-3,memdev=m1 \
	-uuid 4c4c4544-0042-3510-8053-b4c04f4d3132 \
	-nodefaults -display none -no-reboot -nic none \
	-kernel "$built/vmlinuz" \
	-append "root=/dev/nvme0n1 rw rootwait console=ttyS0 panic=-1 $unwanted systemd.show_status=0 mitigations=off" \
	-serial "file:$work/console" \
	-drive "if=none,id=root,format=raw,snapshot=on,file=$built/disk.ext4" -device nvme,drive=root,serial=root \
	$disks \
	-device virtio-serial-pci -chardev file,id=out,path=/dev/stdout \
	-device virtserialport,chardev=out,name=sysfsd.tests \
	-device virtio-rng-pci </dev/null | tee "$work/output"

if [ -n "${SYSFSD_VM_RESULTS-}" ]; then
	mkdir -p "$SYSFSD_VM_RESULTS"
	tar -C "$SYSFSD_VM_RESULTS" -xf "$work/results" || true # the machine did not get that far
	cp "$work/console" "$SYSFSD_VM_RESULTS/console" || true
fi
# The last line of inside.sh: that qemu ended well says nothing of the tests.
status=$(sed -n 's/^The tests in the virtual machine ended with status \([0-9]*\)\r*$/\1/p' "$work/output")
if [ -z "$status" ]; then
	echo "The virtual machine ended before its tests did. The end of its console:" >&2
	tail -n 60 "$work/console" >&2
	exit 1
fi
exit "$status"
