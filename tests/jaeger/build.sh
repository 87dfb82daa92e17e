#!/usr/bin/env bash
# Builds the real Jaeger (all-in-one v1.57.0) from its Go module and prints the binary's path.
#
#   build.sh        on stdout one line, the path; on stderr what Go says
#
# The binary is kept under ${LANTERN_TEST_CACHE:-$HOME/.cache/lantern} by the checksum of go.mod and go.sum, so that a
# later call only prints its path. Callers at the same moment wait for one build. Exit status: 0, 3 when Go is not on
# this machine, else Go's own. run.md beside this file says how to start the binary.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if ! command -v go >/dev/null; then
  echo "jaeger: go is not installed, so the real Jaeger cannot be built here" >&2
  exit 3
fi

cache=${LANTERN_TEST_CACHE:-$HOME/.cache/lantern}/jaeger-v1.57.0
binary=$cache/all-in-one-$(cat go.mod go.sum | sha256sum | cut -c1-16)
mkdir -p "$cache"

exec 9>"$cache/lock"
flock 9
if [ ! -x "$binary" ]; then
  # go.sum is whole, so no checksum database is asked: it does not know a few of these modules. The caller's GOFLAGS
  # (-mod=mod, -race) are set aside. The build goes to another name first: a killed one leaves no half binary behind.
  GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$binary.partial" \
    github.com/jaegertracing/jaeger/cmd/all-in-one >&2
  mv "$binary.partial" "$binary"
fi
echo "$binary"
