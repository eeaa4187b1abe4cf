#!/bin/sh
# Flow (b): one sandbox with the docker command and the engine in it, used with `docker exec`.
set -eu
# shellcheck source=examples/common.sh
. "$(dirname -- "$(readlink -f -- "$0")")/common.sh"

name=flow-b-$$
clean_up() {
	docker rm --force --volumes "$name" >/dev/null 2>&1 || true
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

load_images "$dind" busybox:latest

say "A sandbox: a system container with 1 GiB of memory and one CPU"
run docker run -d --name "$name" --runtime=sysfsd -m 1g --cpus 1 "$dind"
wait_for 60 docker exec "$name" docker version

say "The engine inside, unmodified, and what it makes of its machine"
run docker exec "$name" docker info --format \
	'Docker {{.ServerVersion}}, storage driver {{.Driver}}, {{.NCPU}} CPU, {{.MemTotal}} bytes of memory'
docker exec "$name" docker info 2>/dev/null | grep -E 'Total Memory|CPUs'
run docker exec "$name" free -m
run docker exec "$name" uptime
run docker exec "$name" lscpu -e=CPU,ONLINE
run docker exec "$name" head -n 2 /proc/stat

say "A container inside: an image handed over, a web server, a request"
docker save busybox:latest | run docker exec -i "$name" docker load
run docker exec "$name" docker run -d --name web -p 8080:80 busybox:latest \
	sh -c 'echo hello from a container in a container >index.html; exec httpd -f'
wait_for 20 docker exec "$name" busybox wget -qO- http://127.0.0.1:8080/
run docker exec "$name" busybox wget -qO- http://127.0.0.1:8080/
run docker exec "$name" docker ps --format 'table {{.Names}}\t{{.Image}}\t{{.Status}}'

say "Who is root in there? Nobody on this machine"
run docker exec "$name" cat /proc/self/uid_map
