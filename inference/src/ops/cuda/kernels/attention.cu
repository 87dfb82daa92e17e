// Attention over pages: which kernel takes which step, and a plain one for all types and sizes.

#include "attention.h"
#include "place.cuh"

namespace lantern {
namespace {

// One row's queries and keys, normed and turned, in place; keys and values to their pages. A warp for each head.
template <class T>
__global__ void place(const LanternAttention p, T *qkv) {
    start_dependents();
    wait_for_predecessors();
    const int all = p.heads + 2 * p.kv_heads;
    const int at = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (at >= p.rows * all) {
        return;
    }
    const int row = at / all, head = at % all;
    T *x = qkv + static_cast<size_t>(at) * p.dim;
    const bool is_query = head < p.heads, is_value = head >= p.heads + p.kv_heads;
    const LanternNorm &norm = is_query ? p.query_norm : p.key_norm;
    if (!is_value && norm.kind != LANTERN_NO_NORM) {
        float sum = 0.f, squares = 0.f;
        for (int i = lane; i < p.dim; i += WARP) {
            sum += to_float(x[i]);
            squares += to_float(x[i]) * to_float(x[i]);
        }
        const float mean = norm.kind == LANTERN_LAYER_NORM ? sum_lanes(sum) / p.dim : 0.f;
        const float scale = rsqrtf(sum_lanes(squares) / p.dim - mean * mean + norm.eps);
        for (int i = lane; i < p.dim; i += WARP) {
            const float bias = norm.bias ? to_float(static_cast<const T *>(norm.bias)[i]) : 0.f;
            const float weight = to_float(static_cast<const T *>(norm.weight)[i]);
            x[i] = from_float<T>((to_float(x[i]) - mean) * scale * weight + bias);
        }
        __syncwarp();
    }
    if (!is_value && p.frequencies) {
        for (int i = lane; i < p.dim / 2; i += WARP) {
            float sine, cosine;
            sincosf(static_cast<float>(p.positions[row]) * p.frequencies[i], &sine, &cosine);
            const float low = to_float(x[i]), high = to_float(x[i + p.dim / 2]);
            x[i] = from_float<T>(low * cosine - high * sine);
            x[i + p.dim / 2] = from_float<T>(high * cosine + low * sine);
        }
        __syncwarp();
    }
    if (!is_query && p.slots[row] != NO_SLOT) {
        const int kv_head = (head - p.heads) % p.kv_heads;
        const size_t slot = p.slots[row];
        T *pages = static_cast<T *>(is_value ? p.values : p.keys);
        T *to = pages + ((slot / PAGE_TOKENS * p.kv_heads + kv_head) * PAGE_TOKENS + slot % PAGE_TOKENS) * p.dim;
        for (int i = lane; i < p.dim; i += WARP) {
            to[i] = x[i];
        }
    }
}

// One warp for each row and head of placed queries, a token at a time.
template <class T>
__global__ void plain_attention(const LanternAttention p) {
    constexpr int MOST = 16;  // numbers of a head on each lane: up to 512
    start_dependents();
    wait_for_predecessors();
    const int at = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (at >= p.rows * p.heads) {
        return;
    }
    const int row = at / p.heads, head = at % p.heads, kv_head = head / (p.heads / p.kv_heads);
    const T *query = static_cast<const T *>(p.qkv) +
                     (static_cast<size_t>(row) * (p.heads + 2 * p.kv_heads) + head) * p.dim;
    const uint32_t *table = p.tables + p.table_starts[p.span_of[row]];
    const int position = p.positions[row];
    const int first = p.window > 0 ? max(0, position + 1 - p.window) : 0;
    float best = -INFINITY, total = 0.f, sums[MOST] = {};
    for (int token = first; token <= position; ++token) {
        const size_t from = page_offset(p, table, token, kv_head);
        const T *key = static_cast<const T *>(p.keys) + from, *value = static_cast<const T *>(p.values) + from;
        float score = 0.f;
        for (int i = lane; i < p.dim; i += WARP) {
            score += to_float(query[i]) * to_float(key[i]);
        }
        score = sum_lanes(score) * p.scale;
        const float raised = fmaxf(best, score);
        const float keep = expf(best - raised), take = expf(score - raised);
        best = raised;
        total = total * keep + take;
#pragma unroll
        for (int i = 0; i < MOST; ++i) {
            if (i * WARP + lane < p.dim) {
                sums[i] = sums[i] * keep + take * to_float(value[i * WARP + lane]);
            }
        }
    }
    T *out = static_cast<T *>(p.out) + static_cast<size_t>(at) * p.dim;
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
        if (i * WARP + lane < p.dim) {
            out[i * WARP + lane] = from_float<T>(sums[i] / total);
        }
    }
}

template <class T>
cudaError_t run_place(const LanternAttention &p, cudaStream_t stream) {
    constexpr int WARPS = 8;
    const int heads = p.heads + 2 * p.kv_heads;
    // The product's output is this operation's to change: nothing else reads it.
    auto *qkv = static_cast<T *>(const_cast<void *>(p.qkv));
    return launch(place<T>, ceil_div(p.rows * heads, WARPS), WARPS * WARP, 0, stream, p, qkv);
}

template <class T>
cudaError_t run_plain(const LanternAttention &p, cudaStream_t stream) {
    constexpr int WARPS = 8;
    const cudaError_t error = run_place<T>(p, stream);
    if (error != cudaSuccess) {
        return error;
    }
    return launch(plain_attention<T>, ceil_div(p.rows * p.heads, WARPS), WARPS * WARP, 0, stream, p);
}

// Whether there are kernels for heads like these.
bool fits(const LanternAttention &p) {
    const int group = p.heads / p.kv_heads;
    const bool grouped = group == 1 || group == 2 || group == 4 || group == 8;
    const bool sized = p.dim == 64 || p.dim == 128 || (p.dim == 256 && group <= 4);
    return grouped && sized;
}

template <class T>
cudaError_t run(const LanternAttention &p, cudaStream_t stream) {
    if (!fits(p)) {
        return run_plain<T>(p, stream);
    }
    if (p.tiles == 0) {
        return attend_singles<T>(p, false, stream);
    }
    cudaError_t error = run_place<T>(p, stream);
    if (error == cudaSuccess && p.singles > 0) {
        error = attend_singles<T>(p, true, stream);
    }
    return error == cudaSuccess ? attend_tiles<T>(p, stream) : error;
}

}  // namespace
}  // namespace lantern

extern "C" int lantern_attention_splits(int rows, int kv_heads) {
    constexpr int ENOUGH_BLOCKS = 132, MOST = 32;
    const int splits = ENOUGH_BLOCKS / (rows * kv_heads);
    return splits < 1 ? 1 : splits > MOST ? MOST : splits;
}

extern "C" size_t lantern_attention_scratch_bytes(int rows, int heads, int dim, int splits) {
    return static_cast<size_t>(rows) * heads * (dim + 2) * splits * sizeof(float);
}

extern "C" cudaError_t lantern_attention(const LanternAttention *attention, cudaStream_t stream) {
    switch (attention->type) {
        case LANTERN_F16:
            return lantern::run<__half>(*attention, stream);
        case LANTERN_BF16:
            return lantern::run<__nv_bfloat16>(*attention, stream);
        default:
            return lantern::run_plain<float>(*attention, stream);
    }
}
