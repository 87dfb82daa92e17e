// What is done row by row: embeddings, norms, gathering, the choice of tokens.

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
    start_dependents();
    wait_for_predecessors();
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
    start_dependents();
    wait_for_predecessors();
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
    start_dependents();
    wait_for_predecessors();
    const size_t from = static_cast<size_t>(rows[blockIdx.x]) * size, to = static_cast<size_t>(blockIdx.x) * size;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        out[to + i] = x[from + i];
    }
}

// Grid: parts of the vocabulary, rows.
template <class T>
__global__ void find_best(const T *logits, unsigned long long *best, int vocabulary) {
    start_dependents();
    wait_for_predecessors();
    const T *row = logits + static_cast<size_t>(blockIdx.y) * vocabulary;
    unsigned long long highest = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < vocabulary; i += gridDim.x * blockDim.x) {
        highest = higher(highest, ranked(to_float(row[i]), i));
    }
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        highest = higher(highest, __shfl_xor_sync(ALL_LANES, highest, step));
    }
    if (threadIdx.x % WARP == 0) {
        atomicMax(best + blockIdx.y, highest);
    }
}

__global__ void take_best(unsigned long long *best, uint32_t *chosen, int rows) {
    start_dependents();
    wait_for_predecessors();
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) {
        chosen[row] = best[row] ? 0xffffffffu - static_cast<uint32_t>(best[row]) : 0xffffffffu;
        best[row] = 0;
    }
}

__global__ void carry(uint32_t *ids, const uint32_t *rows, const uint32_t *from, const uint32_t *chosen, int count) {
    start_dependents();
    wait_for_predecessors();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        ids[rows[i]] = chosen[from[i]];
    }
}

}  // namespace
}  // namespace lantern

using namespace lantern;

// Calls `run` with a null pointer of the type that `type` names.
template <class Run>
static cudaError_t with_type(int type, Run run) {
    switch (type) {
        case LANTERN_F16:
            return run(static_cast<__half *>(nullptr));
        case LANTERN_BF16:
            return run(static_cast<__nv_bfloat16 *>(nullptr));
        default:
            return run(static_cast<float *>(nullptr));
    }
}

template <class Pointer>
using Pointee = typename std::remove_pointer<Pointer>::type;

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

extern "C" cudaError_t lantern_argmax(const void *logits, unsigned long long *best, uint32_t *chosen, int rows,
                                      int vocabulary, int type, cudaStream_t stream) {
    constexpr int MOST_PARTS = 64, ENOUGH_BLOCKS = 1056;
    int parts = ENOUGH_BLOCKS / rows;
    parts = parts < 1 ? 1 : parts > MOST_PARTS ? MOST_PARTS : parts;
    const cudaError_t error = with_type(type, [&](auto *typed) {
        using T = Pointee<decltype(typed)>;
        return launch(find_best<T>, dim3(parts, rows), ROW_THREADS, 0, stream, static_cast<const T *>(logits), best,
                      vocabulary);
    });
    if (error != cudaSuccess) {
        return error;
    }
    return launch(take_best, ceil_div(rows, ROW_THREADS), ROW_THREADS, 0, stream, best, chosen, rows);
}

extern "C" cudaError_t lantern_carry(uint32_t *ids, const uint32_t *rows, const uint32_t *from,
                                     const uint32_t *chosen, int count, cudaStream_t stream) {
    return launch(carry, ceil_div(count, ROW_THREADS), ROW_THREADS, 0, stream, ids, rows, from, chosen, count);
}
