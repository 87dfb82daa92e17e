#!/usr/bin/env bash
# Installs the clients of requirements.txt and prints the path of the Python that has them. They are kept under
# ${LANTERN_TEST_CACHE:-$HOME/.cache/lantern} by the checksum of what they are made from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

checksum=$({ cat requirements.txt; python3 -VV; } | sha256sum | cut -c1-16)
environment=${LANTERN_TEST_CACHE:-$HOME/.cache/lantern}/matrix-$checksum
mkdir -p "$environment"
exec 9>"$environment/lock"
flock 9
if [ ! -e "$environment/complete" ]; then
  python3 -m venv --clear "$environment/venv" >&2
  "$environment/venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt >&2
  touch "$environment/complete"
fi
echo "$environment/venv/bin/python"
