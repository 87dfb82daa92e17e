#!/usr/bin/env bash
# The scaled-out way, whole: the OpenTelemetry Python SDK, the shim, a real broker of Kafka that is killed again and
# again, Jaeger's ingester, Cassandra as storage, Jaeger's query. The exit status is 0 when every span that the shim has
# acknowledged is found by the query API, each attribute as it was sent.
#
#   run.sh          builds the shim, and, the first time, fetches or builds the others (minutes)
#
# Needs Go, Java 17, Maven, and Python 3.10 or later with venv. Everything is kept under
# ${LANTERN_TEST_CACHE:-$HOME/.cache/lantern}.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

jaeger_version=v1.76.0
cache=${LANTERN_TEST_CACHE:-$HOME/.cache/lantern}/kafka
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9

# jars NAME: the folder of the jars that NAME.xml asks for.
jars() {
  local pom=tests/kafka/$1.xml folder
  folder=$cache/$1-$(sha256sum <"$pom" | cut -c1-16)
  if [ ! -d "$folder" ]; then
    rm -rf "$folder.partial"
    mvn --quiet --batch-mode --file "$pom" dependency:copy-dependencies \
      -DincludeScope=runtime -DoutputDirectory="$folder.partial" >&2
    mv "$folder.partial" "$folder"
  fi
  echo "$folder"
}

# Jaeger v2: only that reads what the shim writes, records of otlp_proto. It is built in its module's folder, by the
# versions and checksums that its own go.sum has; the checksum database does not know all of them.
jaeger() {
  local binary=$cache/jaeger-$jaeger_version module
  if [ ! -x "$binary" ]; then
    module=$(cd "$cache" && GOFLAGS='' GONOSUMDB='*' go mod download -json "github.com/jaegertracing/jaeger@$jaeger_version" |
      sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    (cd "$module" && GOFLAGS=-mod=readonly GONOSUMDB='*' CGO_ENABLED=0 \
      go build -trimpath -ldflags='-s -w' -o "$binary.partial" ./cmd/jaeger >&2)
    mv "$binary.partial" "$binary"
  fi
  echo "$binary"
}

cargo build --release --locked -p lantern-shim --features kafka >&2
shim=${CARGO_TARGET_DIR:-target}/release/lantern-shim
kafka=$(jars kafka)
cassandra=$(jars cassandra)
jaeger=$(jaeger)
python=$(tests/python/setup.sh ../matrix/requirements.txt)
exec 9>&-

PYTHONPATH=tests/matrix exec "$python" tests/kafka/kafka.py \
  --shim "$shim" --jaeger "$jaeger" --kafka "$kafka" --cassandra "$cassandra"
