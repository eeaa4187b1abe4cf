#!/bin/sh
# The entry point of our Docker-in-Docker images. It behaves as the one of docker:dind is documented
# to, so that what is tried here is what people use:
#
#   (nothing), or options only   start dockerd, with these options
#   dockerd …                    start dockerd as given
#   anything else                run that
#
# DOCKER_TLS_CERTDIR=DIR: dockerd also listens on tcp 2376 with TLS. The certificates are in
# DIR/{ca,server,client} and are made when they are not there; DOCKER_TLS_SAN adds names to the
# server's (openssl's form: DNS:engine.example,IP:10.0.0.1). Without it, the unix socket only.
set -eu

names() {
	printf 'DNS:%s,DNS:docker,DNS:localhost,IP:127.0.0.1,IP:::1' "$(hostname)"
	ip -oneline address show scope global | awk '{ sub("/.*", "", $4); printf ",IP:%s", $4 }'
	printf '%s' "${DOCKER_TLS_SAN:+,$DOCKER_TLS_SAN}"
}

# A key and a certificate signed by our CA, unless there is one that is still good for a day:
# $1 directory, $2 common name, $3 extensions
certificate() {
	mkdir -p "$1"
	if [ -s "$1/key.pem" ] && openssl x509 -in "$1/cert.pem" -checkend 86400 -noout 2>/dev/null; then
		return
	fi
	printf '%s\n' "$3" >"$1/extensions"
	openssl ecparam -name prime256v1 -genkey -noout -out "$1/key.pem"
	openssl req -new -key "$1/key.pem" -subj "/CN=$2" |
		openssl x509 -req -days 365 -CA "$certs/ca/cert.pem" -CAkey "$certs/ca/key.pem" \
			-CAcreateserial -extfile "$1/extensions" -out "$1/cert.pem" 2>/dev/null
	rm -f "$1/extensions"
	cp "$certs/ca/cert.pem" "$1/ca.pem"
	chmod 0600 "$1/key.pem"
}

make_certificates() {
	certs=$DOCKER_TLS_CERTDIR
	mkdir -p "$certs/ca"
	if ! openssl x509 -in "$certs/ca/cert.pem" -checkend 86400 -noout >/dev/null 2>&1; then
		# What the old one signed is worth nothing now. The directories may be volumes: they stay.
		rm -f "$certs/server/cert.pem" "$certs/client/cert.pem"
		openssl ecparam -name prime256v1 -genkey -noout -out "$certs/ca/key.pem"
		openssl req -new -x509 -key "$certs/ca/key.pem" -days 3650 -subj '/CN=dind CA' \
			-out "$certs/ca/cert.pem"
		chmod 0600 "$certs/ca/key.pem"
	fi
	certificate "$certs/server" docker "subjectAltName = $(names)"
	certificate "$certs/client" client 'extendedKeyUsage = clientAuth'
}

# cgroup v2 lets a cgroup have processes or controllers below it, not both: move into a leaf.
divide_cgroup() {
	[ -e /sys/fs/cgroup/cgroup.controllers ] || return 0
	mkdir -p /sys/fs/cgroup/init
	controllers=$(sed 's/ / +/g; s/^/+/' /sys/fs/cgroup/cgroup.controllers)
	tries=0
	# Whoever runs `docker exec` just now puts a process here, and is in the way: then again.
	until move_into_leaf && echo "$controllers" >/sys/fs/cgroup/cgroup.subtree_control; do
		tries=$((tries + 1))
		[ "$tries" -lt 50 ] || return 1
		sleep 0.1
	done
}

move_into_leaf() {
	while read -r pid; do
		echo "$pid" >/sys/fs/cgroup/init/cgroup.procs 2>/dev/null || true # it ended meanwhile
	done </sys/fs/cgroup/cgroup.procs
}

if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
	if [ -n "${DOCKER_TLS_CERTDIR-}" ]; then
		make_certificates
		set -- --host=tcp://0.0.0.0:2376 --tlsverify --tlscacert="$certs/server/ca.pem" \
			--tlscert="$certs/server/cert.pem" --tlskey="$certs/server/key.pem" "$@"
	fi
	set -- dockerd --host=unix:///var/run/docker.sock "$@"
fi

if [ "$1" = dockerd ]; then
	# A container that was killed leaves these, and the pids in them are somebody else's now.
	find /run -name 'docker*.pid' -delete -o -name 'containerd*.pid' -delete
	divide_cgroup
	set -- docker-init -- "$@"
fi
exec "$@"
