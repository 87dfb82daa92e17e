// Attention of rows of prompts, once all of a step's keys and values are in the pages: on tensor cores.
//
// A block takes up to 64 rows of one span, and one head of queries: 16 rows for each warp, whose queries and sums stay
// in registers. Keys and values come 64 tokens at a time (32 of wide heads), the next ones under way while these are
// used. Scores become weights where they are, in the registers that the second product wants them in.
#pragma once

#include "place.cuh"

namespace lantern {
namespace prefill {

constexpr int WARPS = 4;
constexpr int WARP_ROWS = 16;
static_assert(WARPS * WARP_ROWS == LANTERN_TILE_ROWS, "a block takes a tile");

template <class T, int DIM>
struct Tile {
    static constexpr int TOKENS = DIM <= 128 ? 64 : 32;
    static constexpr int CHUNKS = DIM / 8;  // of 16 bytes, in a token's head
    static constexpr int BYTES = TOKENS * DIM * 2;
    static constexpr int STAGE_BYTES = 2 * BYTES;  // keys, then values
    static constexpr int SHARED_BYTES = 2 * STAGE_BYTES;
    static constexpr int NUMBERS = DIM / 8, SCORES = TOKENS / 8;  // 8 columns each

    // Where 16 bytes of a token's head are: turned by the token, so that 8 tokens' are in different banks.
    static __device__ uint32_t place(int token, int chunk) {
        return token * DIM * 2 + ((chunk ^ (token & 7)) << 4);
    }

    // Asks for the keys and values of the tokens from `from`, zeros past the end.
    static __device__ void copy(const LanternAttention &p, const uint32_t *table, int kv_head, uint32_t stage, int from,
                                int end) {
        for (int i = threadIdx.x; i < TOKENS * CHUNKS; i += WARPS * WARP) {
            const int token = i / CHUNKS, chunk = i % CHUNKS;
            const bool valid = from + token < end;
            const size_t at = valid ? page_offset(p, table, from + token, kv_head) + chunk * 8 : 0;
            const uint32_t to = stage + place(token, chunk);
            copy16(to, static_cast<const T *>(p.keys) + at, valid);
            copy16(to + BYTES, static_cast<const T *>(p.values) + at, valid);
        }
    }
};

// The softmax of a lane's two rows, over its columns: `total` is to be summed over the 4 lanes of a row.
template <class T, int DIM>
struct Rows {
    using Tile = prefill::Tile<T, DIM>;

    uint32_t queries[DIM / 16][4];
    float sums[Tile::NUMBERS][4] = {};
    float best[2] = {-INFINITY, -INFINITY}, total[2] = {};

    // Rows that are not there are taken for the last one; nothing keeps what they give.
    __device__ Rows(const LanternAttention &p, int first_row, int rows, int mine, int head) {
        const int lane = threadIdx.x % WARP;
        const auto of = [&](int row) {
            const size_t there = first_row + min(row, rows - 1);
            const size_t start = there * (p.heads + 2 * p.kv_heads) + head;
            return static_cast<const T *>(p.qkv) + start * DIM + lane % 4 * 2;
        };
        const T *low = of(mine), *high = of(mine + 8);
        const auto read = [](const T *from) { return *reinterpret_cast<const uint32_t *>(from); };
#pragma unroll
        for (int k = 0; k < DIM / 16; ++k) {
            queries[k][0] = read(low + k * 16);
            queries[k][1] = read(high + k * 16);
            queries[k][2] = read(low + k * 16 + 8);
            queries[k][3] = read(high + k * 16 + 8);
        }
    }

    __device__ void score(float (&scores)[Tile::SCORES][4], uint32_t keys) const {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int k = 0; k < DIM / 16; ++k) {
#pragma unroll
            for (int n = 0; n < Tile::SCORES / 2; ++n) {
                uint32_t b[4];
                load_matrices(b, keys + Tile::place(n * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
                mma(T{}, scores[2 * n], queries[k], b[0], b[1]);
                mma(T{}, scores[2 * n + 1], queries[k], b[2], b[3]);
            }
        }
    }

    // Scores become weights; what was summed so far is brought to the same greatest score.
    __device__ void weigh(float (&scores)[Tile::SCORES][4]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float raised = best[half];
#pragma unroll
            for (int n = 0; n < Tile::SCORES; ++n) {
                raised = fmaxf(raised, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            }
            raised = fmaxf(raised, __shfl_xor_sync(ALL_LANES, raised, 1));
            raised = fmaxf(raised, __shfl_xor_sync(ALL_LANES, raised, 2));
            // A row that has seen nothing yet has no greatest score to compare with.
            const float base = raised == -INFINITY ? 0.f : raised;
            const float keep = exp2f(best[half] - base);
            best[half] = raised;
            total[half] *= keep;
#pragma unroll
            for (int n = 0; n < Tile::NUMBERS; ++n) {
                sums[n][2 * half] *= keep;
                sums[n][2 * half + 1] *= keep;
            }
#pragma unroll
            for (int n = 0; n < Tile::SCORES; ++n) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    scores[n][i] = exp2f(scores[n][i] - base);
                    total[half] += scores[n][i];
                }
            }
        }
    }

    __device__ void add(const float (&weights)[Tile::SCORES][4], uint32_t values) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int k = 0; k < Tile::TOKENS / 16; ++k) {
            const auto &low = weights[2 * k], &high = weights[2 * k + 1];
            const uint32_t a[4] = {Pair<T>::pack(low[0], low[1]), Pair<T>::pack(low[2], low[3]),
                                   Pair<T>::pack(high[0], high[1]), Pair<T>::pack(high[2], high[3])};
#pragma unroll
            for (int n = 0; n < DIM / 16; ++n) {
                uint32_t b[4];
                load_matrices_transposed(b, values + Tile::place(k * 16 + lane % 16, n * 2 + lane / 16));
                mma(T{}, sums[2 * n], a, b[0], b[1]);
                mma(T{}, sums[2 * n + 1], a, b[2], b[3]);
            }
        }
    }

    // Row `half` of the lane's two.
    __device__ void store(T *to, int half) const {
        float all = total[half];
        all += __shfl_xor_sync(ALL_LANES, all, 1);
        all += __shfl_xor_sync(ALL_LANES, all, 2);
        if (to) {
#pragma unroll
            for (int n = 0; n < Tile::NUMBERS; ++n) {
                *reinterpret_cast<uint32_t *>(to + n * 8 + threadIdx.x % 4 * 2) =
                    Pair<T>::pack(sums[n][2 * half] / all, sums[n][2 * half + 1] / all);
            }
        }
    }
};

// Grid: tiles, heads.
template <class T, int DIM>
__global__ void __launch_bounds__(WARPS *WARP) attend(const LanternAttention p) {
    using Tile = prefill::Tile<T, DIM>;
    extern __shared__ uint4 shared[];
    start_dependents();
    const int tile = gridDim.x - 1 - blockIdx.x;  // a prompt's last rows, which see most, first
    const int first_row = p.tile_rows[tile], rows = p.tile_lengths[tile];
    const int head = blockIdx.y, kv_head = head / (p.heads / p.kv_heads);
    const int first_position = p.positions[first_row];
    const uint32_t *table = p.tables + p.table_starts[p.span_of[first_row]];
    // Tokens that any of its rows sees.
    const int end = first_position + rows;
    const int begin = p.window > 0 ? max(0, first_position + 1 - p.window) / Tile::TOKENS * Tile::TOKENS : 0;
    const int lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * WARP_ROWS, mine = warp_row + lane / 4;
    const uint32_t base = shared_address(shared);
    const float scale = p.scale * 1.44269504f;  // exp2 is the machine's own

    wait_for_predecessors();
    Tile::copy(p, table, kv_head, base, begin, end);
    close_copies();
    Rows<T, DIM> state(p, first_row, rows, mine, head);
    uint32_t stage = base, next = base + Tile::STAGE_BYTES;
    for (int from = begin; from < end; from += Tile::TOKENS) {
        if (from + Tile::TOKENS < end) {
            Tile::copy(p, table, kv_head, next, from + Tile::TOKENS, end);
        }
        close_copies();
        await_copies<1>();
        __syncthreads();
        const int last = first_position + warp_row + WARP_ROWS - 1;
        if (from <= last) {
            float scores[Tile::SCORES][4] = {};
            state.score(scores, stage);
            const bool all_seen = from + Tile::TOKENS <= first_position + warp_row + 1 && p.window == 0;
#pragma unroll
            for (int n = 0; n < Tile::SCORES; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int token = from + n * 8 + lane % 4 * 2 + i % 2;
                    const int position = first_position + mine + i / 2 * 8;
                    const bool seen = token <= position && (p.window == 0 || token > position - p.window);
                    scores[n][i] = all_seen || seen ? scores[n][i] * scale : -INFINITY;
                }
            }
            state.weigh(scores);
            state.add(scores, stage + Tile::BYTES);
        }
        __syncthreads();
        const uint32_t used = stage;
        stage = next;
        next = used;
    }
    for (int half = 0; half < 2; ++half) {
        const int row = mine + half * 8;
        const size_t at = static_cast<size_t>(first_row + row) * p.heads + head;
        state.store(row < rows ? static_cast<T *>(p.out) + at * DIM : nullptr, half);
    }
}

template <class T, int DIM>
cudaError_t start(const LanternAttention &p, cudaStream_t stream) {
    return launch(attend<T, DIM>, dim3(p.tiles, p.heads), WARPS * WARP, Tile<T, DIM>::SHARED_BYTES, stream, p);
}

template <class T>
cudaError_t run(const LanternAttention &p, cudaStream_t stream) {
    switch (p.dim) {
        case 64:
            return start<T, 64>(p, stream);
        case 128:
            return start<T, 128>(p, stream);
        default:
            return start<T, 256>(p, stream);
    }
}

}  // namespace prefill
}  // namespace lantern
