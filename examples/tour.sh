#!/bin/sh
# What sysfsd does, shown: both flows, the comparison, the cost. The demo runs it on an engine of its
# own; it runs as well on yours, when that knows the runtime sysfsd.
set -eu
# shellcheck source=examples/common.sh
. "$(dirname -- "$(readlink -f -- "$0")")/common.sh"
python=${SYSFSD_BIN:?the directory of the virtual environment, .venv/bin}/python

part() {
	printf '\n%s=== %s%s\n' "$bold" "$*" "$plain"
}

printf '==> %-58s ' "Images into the engine"
load_images busybox:latest sysfsd-cli:bookworm sysfsd-cli:sid sysfsd-dind:bookworm sysfsd-dind:sid
echo ok

part "1. An engine in a container, without --privileged"
sh "$here/flow-b-sandbox.sh"

part "2. The same with the engine of Debian sid inside, over TLS from another container"
DIND=sysfsd-dind:sid CLI=sysfsd-cli:sid sh "$here/flow-a-network-tls.sh"

part "3. Why not --privileged, or a shared docker.sock?"
echo
cd "$here/.."
"$python" -m tests.engine.side_by_side

part "4. What it costs"
echo
"$python" -m tests.engine.overhead
