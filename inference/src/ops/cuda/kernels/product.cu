// Products of activations and weights: which kernel takes which.

#include "skinny.cuh"
#include "tiled.cuh"

namespace lantern {
namespace {

// Any type and any shape, a warp for each number: f32 and odd sizes, and what the others are tested against.
template <class T, bool GATED>
__global__ void plain_product(const LanternProduct p) {
    constexpr int TILES = GATED ? 2 : 1;
    start_dependents();
    wait_for_predecessors();
    const int results = GATED ? p.outputs / 2 : p.outputs;
    const size_t at = static_cast<size_t>(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (at >= static_cast<size_t>(p.rows) * results) {
        return;
    }
    const int result = at % results, lane = threadIdx.x % WARP;
    const T *x = static_cast<const T *>(p.x) + at / results * p.inputs;
    float total[TILES];
    for (int tile = 0; tile < TILES; ++tile) {
        const size_t row = result + static_cast<size_t>(tile) * results;
        const T *weight = static_cast<const T *>(p.weight) + row * p.inputs;
        float sum = 0.f;
        for (int i = lane; i < p.inputs; i += WARP) {
            sum += to_float(x[i]) * to_float(weight[i]);
        }
        total[tile] = sum_lanes(sum) + (p.bias ? to_float(static_cast<const T *>(p.bias)[row]) : 0.f);
    }
    if (lane == 0) {
        const float value = combined(total[0], total[TILES - 1], p.activation, GATED);
        const float residual = p.residual ? to_float(static_cast<const T *>(p.residual)[at]) : 0.f;
        static_cast<T *>(p.out)[at] = from_float<T>(value + residual);
    }
}

template <class T>
cudaError_t run_plain(const LanternProduct &p, cudaStream_t stream) {
    constexpr int WARPS = 8;
    const size_t numbers = static_cast<size_t>(p.rows) * (p.gated ? p.outputs / 2 : p.outputs);
    const auto kernel = p.gated ? plain_product<T, true> : plain_product<T, false>;
    return launch(kernel, static_cast<unsigned>((numbers + WARPS - 1) / WARPS), WARPS * WARP, 0, stream, p);
}

template <class T>
cudaError_t run(const LanternProduct &p, cudaStream_t stream) {
    if (p.norm.kind != LANTERN_NO_NORM && !skinny::stages(p.rows, p.inputs)) {
        return cudaErrorInvalidValue;
    }
    if (skinny::fits(p.rows, p.inputs)) {
        return skinny::run<T>(p, stream);
    }
    if (tiled::fits(p.inputs, p.outputs, p.gated)) {
        return tiled::run<T>(p, stream);
    }
    return run_plain<T>(p, stream);
}

}  // namespace
}  // namespace lantern

extern "C" int lantern_product_norms(int rows, int inputs, int type) {
    return type != LANTERN_F32 && lantern::skinny::stages(rows, inputs);
}

extern "C" cudaError_t lantern_product(const LanternProduct *product, cudaStream_t stream) {
    switch (product->type) {
        case LANTERN_F16:
            return lantern::run<__half>(*product, stream);
        case LANTERN_BF16:
            return lantern::run<__nv_bfloat16>(*product, stream);
        default:
            return product->norm.kind == LANTERN_NO_NORM ? lantern::run_plain<float>(*product, stream)
                                                         : cudaErrorInvalidValue;
    }
}

extern "C" cudaError_t lantern_plain_product(const LanternProduct *product, cudaStream_t stream) {
    switch (product->type) {
        case LANTERN_F16:
            return lantern::run_plain<__half>(*product, stream);
        case LANTERN_BF16:
            return lantern::run_plain<__nv_bfloat16>(*product, stream);
        default:
            return lantern::run_plain<float>(*product, stream);
    }
}
