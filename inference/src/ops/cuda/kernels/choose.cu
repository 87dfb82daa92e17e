// The choice of tokens: the best one of each row of logits, or one by chance.
//
// A draw is the best of logits to each of which noise is added (Gumbel's: the best then falls on each as often as its
// share says), so that drawing, too, is one pass over the row. What is not to be drawn is below a bound, which is found
// by narrowing down, over all values that logits can have, the range that it is in.

#include "common.cuh"
#include "interface.h"

namespace lantern {
namespace {

constexpr int THREADS = WARP * WARP;
constexpr int WARPS = THREADS / WARP;
constexpr float LOG2_E = 1.4426950408889634f;

// Numbers in the order of unsigned integers, and back: of 16 bits or of 32.
template <class T>
struct Order;

template <>
struct Order<float> {
    static constexpr int BITS = 32;
    static __device__ uint32_t of(float value) {
        const uint32_t bits = __float_as_uint(value);
        return bits >> 31 ? ~bits : bits | 0x80000000u;
    }
    static __device__ float value(uint32_t order) {
        return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
    }
};

template <class T>
struct Order16 {
    static constexpr int BITS = 16;
    static __device__ T value(uint32_t order) {
        const uint16_t bits = order >> 15 ? order & 0x7fffu : ~order;
        return *reinterpret_cast<const T *>(&bits);
    }
};
template <>
struct Order<__half> : Order16<__half> {};
template <>
struct Order<__nv_bfloat16> : Order16<__nv_bfloat16> {};

// The greatest number so far, and where it is.
struct Best {
    float value = -INFINITY;
    uint32_t at = 0xffffffffu;

    // Of equal ones the first stays; NaN is never taken.
    __device__ void see(float other, uint32_t index) {
        if (other > value || (other == value && index < at)) {
            value = other;
            at = index;
        }
    }

    __device__ void meet_lanes() {
#pragma unroll
        for (int step = WARP / 2; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(ALL_LANES, value, step);
            see(other, __shfl_xor_sync(ALL_LANES, at, step));
        }
    }
};

// A row of logits, for all threads of a block. VECTORS: rows are whole numbers of 16 bytes.
template <class T, bool VECTORS>
struct Row {
    const T *logits;
    int size;

    // Calls `see` with this thread's logits and their indices.
    template <class See>
    __device__ void each(See see) const {
        constexpr int WIDTH = VECTORS ? sizeof(uint4) / sizeof(T) : 1;
#pragma unroll 8
        for (int i = threadIdx.x * WIDTH; i < size; i += THREADS * WIDTH) {
            if (VECTORS) {
                const uint4 bits = load16(logits + i);
                const T *numbers = reinterpret_cast<const T *>(&bits);
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) {
                    see(to_float(numbers[k]), i + k);
                }
            } else {
                see(to_float(logits[i]), i);
            }
        }
    }

    // The best of the row by what `score` gives for a logit and its index, for all threads.
    template <class Score>
    __device__ Best best(Score score) const {
        Best best;
        each([&](float logit, uint32_t index) { best.see(score(logit, index), index); });
        __shared__ Best met[WARPS];
        best.meet_lanes();
        __syncthreads();
        if (threadIdx.x % WARP == 0) {
            met[threadIdx.x / WARP] = best;
        }
        __syncthreads();
        best = met[threadIdx.x % WARP];
        best.meet_lanes();
        return best;
    }

    // For each of `bounds` what `weight` gives for the logits not below it, added up, for all threads.
    template <int COUNT, class Weight>
    __device__ void add_up(const float (&bounds)[COUNT], float (&sums)[COUNT], Weight weight) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            sums[i] = 0.f;
        }
        each([&](float logit, uint32_t) {
            const float own = weight(logit);
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                sums[i] += logit >= bounds[i] ? own : 0.f;
            }
        });
        __shared__ float met[COUNT][WARPS];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            sums[i] = sum_lanes(sums[i]);
            if (threadIdx.x % WARP == 0) {
                met[i][threadIdx.x / WARP] = sums[i];
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            sums[i] = sum_lanes(met[i][threadIdx.x % WARP]);
        }
    }

    // The greatest value from which on the logits' weights are `wanted` together, or `least` if all are less. What is
    // below `least` weighs nothing.
    template <class Weight>
    __device__ float bound(float wanted, float least, Weight weight) const {
        constexpr int BITS = 3, COUNT = (1 << BITS) - 1;
        uint32_t order = 0;
        for (int left = Order<T>::BITS; left > 0;) {
            const int bits = left < BITS ? left : BITS;
            left -= bits;
            float values[COUNT], sums[COUNT];
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                values[i] = i + 1 < 1 << bits ? to_float(Order<T>::value(order | (i + 1u) << left)) : NAN;
            }
            add_up(values, sums, weight);
            uint32_t taken = 0;
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                // What is not a number, beyond infinity, is neither.
                const bool is_enough = values[i] >= least ? sums[i] >= wanted : values[i] < least;
                taken = is_enough ? i + 1 : taken;
            }
            order |= taken << left;
        }
        return fmaxf(to_float(Order<T>::value(order)), least);
    }
};

// 64 bits of which each depends on all of these: SplitMix64's finalizer.
__device__ uint64_t mix(uint64_t bits) {
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9ull;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebull;
    return bits ^ bits >> 31;
}

// Gumbel's noise of a token, for logits by the base of 2.
__device__ float noise(uint64_t key, uint32_t token) {
    const uint32_t bits = mix(key + (token + 1ull) * 0x9e3779b97f4a7c15ull) >> 41;
    // 23 bits, in the middle of their steps: neither 0 nor 1.
    const float chance = (bits + 0.5f) * 0x1p-23f;
    return -log2f(-log2f(chance));
}

// Grid: rows.
template <class T, bool VECTORS>
__global__ void __launch_bounds__(THREADS)
    choose(const T *logits, const LanternDraws draws, uint32_t *chosen, int vocabulary) {
    wait_for_predecessors();
    start_dependents();
    const int at = blockIdx.x;
    const Row<T, VECTORS> row = {logits + static_cast<size_t>(at) * vocabulary, vocabulary};
    Best best = row.best([](float logit, uint32_t) { return logit; });
    const float temperature = draws.temperatures[at];
    // A best one of infinity leaves no shares, as one that is not a number.
    if (temperature > 0.f && best.value < INFINITY && best.value > -INFINITY) {
        const float most = best.value, scale = LOG2_E / temperature;
        const float min_p = draws.min_p[at], top_p = draws.top_p[at];
        const uint32_t top_k = draws.top_k[at];
        float least = min_p > 0.f ? most + logf(min_p) * temperature : -INFINITY;
        if (top_k > 0 && top_k < static_cast<uint32_t>(vocabulary)) {
            least = row.bound(top_k, least, [](float) { return 1.f; });
        }
        if (top_p < 1.f) {
            const auto share = [=](float logit) { return exp2f((logit - most) * scale); };
            const float bounds[1] = {least};
            float sums[1];
            row.add_up(bounds, sums, share);
            least = row.bound(top_p * sums[0], least, share);
        }
        const uint64_t key = static_cast<uint64_t>(draws.keys_high[at]) << 32 | draws.keys_low[at];
        best = row.best([=](float logit, uint32_t token) {
            return logit >= least ? (logit - most) * scale + noise(key, token) : -INFINITY;
        });
    } else if (temperature > 0.f) {
        best.at = 0xffffffffu;
    }
    if (threadIdx.x == 0) {
        chosen[at] = best.at;
    }
}

}  // namespace
}  // namespace lantern

using namespace lantern;

extern "C" cudaError_t lantern_choose(const void *logits, const LanternDraws *draws, uint32_t *chosen, int rows,
                                      int vocabulary, int type, cudaStream_t stream) {
    return with_type(type, [&](auto *typed) {
        using T = Pointee<decltype(typed)>;
        const bool vectors = vocabulary * sizeof(T) % sizeof(uint4) == 0;
        const auto kernel = vectors ? choose<T, true> : choose<T, false>;
        return launch(kernel, rows, THREADS, 0, stream, static_cast<const T *>(logits), *draws, chosen, vocabulary);
    });
}
