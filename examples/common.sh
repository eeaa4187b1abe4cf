# Sourced by the examples: how they show what they do.
# shellcheck shell=sh
#
# They talk to the engine that `docker` talks to (DOCKER_HOST), which must know the runtime sysfsd;
# to a throw-away one when examples/demo.sh runs them. DIND and CLI name the images.

here=$(dirname -- "$(readlink -f -- "$0")")
dind=${DIND:-sysfsd-dind:bookworm}
# shellcheck disable=SC2034 # for those who source this
cli=${CLI:-sysfsd-cli:${dind#*:}}

if [ -t 1 ]; then
	bold=$(printf '\033[1m') plain=$(printf '\033[0m')
else
	bold='' plain=''
fi

say() {
	printf '\n%s# %s%s\n' "$bold" "$*" "$plain"
}

# Show a command.
show() {
	shown=
	for word in "$@"; do
		case $word in
		*[\ \$\"\|\;\&\<\>\(\)]*) shown="$shown '$word'" ;;
		*) shown="$shown $word" ;;
		esac
	done
	printf '%s$%s%s\n' "$bold" "$shown" "$plain"
}

# Show a command and run it.
run() {
	show "$@"
	"$@"
}

# The same for one whose output says nothing: the id of what it made.
run_quietly() {
	show "$@"
	"$@" >/dev/null
}

# Wait until a command succeeds: SECONDS COMMAND…
wait_for() {
	end=$(($(date +%s) + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		if [ "$(date +%s)" -ge "$end" ]; then
			echo "gave up waiting for: $*" >&2
			"$@"
			exit 1
		fi
		sleep 0.2
	done
}

# Load these images into the engine, unless they are there.
load_images() {
	sh "$here/../tests/images/load.sh" "$@" >/dev/null
}
