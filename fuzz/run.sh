#!/usr/bin/env bash
# Builds a fuzz target with coverage and runs it.
#
#   run.sh TARGET [RUNS] [libFuzzer's options]
#
# Works with the stable compiler: LLVM's coverage pass is asked for by name, so neither cargo-fuzz nor a nightly is
# needed. What libFuzzer learns is kept in fuzz/target/corpus/TARGET, what it finds in fuzz/target/artifacts; the
# committed seeds in fuzz/corpus/TARGET are only read.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

target=${1:?run.sh TARGET [RUNS]}
runs=${2:-100000}
host=$(rustc -vV | sed -n 's/^host: //p')
# Dead strip would take the counters' sections, which nothing but the linker's own symbols refers to.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Clink-arg=-Wl,-z,nostart-stop-gc" \
  cargo build --quiet --target "$host" --bin "$target"

mkdir -p "target/corpus/$target" target/artifacts
"target/$host/debug/$target" "target/corpus/$target" "corpus/$target" \
  -runs="$runs" -max_len=16384 -rss_limit_mb=512 -timeout=10 -artifact_prefix="target/artifacts/$target-" "${@:3}"
