// What is done row by row: embeddings, norms, gathering, tokens carried over.

#include "activation.cuh"
#include "common.cuh"
#include "interface.h"

namespace lantern {
namespace {

constexpr int ROW_THREADS = 256;

template <class T>
__global__ void embed(const LanternEmbedding p) {
    start_dependents();
    wait_for_predecessors();
    const int row = blockIdx.x;
    const T *token = nullptr, *position = nullptr;
    if (p.tokens) {
        token = static_cast<const T *>(p.tokens) + static_cast<size_t>(p.ids[row]) * p.size;
    }
    if (p.table) {
        position = static_cast<const T *>(p.table) + static_cast<size_t>(p.positions[row] + p.offset) * p.size;
    }
    for (int i = threadIdx.x; i < p.size; i += blockDim.x) {
        float value = token ? to_float(token[i]) * p.scale : 0.f;
        if (position) {
            value += to_float(position[i]);
        }
        static_cast<T *>(p.out)[static_cast<size_t>(row) * p.size + i] = from_float<T>(value);
    }
}

// The sum over the block's threads, for all of them.
__device__ float sum_block(float value) {
    __shared__ float sums[WARP];
    value = sum_lanes(value);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        sums[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float total = 0.f;
    for (int warp = 0; warp < blockDim.x / WARP; ++warp) {
        total += sums[warp];
    }
    return total;
}

template <class T>
__global__ void norm(const T *x, const T *residual, T *out, const LanternNorm norm, int size) {
    wait_for_predecessors();
    start_dependents();
    const size_t start = static_cast<size_t>(blockIdx.x) * size;
    const T *weight = static_cast<const T *>(norm.weight), *bias = static_cast<const T *>(norm.bias);
    float mean = 0.f;
    if (norm.kind == LANTERN_LAYER_NORM) {
        float sum = 0.f;
        for (int i = threadIdx.x; i < size; i += blockDim.x) {
            sum += to_float(x[start + i]);
        }
        mean = sum_block(sum) / size;
    }
    float squares = 0.f;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const float from_mean = to_float(x[start + i]) - mean;
        squares += from_mean * from_mean;
    }
    const float scale = rsqrtf(sum_block(squares) / size + norm.eps);
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        float value = (to_float(x[start + i]) - mean) * scale * to_float(weight[i]);
        if (bias) {
            value += to_float(bias[i]);
        }
        if (residual) {
            value += to_float(residual[start + i]);
        }
        out[start + i] = from_float<T>(value);
    }
}

// Grid: rows, parts of a row.
template <class T>
__global__ void activate(const T *x, T *out, int results, int activation, bool gated) {
    wait_for_predecessors();
    start_dependents();
    const T *row = x + static_cast<size_t>(blockIdx.x) * results * (gated ? 2 : 1);
    const int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < results) {
        const float rest = gated ? to_float(row[results + i]) : 0.f;
        const float value = combined(to_float(row[i]), rest, activation, gated);
        out[static_cast<size_t>(blockIdx.x) * results + i] = from_float<T>(value);
    }
}

template <class T>
__global__ void gather(const T *x, const uint32_t *rows, T *out, int size) {
    wait_for_predecessors();
    start_dependents();
    const size_t from = static_cast<size_t>(rows[blockIdx.x]) * size, to = static_cast<size_t>(blockIdx.x) * size;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        out[to + i] = x[from + i];
    }
}

__global__ void carry(uint32_t *ids, const uint32_t *rows, const uint32_t *from, const uint32_t *chosen, int count) {
    wait_for_predecessors();
    start_dependents();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        ids[rows[i]] = chosen[from[i]];
    }
}

}  // namespace
}  // namespace lantern

using namespace lantern;

extern "C" cudaError_t lantern_norm(const void *x, const void *residual, void *out, const LanternNorm *by, int rows,
                                    int size, int type, cudaStream_t stream) {
    return with_type(type, [&](auto *typed) {
        using T = Pointee<decltype(typed)>;
        return launch(norm<T>, rows, ROW_THREADS, 0, stream, static_cast<const T *>(x),
                      static_cast<const T *>(residual), static_cast<T *>(out), *by, size);
    });
}

extern "C" cudaError_t lantern_activate(const void *x, void *out, int rows, int results, int activation, int gated,
                                        int type, cudaStream_t stream) {
    return with_type(type, [&](auto *typed) {
        using T = Pointee<decltype(typed)>;
        return launch(activate<T>, dim3(rows, ceil_div(results, ROW_THREADS)), ROW_THREADS, 0, stream,
                      static_cast<const T *>(x), static_cast<T *>(out), results, activation, gated != 0);
    });
}

extern "C" cudaError_t lantern_embed(const LanternEmbedding *embedding, cudaStream_t stream) {
    return with_type(embedding->type, [&](auto *typed) {
        using T = Pointee<decltype(typed)>;
        return launch(embed<T>, embedding->rows, ROW_THREADS, 0, stream, *embedding);
    });
}

extern "C" cudaError_t lantern_gather(const void *x, const uint32_t *rows, void *out, int count, int size, int type,
                                      cudaStream_t stream) {
    return with_type(type, [&](auto *typed) {
        using T = Pointee<decltype(typed)>;
        return launch(gather<T>, count, ROW_THREADS, 0, stream, static_cast<const T *>(x), rows,
                      static_cast<T *>(out), size);
    });
}

extern "C" cudaError_t lantern_carry(uint32_t *ids, const uint32_t *rows, const uint32_t *from,
                                     const uint32_t *chosen, int count, cudaStream_t stream) {
    return launch(carry, ceil_div(count, ROW_THREADS), ROW_THREADS, 0, stream, ids, rows, from, chosen, count);
}
