#!/bin/sh
# Flow (a): an engine in a system container, another container talks to it over TLS.
#
# The way of docker:dind's documentation, less its --privileged: a network, the engine under the
# name "docker" with certificates that its entry point makes, and a container with nothing but the
# docker command and the client's certificates.
set -eu
# shellcheck source=examples/common.sh
. "$(dirname -- "$(readlink -f -- "$0")")/common.sh"

name=flow-a-$$
clean_up() {
	docker rm --force --volumes "$name-engine" >/dev/null 2>&1 || true
	docker volume rm "$name-ca" "$name-client" >/dev/null 2>&1 || true
	docker network rm "$name" >/dev/null 2>&1 || true
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

# A docker command in a container of its own: no daemon, no socket, only the certificates.
client() {
	docker run --rm -i --network "$name" -v "$name-client:/certs/client:ro" \
		-e DOCKER_HOST=tcp://docker:2376 -e DOCKER_TLS_VERIFY=1 -e DOCKER_CERT_PATH=/certs/client \
		"$cli" docker "$@"
}

load_images "$dind" "$cli" busybox:latest

say "A network, and in it an engine: a system container, not a privileged one"
run_quietly docker network create "$name"
run_quietly docker run -d --name "$name-engine" --runtime=sysfsd -m 1g --cpus 1 \
	--network "$name" --network-alias docker \
	-e DOCKER_TLS_CERTDIR=/certs -v "$name-ca:/certs/ca" -v "$name-client:/certs/client" "$dind"
wait_for 60 client version

say "An ordinary container with the docker command and the client's certificates talks to it"
run docker run --rm --network "$name" -v "$name-client:/certs/client:ro" \
	-e DOCKER_HOST=tcp://docker:2376 -e DOCKER_TLS_VERIFY=1 -e DOCKER_CERT_PATH=/certs/client \
	"$cli" docker version --format 'client {{.Client.Version}}, server {{.Server.Version}}'
docker save busybox:latest | client load
run docker run --rm --network "$name" -v "$name-client:/certs/client:ro" \
	-e DOCKER_HOST=tcp://docker:2376 -e DOCKER_TLS_VERIFY=1 -e DOCKER_CERT_PATH=/certs/client \
	"$cli" docker run --rm busybox:latest echo "hello from a container in a container, over TLS"

say "Without the certificates there is no way in"
if docker run --rm --network "$name" -e DOCKER_HOST=tcp://docker:2376 "$cli" \
	docker ps 2>&1; then
	echo "the engine answered without a certificate" >&2
	exit 1
fi
