#!/bin/bash
# Exits 0 when the server of this container answers 200: no curl in the image, so bash's own sockets.
#
#   healthcheck.sh PORT METHOD PATH [JSON]
set -euo pipefail
port=$1 method=$2 path=$3 body=${4:-}

exec 3<>"/dev/tcp/127.0.0.1/$port"
printf '%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n' "$method" "$path" >&3
printf 'Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' "${#body}" "$body" >&3
read -r _ status _ <&3
[ "$status" = 200 ]
