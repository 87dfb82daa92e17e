// The choice of tokens: the best one of each row of logits, or one by chance; what it weighs by penalties; how likely
// it was.
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

// Tokens whose logits are other ones than the row's.
struct Penalized {
    uint32_t *pairs = nullptr;  // of a token and its logit's bits
    int count = 0;
    uint32_t *bits = nullptr;  // one for each token of the row: whether it is here
};

// A row of logits, for all threads of a block. VECTORS: rows are whole numbers of 16 bytes.
template <class T, bool VECTORS>
struct Row {
    const T *logits;
    int size;
    Penalized penalized = {};

    // Calls `see` with this thread's logits and their indices.
    template <class See>
    __device__ void each(See see) const {
        constexpr int WIDTH = VECTORS ? sizeof(uint4) / sizeof(T) : 1;
#pragma unroll 8
        for (int i = threadIdx.x * WIDTH; i < size; i += THREADS * WIDTH) {
            const uint32_t elsewhere = penalized.bits ? penalized.bits[i / 32] >> i % 32 : 0;
            alignas(sizeof(T) * WIDTH) T numbers[WIDTH];
            if (VECTORS) {
                *reinterpret_cast<uint4 *>(numbers) = load16(logits + i);
            } else {
                numbers[0] = logits[i];
            }
#pragma unroll
            for (int k = 0; k < WIDTH; ++k) {
                if (!(elsewhere >> k & 1)) {
                    see(to_float(numbers[k]), i + k);
                }
            }
        }
        for (int i = threadIdx.x; i < penalized.count; i += THREADS) {
            see(__uint_as_float(penalized.pairs[2 * i + 1]), penalized.pairs[2 * i]);
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

// What tokens of a row lose by having occurred, told to all threads. `bits` is shared memory.
template <class T>
__device__ Penalized penalize(const LanternChoose &p, const LanternChoice &choice, const T *logits, uint32_t *bits) {
    if (choice.penalized_count == 0) {
        return {};
    }
    for (int i = threadIdx.x; i * 32 < p.vocabulary; i += THREADS) {
        bits[i] = 0;
    }
    __syncthreads();
    const Penalized all = {p.penalized + choice.penalized, static_cast<int>(choice.penalized_count), bits};
    const auto put = [&](int i, uint32_t token, uint32_t times) {
        float logit = -INFINITY;
        if (token < p.vocabulary) {
            atomicOr(bits + token / 32, 1u << token % 32);
            const float own = to_float(logits[token]);
            const float repeated = own > 0.f ? own / choice.repetition : own * choice.repetition;
            const float presence = times > 0 ? choice.presence : 0.f;
            logit = times == LANTERN_NEVER ? logit : repeated - (times * choice.frequency + presence);
        }
        all.pairs[2 * i] = token;
        all.pairs[2 * i + 1] = __float_as_uint(logit);
    };
    const int known = all.count - (choice.counts_last ? 1 : 0);
    const uint32_t last = p.ids[p.wanted[blockIdx.x]];
    bool is_known = false;
    for (int i = threadIdx.x; i < known; i += THREADS) {
        const uint32_t token = all.pairs[2 * i], times = all.pairs[2 * i + 1];
        const bool is_last = choice.counts_last && token == last;
        is_known = is_known || is_last;
        put(i, token, is_last && times != LANTERN_NEVER ? times + 1 : times);
    }
    is_known = __syncthreads_or(is_known);
    if (choice.counts_last && threadIdx.x == 0) {
        put(known, is_known ? ~0u : last, 1);
    }
    __syncthreads();
    return all;
}

// Log probabilities by a row of which `most` is the best.
template <class T, bool VECTORS>
__device__ void say_logprobs(const Row<T, VECTORS> &row, const Best &most, uint32_t chosen, int top,
                             LanternLogprobs *out) {
    const float all[1] = {-INFINITY};
    float sums[1];
    row.add_up(all, sums, [=](float logit) { return exp2f((logit - most.value) * LOG2_E); });
    const float log_sum = most.value + logf(sums[0]), own = to_float(row.logits[chosen]);
    row.add_up(all, sums, [=](float logit) { return logit > own ? 1.f : 0.f; });
    if (threadIdx.x == 0) {
        out->chosen = own - log_sum;
        out->rank = 1 + static_cast<uint32_t>(sums[0]);
    }
    Best next = most;
    for (int i = 0; i < top; ++i) {
        if (i > 0) {
            // What is not a number is never taken.
            const Best last = next;
            next = row.best([=](float logit, uint32_t token) {
                return logit < last.value || (logit == last.value && token > last.at) ? logit : NAN;
            });
        }
        if (threadIdx.x == 0) {
            out->tokens[i] = next.at;
            out->values[i] = next.value - log_sum;
        }
    }
}

// The best of a row, or one drawn.
template <class T, bool VECTORS>
__device__ uint32_t choose_from(const Row<T, VECTORS> &row, const LanternChoice &choice) {
    Best best = row.best([](float logit, uint32_t) { return logit; });
    if (!(choice.temperature > 0.f)) {
        return best.at;
    }
    // A best one of infinity leaves no shares, as one that is not a number.
    if (!(best.value < INFINITY && best.value > -INFINITY)) {
        return ~0u;
    }
    const float most = best.value, scale = LOG2_E / choice.temperature;
    float least = choice.min_p > 0.f ? most + logf(choice.min_p) * choice.temperature : -INFINITY;
    if (choice.top_k > 0 && choice.top_k < static_cast<uint32_t>(row.size)) {
        least = row.bound(choice.top_k, least, [](float) { return 1.f; });
    }
    if (choice.top_p < 1.f) {
        const auto share = [=](float logit) { return exp2f((logit - most) * scale); };
        const float bounds[1] = {least};
        float sums[1];
        row.add_up(bounds, sums, share);
        least = row.bound(choice.top_p * sums[0], least, share);
    }
    const uint64_t key = static_cast<uint64_t>(choice.key_high) << 32 | choice.key_low;
    best = row.best([=](float logit, uint32_t token) {
        return logit >= least ? (logit - most) * scale + noise(key, token) : -INFINITY;
    });
    return best.at;
}

// Grid: rows.
template <class T, bool VECTORS>
__global__ void __launch_bounds__(THREADS) choose(const LanternChoose p) {
    extern __shared__ uint32_t bits[];
    wait_for_predecessors();
    start_dependents();
    const LanternChoice choice = p.choices[blockIdx.x];
    const T *logits = static_cast<const T *>(p.logits) + static_cast<size_t>(blockIdx.x) * p.vocabulary;
    const Row<T, VECTORS> row = {logits, p.vocabulary, penalize(p, choice, logits, bits)};
    const uint32_t token = choose_from(row, choice);
    if (threadIdx.x == 0) {
        p.chosen[blockIdx.x] = token;
    }
    if (choice.logprobs > 0 && token < p.vocabulary) {
        const Row<T, VECTORS> raw = {logits, p.vocabulary};
        const Best most = raw.best([](float logit, uint32_t) { return logit; });
        say_logprobs(raw, most, token, choice.logprobs - 1, p.logprobs + blockIdx.x);
    }
}

}  // namespace
}  // namespace lantern

using namespace lantern;

extern "C" cudaError_t lantern_choose(const LanternChoose *p, cudaStream_t stream) {
    return with_type(p->type, [&](auto *typed) {
        using T = Pointee<decltype(typed)>;
        const bool vectors = p->vocabulary * sizeof(T) % sizeof(uint4) == 0;
        const auto kernel = vectors ? choose<T, true> : choose<T, false>;
        return launch(kernel, p->rows, THREADS, ceil_div(p->vocabulary, 32) * sizeof(uint32_t), stream, *p);
    });
}
