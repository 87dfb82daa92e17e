#!/usr/bin/env bash
# Every way through the shim with real neighbours: the OpenTelemetry Python SDK before it, the real Jaeger and the real
# Collector behind it. Prints a line for each way; the exit status is 0 when every span arrived as it was sent.
#
#   run.sh          builds the shim, and, the first time, Jaeger, the Collector and the clients (minutes)
#
# Needs Go, and Python 3.10 or later with venv. Everything is kept under ${LANTERN_TEST_CACHE:-$HOME/.cache/lantern}.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

cargo build --release --locked -p lantern-shim >&2
target=${CARGO_TARGET_DIR:-target}
jaeger=$(tests/jaeger/build.sh)
collector=$(bench/peers.sh | sed -n 's/^collector=//p')
[ -n "$collector" ] || { echo "matrix: no Collector, see above" >&2; exit 1; }

checksum=$({ cat tests/matrix/requirements.txt; python3 -VV; } | sha256sum | cut -c1-16)
environment=${LANTERN_TEST_CACHE:-$HOME/.cache/lantern}/matrix-$checksum
mkdir -p "$environment"
exec 9>"$environment/lock"
flock 9
if [ ! -e "$environment/complete" ]; then
  python3 -m venv --clear "$environment/venv" >&2
  "$environment/venv/bin/pip" install --quiet --disable-pip-version-check -r tests/matrix/requirements.txt >&2
  touch "$environment/complete"
fi
exec 9>&-

exec "$environment/venv/bin/python" tests/matrix/matrix.py \
  --shim "$target/release/lantern-shim" --jaeger "$jaeger" --collector "$collector"
