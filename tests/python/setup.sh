#!/usr/bin/env bash
# Installs the real clients and servers (requirements.txt) into a virtual environment and prints its Python's path.
#
#   setup.sh [FILE]    on stdout one line, the path; on stderr what pip says. FILE: other requirements, as seen from this folder
#
# The environment is kept under ${LANTERN_TEST_CACHE:-$HOME/.cache/lantern} by the checksum of the requirements and the
# version of Python. Callers at the same moment wait for one installation. Exit status: 0, 3 when there is no Python 3.10
# or later with venv on this machine, else pip's own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if ! python3 -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  echo "python: python3 (3.10 or later) with venv is not installed, so the real clients cannot run here" >&2
  exit 3
fi

requirements=${1:-requirements.txt}
checksum=$({ cat "$requirements"; python3 -VV; } | sha256sum | cut -c1-16)
environment=${LANTERN_TEST_CACHE:-$HOME/.cache/lantern}/python-$checksum
mkdir -p "$environment"

exec 9>"$environment/lock"
flock 9
if [ ! -e "$environment/complete" ]; then
  python3 -m venv --clear "$environment/venv" >&2
  "$environment/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$requirements" >&2
  "$environment/venv/bin/pip" check --quiet >&2
  touch "$environment/complete"
fi
echo "$environment/venv/bin/python"
