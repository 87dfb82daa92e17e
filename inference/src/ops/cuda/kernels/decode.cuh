// Attention of single rows, each of a sequence of its own, as fast as keys and values can be read.
//
// A block takes the heads that share one head of keys in one row, or, where rows are few and contexts long, a part of
// its context. A head of one token lies on DIM / 8 lanes, so a warp reads 16-byte neighbours of 2 or more tokens at
// once; each such set of lanes keeps a softmax of its own over the tokens that it saw, and they meet only at
// the end. Keys and values of earlier tokens are asked for before the kernel waits for the one before it. The
// row's own token never passes through the pages: one set of lanes writes it there and takes it along.
//
// Tried on an H200, all layers of a step at context 512, in us: at batch 256 of OPT-125m with as many registers as it
// likes 1343, capped at 128 (four blocks on a multiprocessor) 1239, at 96 1354, since it spills; at batch 1 of
// Llama-3-8B in one part a row 600, in parts of 64 tokens 351; at batch 8 in one part 657, in parts for 256 blocks 913,
// for 128 blocks 507.
#pragma once

#include "place.cuh"

namespace lantern {
namespace decode {

constexpr int UNIT_LOADS = 4;     // of keys, and as many of values, in one unit

// The softmax of GROUP heads over the tokens seen so far; 8 numbers of each head.
template <int GROUP>
struct Softmax {
    float best[GROUP], total[GROUP], sums[GROUP][8];

    __device__ Softmax() {
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
            best[g] = -INFINITY;
            total[g] = 0.f;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                sums[g][i] = 0.f;
            }
        }
    }

    // Brings head g to a common greatest score; returns it.
    __device__ float raise(int g, float score) {
        const float raised = fmaxf(best[g], score);
        const float scale = raised == -INFINITY ? 1.f : exp2f(best[g] - raised);
        best[g] = raised;
        total[g] *= scale;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            sums[g][i] *= scale;
        }
        return raised;
    }

    __device__ void add(int g, float weight, const float (&value)[8]) {
        total[g] += weight;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            sums[g][i] += weight * value[i];
        }
    }

    __device__ void meet(int g, float other_best, float other_total, const float (&other)[8]) {
        const float raised = raise(g, other_best);
        const float scale = other_best == -INFINITY ? 0.f : exp2f(other_best - raised);
        total[g] += other_total * scale;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            sums[g][i] += other[i] * scale;
        }
    }
};

template <class T, int DIM, int GROUP, int LOADS = UNIT_LOADS>
struct Lanes {
    static constexpr int HEAD = HEAD_LANES<DIM>;
    static constexpr int TOKENS = WARP / HEAD;           // in one load
    static constexpr int UNIT = TOKENS * LOADS;     // tokens

    uint4 keys[LOADS], values[LOADS];

    // Asks for the keys and values of a unit, zeros past the end.
    __device__ void load(const LanternAttention &p, const uint32_t *table, int kv_head, int from, int end) {
        const int lane = threadIdx.x % WARP, mine = lane / HEAD, part = lane % HEAD;
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            const int token = from + i * TOKENS + mine;
            if (token < end) {
                const size_t at = page_offset(p, table, token, kv_head) + part * 8;
                keys[i] = load_once(static_cast<const T *>(p.keys) + at);
                values[i] = load_once(static_cast<const T *>(p.values) + at);
            } else {
                keys[i] = values[i] = make_uint4(0, 0, 0, 0);
            }
        }
    }

    __device__ void attend(Softmax<GROUP> &softmax, const float (&queries)[GROUP][8], int from, int end) const {
        const int mine = threadIdx.x % WARP / HEAD;
        float scores[GROUP][LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            float key[8];
            unpack8<T>(keys[i], key);
#pragma unroll
            for (int g = 0; g < GROUP; ++g) {
                float score = 0.f;
#pragma unroll
                for (int k = 0; k < 8; ++k) {
                    score += queries[g][k] * key[k];
                }
                score = sum_lanes<HEAD>(score);
                scores[g][i] = from + i * TOKENS + mine < end ? score : -INFINITY;
            }
        }
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
            float highest = scores[g][0];
#pragma unroll
            for (int i = 1; i < LOADS; ++i) {
                highest = fmaxf(highest, scores[g][i]);
            }
            const float best = softmax.raise(g, highest);
#pragma unroll
            for (int i = 0; i < LOADS; ++i) {
                scores[g][i] = best == -INFINITY ? 0.f : exp2f(scores[g][i] - best);
            }
        }
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            float value[8];
            unpack8<T>(values[i], value);
#pragma unroll
            for (int g = 0; g < GROUP; ++g) {
                softmax.add(g, scores[g][i], value);
            }
        }
    }
};

// What parts of a context give, to meet: per row, kv head, part and head of the group, best, total and DIM sums.
template <int DIM, int GROUP>
__device__ float *part_of(const LanternAttention &p, int kv_head, int part) {
    const size_t index = (static_cast<size_t>(blockIdx.y) * p.kv_heads + kv_head) * p.splits + part;
    return p.scratch + index * GROUP * (DIM + 2);
}

// The last block of a row's parts to arrive adds them up, in order.
template <class T, int DIM, int GROUP>
__device__ void meet_parts(const LanternAttention &p, int row, int kv_head, int parts) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *arrived = p.arrivals + blockIdx.y * p.kv_heads + kv_head;
        last = atomicAdd(arrived, 1) == static_cast<uint32_t>(parts - 1);
        if (last) {
            *arrived = 0;
        }
    }
    __syncthreads();
    if (!last) {
        return;
    }
    __threadfence();
    for (int i = threadIdx.x; i < GROUP * DIM; i += blockDim.x) {
        const int g = i / DIM, d = i % DIM;
        float best = -INFINITY, total = 0.f, sum = 0.f;
        for (int part = 0; part < parts; ++part) {
            const float *from = part_of<DIM, GROUP>(p, kv_head, part) + g * (DIM + 2);
            const float its_best = __ldcg(from);
            const float raised = fmaxf(best, its_best);
            const float keep = exp2f(best - raised), take = exp2f(its_best - raised);
            total = total * keep + __ldcg(from + 1) * take;
            sum = sum * keep + __ldcg(from + 2 + d) * take;
            best = raised;
        }
        const size_t at = (static_cast<size_t>(row) * p.heads + kv_head * GROUP) * DIM + i;
        static_cast<T *>(p.out)[at] = from_float<T>(sum / total);
    }
}

// Grid: kv heads, rows, parts. `placed`: rows are those of `single_rows`, and their keys and values are in the pages.
template <class T, int DIM, int GROUP, int WARPS>
__global__ void __launch_bounds__(WARPS *WARP, GROUP == 1 && WARPS == 4 ? 4 : 1)
    attend(const LanternAttention p, bool placed) {
    using Unit = Lanes<T, DIM, GROUP>;
    constexpr int HEAD = Unit::HEAD;
    // Tokens: a part that is shorter is not worth the meeting. What is under way at a time, or half of it where
    // each token is more work.
    constexpr int MIN_SHARE = 2 * WARPS * Unit::UNIT / (GROUP > 1 ? 2 : 1);
    __shared__ float met[WARPS][GROUP][DIM + 2];
    if (placed) {
        wait_for_predecessors();
    }

    const int kv_head = blockIdx.x, row = placed ? p.single_rows[blockIdx.y] : blockIdx.y;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int mine = lane / HEAD, part = lane % HEAD;
    const uint32_t position = p.positions[row];
    const uint32_t *table = p.tables + p.table_starts[p.span_of[row]];
    // Tokens before the row's own: [first, context). With a window the row itself is one of those it sees.
    const int context = position;
    const int first = p.window > 0 ? max(0, context + 1 - p.window) : 0;
    const int wanted = min(p.splits, max(1, (context - first) / MIN_SHARE));
    const int share = max(1, ((context - first + wanted - 1) / wanted + PAGE_TOKENS - 1) / PAGE_TOKENS) * PAGE_TOKENS;
    // Fewer where whole pages make the shares larger: a part without tokens would have nothing to meet with.
    const int parts = max(1, (context - first + share - 1) / share);
    if (static_cast<int>(blockIdx.z) >= parts) {
        return;  // the first part's block waits for the kernel before this one
    }
    const int begin = first + blockIdx.z * share, end = min(context, begin + share);

    Unit even, odd;
    int from = begin + warp * Unit::UNIT;
    constexpr int STRIDE = WARPS * Unit::UNIT;
    even.load(p, table, kv_head, from, end);
    odd.load(p, table, kv_head, from + STRIDE, end);

    wait_for_predecessors();
    start_dependents();
    const T *own = static_cast<const T *>(p.qkv) + static_cast<size_t>(row) * (p.heads + 2 * p.kv_heads) * DIM;
    const Placer<T, DIM> placer(p, part, position, !placed);
    float queries[GROUP][8];
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
        unpack8<T>(load16(own + (kv_head * GROUP + g) * DIM + part * 8), queries[g]);
        if (!placed) {
            placer.place(queries[g], p.query_norm, part);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            queries[g][i] *= p.scale * 1.44269504f;  // exp2 is the machine's own
        }
    }
    Softmax<GROUP> softmax;
    if (blockIdx.z == 0 && warp == 0) {
        float key[8], value[8];
        unpack8<T>(load16(own + (p.heads + kv_head) * DIM + part * 8), key);
        unpack8<T>(load16(own + (p.heads + p.kv_heads + kv_head) * DIM + part * 8), value);
        if (!placed) {
            placer.place(key, p.key_norm, part);
        }
        const uint4 rounded = pack8<T>(key);
        if (!placed && mine == 0 && p.slots[row] != NO_SLOT) {
            const size_t slot = p.slots[row];
            const size_t at = ((slot / PAGE_TOKENS * p.kv_heads + kv_head) * PAGE_TOKENS + slot % PAGE_TOKENS) * DIM;
            *reinterpret_cast<uint4 *>(static_cast<T *>(p.keys) + at + part * 8) = rounded;
            *reinterpret_cast<uint4 *>(static_cast<T *>(p.values) + at + part * 8) = pack8<T>(value);
        }
        unpack8<T>(rounded, key);
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
            float score = 0.f;
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                score += queries[g][i] * key[i];
            }
            score = sum_lanes<HEAD>(score);
            if (mine == 0) {
                softmax.raise(g, score);
                softmax.add(g, 1.f, value);
            }
        }
    }
    for (; from < end; from += 2 * STRIDE) {
        even.attend(softmax, queries, from, end);
        even.load(p, table, kv_head, from + 2 * STRIDE, end);
        odd.attend(softmax, queries, from + STRIDE, end);
        odd.load(p, table, kv_head, from + 3 * STRIDE, end);
    }

    // The sets of lanes of a warp, then the warps.
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
#pragma unroll
        for (int step = HEAD; step < WARP; step *= 2) {
            float other[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                other[i] = __shfl_xor_sync(ALL_LANES, softmax.sums[g][i], step);
            }
            const float best = __shfl_xor_sync(ALL_LANES, softmax.best[g], step);
            const float total = __shfl_xor_sync(ALL_LANES, softmax.total[g], step);
            softmax.meet(g, best, total, other);
        }
        if (mine == 0) {
            if (part == 0) {
                met[warp][g][0] = softmax.best[g];
                met[warp][g][1] = softmax.total[g];
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                met[warp][g][2 + part * 8 + i] = softmax.sums[g][i];
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < GROUP * DIM; i += blockDim.x) {
        const int g = i / DIM, d = i % DIM;
        float best = -INFINITY;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            best = fmaxf(best, met[w][g][0]);
        }
        float total = 0.f, sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float scale = exp2f(met[w][g][0] - best);
            total += met[w][g][1] * scale;
            sum += met[w][g][2 + d] * scale;
        }
        if (parts == 1) {
            const size_t at = (static_cast<size_t>(row) * p.heads + kv_head * GROUP) * DIM + i;
            static_cast<T *>(p.out)[at] = from_float<T>(sum / total);
        } else {
            float *to = part_of<DIM, GROUP>(p, kv_head, blockIdx.z) + g * (DIM + 2);
            if (d == 0) {
                to[0] = best;
                to[1] = total;
            }
            to[2 + d] = sum;
        }
    }
    if (parts > 1) {
        meet_parts<T, DIM, GROUP>(p, row, kv_head, parts);
    }
}

template <class T, int DIM, int GROUP>
cudaError_t start(const LanternAttention &p, bool placed, cudaStream_t stream) {
    constexpr int FEW_BLOCKS = 264;  // two for each multiprocessor of a large GPU
    // What registers and shared memory allow.
    constexpr int MANY_WARPS = GROUP * DIM <= 128 ? 16 : GROUP * DIM <= 512 ? 8 : 4;
    const int rows = placed ? p.singles : p.rows;
    const dim3 grid(p.kv_heads, rows, p.splits);
    if (p.kv_heads * rows <= FEW_BLOCKS) {
        return launch(attend<T, DIM, GROUP, MANY_WARPS>, grid, MANY_WARPS * WARP, 0, stream, p, placed);
    }
    return launch(attend<T, DIM, GROUP, 4>, grid, 4 * WARP, 0, stream, p, placed);
}

template <class T, int DIM>
cudaError_t choose(const LanternAttention &p, bool placed, cudaStream_t stream) {
    switch (p.heads / p.kv_heads) {
        case 1:
            return start<T, DIM, 1>(p, placed, stream);
        case 2:
            return start<T, DIM, 2>(p, placed, stream);
        case 4:
            return start<T, DIM, 4>(p, placed, stream);
        default:
            if constexpr (DIM <= 128) {
                return start<T, DIM, 8>(p, placed, stream);
            }
            return cudaErrorInvalidValue;
    }
}

// `placed`: see `attend`.
template <class T>
cudaError_t run(const LanternAttention &p, bool placed, cudaStream_t stream) {
    switch (p.dim) {
        case 64:
            return choose<T, 64>(p, placed, stream);
        case 128:
            return choose<T, 128>(p, placed, stream);
        default:
            return choose<T, 256>(p, placed, stream);
    }
}

}  // namespace decode
}  // namespace lantern
