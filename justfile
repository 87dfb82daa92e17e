# What CI runs, recipe for recipe (.ci/run), and what a developer runs besides.

_default:
    @just --list

# Formatting
fmt:
    cargo fmt --all --check

# Lints, warnings denied
clippy:
    cargo clippy --release --locked --workspace --all-targets \
        --features lantern-proxy/fuzzing,lantern-shim/fuzzing,lantern-shim/kafka -- -D warnings

# API docs, warnings denied
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps --document-private-items

# Licences, bans and sources of the dependencies; dependencies that nothing uses
deny:
    cargo deny --all-features check bans licenses sources
    cargo machete

# Known vulnerabilities of the dependencies (reads the advisory database from the network)
advisories:
    cargo deny check advisories

# All tests
test:
    cargo test --release --workspace

# Everything that CI checks
ci:
    .ci/run

# Start to the whole trace and the end, five times
bench-up:
    cargo build --release
    bash -c 'for run in 1 2 3 4 5; do time target/release/lantern up --once >/dev/null; done'

# What the benches measure us against: installed and built once
peers:
    bench/peers.sh

# A bench (shim, crash, proxy, streams) and its options: 10 s a measurement, 5 turns, a table in target/bench
bench NAME *OPTIONS:
    cargo build --profile dist --locked -p lantern-shim -p lantern-proxy -p lantern-bench
    target/dist/lantern-bench {{NAME}} {{OPTIONS}}

# Tokens per second over HTTP, with and without the proxy: random weights of OPT-125m's shapes, on cpu or cuda
bench-serve DEVICE="cpu" *OPTIONS:
    mkdir -p target/bench/opt-125m
    cargo bench -p lantern-inference --bench engine -- --keep "$PWD/target/bench/opt-125m"
    cargo build --profile dist --locked -p lantern-inference -p lantern-proxy -p lantern-bench \
        {{ if DEVICE == "cuda" { "--features lantern-inference/cuda" } else { "" } }}
    target/dist/lantern-bench serve --model target/bench/opt-125m --device {{DEVICE}} {{OPTIONS}}

# A fuzz target (fuzz/targets), with the stable compiler; what it finds is in fuzz/target/artifacts
fuzz TARGET RUNS="100000" *OPTIONS:
    fuzz/run.sh {{TARGET}} {{RUNS}} {{OPTIONS}}

# Traces of llama.cpp's server in the real Jaeger: installs and builds it (minutes, once), with a model of yours
llama GGUF:
    LANTERN_TEST_GGUF="$(realpath {{GGUF}})" \
        cargo test --release -p lantern --test it -- --ignored llama_cpps_server

# Greedy tokens of Gemma-3-270m beside llama.cpp's, with a gemma-3-270m-q4_k_m.gguf of yours
gemma GGUF:
    LANTERN_GEMMA_GGUF="$(realpath {{GGUF}})" \
        cargo test --release -p lantern-inference --test it -- --ignored gemma_3_writes_what_llama_cpp_writes

# Every way through the shim between real neighbours: the Python SDK, Jaeger, the Collector; attribute for attribute
matrix:
    tests/matrix/run.sh

# The scaled-out way between real programs: SDK, shim, Kafka, Jaeger's ingester, Cassandra, query (installs them once)
kafka:
    tests/kafka/run.sh

# The container stack, really run: a request's trace must be whole in Jaeger, by both protocols
compose-test:
    tests/compose.sh
