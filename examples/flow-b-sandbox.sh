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

# --cpus alone would do for /proc and /sys. nproc(1) and Go programs ask the scheduler, though, and
# that hears of CPU sets only.
say "A sandbox: a system container with 1 GiB of memory and one CPU"
run_quietly docker run -d --name "$name" --runtime=sysfsd -m 1g --cpus 1 --cpuset-cpus 0 "$dind"
wait_for 60 docker exec "$name" docker version

say "The engine inside is unmodified, and takes the limits for its machine"
run docker exec "$name" docker info --format \
	'Docker {{.ServerVersion}}, storage driver {{.Driver}}, CPUs: {{.NCPU}}'
show docker exec "$name" docker info
docker exec "$name" docker info 2>/dev/null | grep 'Total Memory'

say "So does every other program"
run docker exec "$name" free -m
run docker exec "$name" nproc --all
run docker exec "$name" lscpu --extended=CPU,ONLINE
run docker exec "$name" uptime

say "A container inside: an image handed over, a web server, a request"
docker save busybox:latest | run docker exec -i "$name" docker load
run_quietly docker exec "$name" docker run -d --name web -p 8080:80 busybox:latest \
	sh -c 'echo hello from a container in a container >index.html; exec httpd -f'
wait_for 20 docker exec "$name" busybox wget -qO- http://127.0.0.1:8080/
run docker exec "$name" busybox wget -qO- http://127.0.0.1:8080/
run docker exec "$name" docker ps --format 'table {{.Names}}\t{{.Image}}\t{{.Status}}'

say "Root in there is somebody without any rights on this machine"
run docker exec "$name" cat /proc/self/uid_map
run ps -o uid,args -p "$(docker inspect --format '{{.State.Pid}}' "$name")"
