#!/usr/bin/env bash
# Installs or builds what the benches measure us against, and prints where each is.
#
#   peers.sh        on stdout a line `name=path` for each that is there; on stderr what is missing, and why
#
# Everything is kept under ${LANTERN_TEST_CACHE:-$HOME/.cache/lantern} by the checksum of what it is made from. Callers at
# the same moment wait for one another. A peer that cannot be had is told and left out; the exit status is 0 all the same.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

cache=${LANTERN_TEST_CACHE:-$HOME/.cache/lantern}/bench
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9

missing() { echo "peers: no $1: $2" >&2; }

python_peers() {
  local checksum environment name
  checksum=$({ cat requirements.txt; python3 -VV; } | sha256sum | cut -c1-16) || return
  environment=$cache/python-$checksum
  if [ ! -e "$environment/complete" ]; then
    python3 -m venv --clear "$environment/venv" >&2 || return
    "$environment/venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt >&2 || return
    touch "$environment/complete"
  fi
  echo "python=$environment/venv/bin/python"
  # The commands that the wheels install are Python programs that start the real ones, which is what is measured.
  for name in caddy envoy rotel; do
    find "$environment/venv" -type f -name "$name*" -size +4M -perm -u+x -printf "$name=%p\n" | head -n 1 | grep . ||
      missing "$name" "its wheel has no program of that name"
  done
}

collector() {
  local checksum binary
  command -v go >/dev/null || return
  checksum=$(sha256sum <collector.yaml | cut -c1-16)
  binary=$cache/collector-$checksum/otelcol-otlp
  if [ ! -x "$binary" ]; then
    local build=$cache/collector-$checksum.partial
    rm -rf "$build" && mkdir "$build" || return
    sed "s|^dist:|&\n  output_path: $build|" collector.yaml >"$build/builder.yaml" || return
    # The checksum database does not know a few of these modules.
    CGO_ENABLED=0 GOFLAGS=-mod=mod GONOSUMDB='*' go run go.opentelemetry.io/collector/cmd/builder@v0.140.0 \
      --config "$build/builder.yaml" >&2 || return
    mv "$build" "${binary%/*}"
  fi
  echo "collector=$binary"
}

python_peers || missing "Caddy, Envoy, Rotel or plots" "python3 with venv could not install requirements.txt"
collector || missing Collector "go could not build it"
