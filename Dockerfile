# One image per service, each with its one program, and `lantern` with the three in one process:
#
#   docker build --target proxy|inference|shim|lantern .
#
# One stage compiles for all of them, with caches that need BuildKit (every Docker since 23, and Compose v2 on older
# ones). `inference-cuda` is the same server for NVIDIA GPUs.

# Which Cargo profile: `dist` ships, `release` compiles faster.
ARG PROFILE=dist
ARG RUST_IMAGE=rust:1.95-bookworm
ARG CUDA_VERSION=13.0.1
ARG CUDA_DISTRIBUTION=ubuntu24.04

FROM ${RUST_IMAGE} AS rust

FROM scratch AS source
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
# Not built here, and yet a part of the workspace that the lock file is about.
COPY bench bench
COPY collector-shim collector-shim
COPY inference inference
COPY proxy proxy
COPY telemetry telemetry

FROM rust AS build
RUN command -v cmake >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends cmake; }
WORKDIR /src
COPY --from=source /src .
ARG PROFILE
# The target directory is a cache of the builder and not a layer: the programs are copied out of it.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --locked --workspace --exclude lantern-bench --bins --profile "$PROFILE" \
    && install -D -t /out "target/$PROFILE/lantern" "target/$PROFILE/lantern-inference" \
       "target/$PROFILE/lantern-proxy" "target/$PROFILE/lantern-shim"

# The directory is where a volume is mounted, which takes its owner from here.
FROM debian:bookworm-slim AS runtime
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 /var/cache/huggingface
COPY docker/healthcheck.sh /usr/local/bin/healthcheck.sh
ENV HF_HOME=/var/cache/huggingface
USER 10001:10001

FROM runtime AS proxy
COPY --from=build /out/lantern-proxy /usr/local/bin/
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s CMD ["healthcheck.sh", "8000", "/health"]
ENTRYPOINT ["lantern-proxy"]
CMD ["--listen", "0.0.0.0:8000"]

FROM runtime AS shim
COPY --from=build /out/lantern-shim /usr/local/bin/
EXPOSE 4317 4318 16686
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s CMD ["healthcheck.sh", "16686", "/healthz"]
ENTRYPOINT ["lantern-shim"]
CMD ["--grpc", "0.0.0.0:4317", "--http", "0.0.0.0:4318", "--viewer", "0.0.0.0:16686"]

FROM runtime AS inference
COPY models/tiny /usr/share/lantern/models/tiny
COPY --from=build /out/lantern-inference /usr/local/bin/
EXPOSE 8001
# A model may have to be downloaded first.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30m CMD ["healthcheck.sh", "8001", "/health"]
ENTRYPOINT ["lantern-inference"]
CMD ["/usr/share/lantern/models/tiny", "--served-model-name", "lantern-tiny", "--host", "0.0.0.0"]

FROM nvidia/cuda:${CUDA_VERSION}-devel-${CUDA_DISTRIBUTION} AS build-cuda
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends cmake g++ pkg-config
COPY --from=rust /usr/local/cargo /usr/local/cargo
COPY --from=rust /usr/local/rustup /usr/local/rustup
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup PATH=/usr/local/cargo/bin:${PATH}
WORKDIR /src
COPY --from=source /src .
ARG PROFILE
# No GPU is at hand while an image is built: the oldest one that it shall run on, 80 for Ampere. From there to
# Hopper our own kernels come as machine code, candle's as PTX.
ARG CUDA_COMPUTE_CAP=80
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,id=target-cuda,target=/src/target,sharing=locked \
    cargo build --locked -p lantern-inference --features cuda --profile "$PROFILE" \
    && install -D -t /out "target/$PROFILE/lantern-inference"

FROM nvidia/cuda:${CUDA_VERSION}-runtime-${CUDA_DISTRIBUTION} AS inference-cuda
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 /var/cache/huggingface
COPY docker/healthcheck.sh /usr/local/bin/healthcheck.sh
COPY models/tiny /usr/share/lantern/models/tiny
COPY --from=build-cuda /out/lantern-inference /usr/local/bin/
ENV HF_HOME=/var/cache/huggingface
USER 10001:10001
EXPOSE 8001
HEALTHCHECK --interval=5s --timeout=5s --start-period=30m CMD ["healthcheck.sh", "8001", "/health"]
ENTRYPOINT ["lantern-inference"]
CMD ["/usr/share/lantern/models/tiny", "--served-model-name", "lantern-tiny", "--host", "0.0.0.0", "--device", "cuda"]

# Last, and so what `docker build .` makes.
FROM runtime AS lantern
COPY models/tiny /usr/share/lantern/models/tiny
COPY --from=build /out/lantern /usr/local/bin/
EXPOSE 4317 4318 8000 8001 16686
HEALTHCHECK --interval=5s --timeout=5s --start-period=30m CMD ["healthcheck.sh", "8001", "/health"]
ENTRYPOINT ["lantern"]
CMD ["up", "--listen", "0.0.0.0:8000", "--inference", "0.0.0.0:8001", "--grpc", "0.0.0.0:4317", "--http", "0.0.0.0:4318", "--viewer", "0.0.0.0:16686"]
