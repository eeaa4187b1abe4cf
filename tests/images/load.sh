#!/bin/sh
# Load the images that build.sh made into the engine that `docker` talks to (DOCKER_HOST):
#
#   sysfsd-dind:bookworm  sysfsd-dind:sid  sysfsd-cli:bookworm  sysfsd-cli:sid  busybox:latest
#
# and, only when asked for, the one that programs.sh made:
#
#   sysfsd-programs:bookworm
#
#   sh tests/images/load.sh [IMAGE…]
set -eu

here=$(dirname -- "$(readlink -f -- "$0")")
load() {
	image=$1
	archive=$2
	shift 2
	docker image inspect "$image" >/dev/null 2>&1 || docker import "$@" "$images/$archive" "$image"
}

path='ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
[ $# -gt 0 ] || set -- busybox:latest sysfsd-cli:bookworm sysfsd-cli:sid \
	sysfsd-dind:bookworm sysfsd-dind:sid
for wanted in "$@"; do
	recipe=$here/build.sh
	[ "${wanted%%:*}" != sysfsd-programs ] || recipe=$here/programs.sh
	images=$(sh "$recipe" --where)
	[ -e "$images/complete" ] || sh "$recipe"
	case $wanted in
	sysfsd-dind:*)
		load "$wanted" "dind-${wanted#*:}.tar" --change "$path" \
			--change 'ENTRYPOINT ["dockerd-entrypoint.sh"]'
		;;
	sysfsd-cli:*) load "$wanted" "cli-${wanted#*:}.tar" --change "$path" --change 'CMD ["sh"]' ;;
	sysfsd-programs:bookworm) load "$wanted" programs.tar --change "$path" --change 'CMD ["sh"]' ;;
	busybox:latest) load "$wanted" busybox.tar --change "$path" --change 'CMD ["sh"]' ;;
	*)
		echo "load.sh: no such image: $wanted" >&2
		exit 2
		;;
	esac
done
