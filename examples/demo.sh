#!/bin/sh
# Watch sysfsd work, on a machine that needs no more than a shell, apt and python3:
#
#   sudo sh examples/demo.sh
#
# Installs the Debian packages that are missing, builds sysfsd into .venv and its images into
# /var/cache/sysfsd-tests. Then starts an engine and a daemon of its own, shows what they do
# (examples/tour.sh), and takes them away again, on Ctrl-C too. An engine that runs here, its
# containers, networks and firewall rules are left alone.
set -eu

root=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
# shellcheck source=tests/setup.sh
. "$root/tests/setup.sh"

require_root
install_packages base runtime engine
make_environment
make_images
rm -f "$setup_log"
echo "==> A throw-away dockerd, and sysfsd serve"
cd "$root"
exec "$venv/bin/python" -m tests.engine.throwaway sh examples/tour.sh
