// What happens to a head of queries or keys before it is attended with: norm, then rotation.
#pragma once

#include "common.cuh"
#include "interface.h"

namespace lantern {

constexpr int PAGE_TOKENS = 16;
// Of rows that fill up a recorded batch: their keys and values are kept nowhere.
constexpr uint32_t NO_SLOT = 0xffffffffu;

// A head of DIM numbers lies on LANES neighbouring lanes, 8 on each.
template <int DIM>
constexpr int HEAD_LANES = DIM / 8;

// A norm's and a rotation's factors for the 8 numbers of a lane, the same for all heads of a row.
template <class T, int DIM>
struct Placer {
    float cosines[8], sines[8];
    const LanternAttention &p;

    // `turns`: whether heads will be placed at all.
    __device__ Placer(const LanternAttention &p, int part, uint32_t position, bool turns) : p(p) {
        if (turns && p.frequencies) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int pair = (part * 8 + i) % (DIM / 2);
                sincosf(static_cast<float>(position) * p.frequencies[pair], &sines[i], &cosines[i]);
            }
        }
    }

    __device__ void place(float (&head)[8], const LanternNorm &norm, int part) const {
        constexpr int LANES = HEAD_LANES<DIM>;
        if (norm.kind != LANTERN_NO_NORM) {
            float squares = 0.f, sum = 0.f;
#pragma unroll
            for (float value : head) {
                squares += value * value;
                sum += value;
            }
            const float mean = norm.kind == LANTERN_LAYER_NORM ? sum_lanes<LANES>(sum) / DIM : 0.f;
            const float scale = rsqrtf(sum_lanes<LANES>(squares) / DIM - mean * mean + norm.eps);
            float weights[8], biases[8] = {};
            unpack8<T>(load16(static_cast<const T *>(norm.weight) + part * 8), weights);
            if (norm.bias) {
                unpack8<T>(load16(static_cast<const T *>(norm.bias) + part * 8), biases);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                head[i] = (head[i] - mean) * scale * weights[i] + biases[i];
            }
        }
        if (p.frequencies) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float other = __shfl_xor_sync(ALL_LANES, head[i], LANES / 2);
                const float turned = part < LANES / 2 ? -other : other;
                head[i] = head[i] * cosines[i] + turned * sines[i];
            }
        }
    }
};

// Numbers before token `token` of span's pages, for one head.
__device__ inline size_t page_offset(const LanternAttention &p, const uint32_t *table, int token, int kv_head) {
    const size_t page = table[token / PAGE_TOKENS];
    return ((page * p.kv_heads + kv_head) * PAGE_TOKENS + token % PAGE_TOKENS) * p.dim;
}

}  // namespace lantern
