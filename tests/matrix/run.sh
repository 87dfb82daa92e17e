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

python=$(tests/python/setup.sh ../matrix/requirements.txt)

exec "$python" tests/matrix/matrix.py \
  --shim "$target/release/lantern-shim" --jaeger "$jaeger" --collector "$collector"
