#!/usr/bin/env bash
# Runs the container stack as README says, by either protocol, and checks it from outside: a request to the proxy, its
# whole trace in Jaeger, containers that are neither root nor writable. Prints a PASS line for each.
#
# Needs Docker with Compose v2, Python, and ports 8000, 4317, 4318 and 16686. The stack has a project name of its own
# here, so that nobody's volumes go with it. LANTERN_PROFILE=release compiles faster.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export COMPOSE_PROJECT_NAME=lantern-compose-test
services=(proxy inference shim jaeger)

clean_up() {
  local status=$?
  [ "$status" = 0 ] || docker compose logs --tail 30 --no-color >&2 || true
  docker compose down --volumes --remove-orphans --timeout 45 >&2 || true
  exit "$status"
}
trap clean_up EXIT

# check_protocol NAME: the protocol's whole path, from nothing.
check_protocol() {
  docker compose up -d --build --wait >&2
  for service in "${services[@]}"; do
    check_container "$service"
  done
  for service in proxy inference shim; do
    check_exporter "$service" "$1"
  done
  python3 tests/python/stack_check.py
  docker compose down --volumes --timeout 45 >&2
  echo "PASS $1: one request, its whole trace in Jaeger"
}

# No process of the container may be root, gain a privilege, or write to the image.
check_container() {
  local id uids found
  id=$(docker compose ps --quiet "$1")
  uids=$(docker top "$id" -eo pid,uid | awk 'NR > 1 { print $2 }')
  if [ -z "$uids" ] || grep -qx 0 <<<"$uids"; then
    echo "FAIL $1 runs as the users '$uids'" >&2
    return 1
  fi
  found=$(docker inspect --format \
    '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}}' "$id")
  if [ "$found" != 'true [ALL] [no-new-privileges:true]' ]; then
    echo "FAIL $1 is not hardened: $found" >&2
    return 1
  fi
  echo "PASS $1: healthy, not root, read-only, without capabilities"
}

# The variable of the caller must have reached each exporter, or both runs would show the same path.
check_exporter() {
  local found
  found=$(docker compose exec -T "$1" printenv OTEL_EXPORTER_OTLP_TRACES_PROTOCOL)
  if [ "$found" != "$2" ]; then
    echo "FAIL $1 exports by $found, not $2" >&2
    return 1
  fi
}

unset OTEL_EXPORTER_OTLP_TRACES_PROTOCOL
check_protocol grpc
export OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf
check_protocol http/protobuf
