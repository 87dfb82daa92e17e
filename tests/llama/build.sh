#!/usr/bin/env bash
# Builds llama.cpp's own llama-server from its source (source.txt) and prints the binary's path.
#
#   build.sh        on stdout one line, the path; on stderr what pip and cmake say
#
# Takes Python's pip, cmake, a C++ compiler and, the first time, many minutes. The binary is kept under
# ${LANTERN_TEST_CACHE:-$HOME/.cache/lantern} by the checksum of source.txt. Callers at the same moment wait for one
# build. Exit status: 0, else that of the tool that failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

cache=${LANTERN_TEST_CACHE:-$HOME/.cache/lantern}/llama-$(sha256sum source.txt | cut -c1-16)
mkdir -p "$cache"

exec 9>"$cache/lock"
flock 9
if [ ! -x "$cache/llama-server" ]; then
  work=$(mktemp -d "$cache/build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  {
    python3 -m pip download --quiet --no-deps --no-binary :all: --require-hashes -r source.txt -d "$work"
    tar -xzf "$work"/*.tar.gz -C "$work" --strip-components=3 --wildcards '*/vendor/llama.cpp'
    # Without the web page, which is downloaded, and TLS: the server's API over HTTP is what is tested.
    cmake -S "$work" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF \
      -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
    cmake --build "$work/build" --target llama-server --parallel "$(nproc)"
  } >&2
  mv "$work/build/bin/llama-server" "$cache/"
fi
echo "$cache/llama-server"
