// Products with many rows of activations: tiles in shared memory, tensor cores.
//
// A block gives a tile of the output. Inputs come in panels of 64, several panels under way at a time
// (cp.async); its warps are GROUPS sets that each take every GROUPS-th panel and are summed at the end, so that a small
// output with many inputs still has enough warps. Weights of the first panels are asked for before the kernel
// waits for the one before it.
#pragma once

#include "activation.cuh"
#include "common.cuh"

namespace lantern {

__device__ inline void load_matrices(uint32_t (&out)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
}

__device__ inline void load_matrices_transposed(uint32_t (&out)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
}

namespace tiled {

constexpr int PANEL = 64;                    // inputs
constexpr int ROW_BYTES = PANEL * 2;         // of a row of a panel
constexpr int CHUNKS = ROW_BYTES / 16;

// Where 16 bytes of a panel's row are: turned by the row, so that 8 rows of one column are in 8 banks.
__device__ inline uint32_t place(int row, int chunk) {
    return row * ROW_BYTES + ((chunk ^ (row & 7)) << 4);
}

template <int BLOCK_M_, int BLOCK_N_, int WARPS_M_, int WARPS_N_, int GROUPS_, int STAGES_>
struct Shape {
    static constexpr int BLOCK_M = BLOCK_M_, BLOCK_N = BLOCK_N_;
    static constexpr int WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
    static constexpr int GROUPS = GROUPS_, STAGES = STAGES_;
    static constexpr int THREADS = WARPS_M * WARPS_N * GROUPS * WARP;
    static constexpr int TILES_M = BLOCK_M / WARPS_M / 16, TILES_N = BLOCK_N / WARPS_N / 8;
    static constexpr int PANEL_BYTES = (BLOCK_M + BLOCK_N) * ROW_BYTES;
    static constexpr int STAGE_BYTES = PANEL_BYTES * GROUPS;
    static constexpr int BYTES = STAGE_BYTES * STAGES;
    static_assert(TILES_N % 2 == 0, "weights are read two tiles at a time");
    static_assert((GROUPS - 1) * BLOCK_M * BLOCK_N * 4 <= BYTES, "sums meet where panels were");
};

// The part of one matrix that a block's panels come from: which 16 bytes each of its threads copies.
template <class S, int ROWS>
struct Source {
    static constexpr int COPIES = ROWS * CHUNKS * S::GROUPS / S::THREADS;
    static constexpr int ROW_STEP = S::THREADS / CHUNKS;
    static_assert(COPIES * S::THREADS == ROWS * CHUNKS * S::GROUPS, "every thread copies as much");
    static_assert(ROWS % ROW_STEP == 0 || ROW_STEP % ROWS == 0, "a copy keeps to one group");

    const uint16_t *from[COPIES];  // null: a row that is not there

    // `row_of` gives the matrix's row that is a row of the block's, or -1.
    template <class RowOf>
    __device__ Source(const void *matrix, int inputs, RowOf row_of) {
        const int chunk = threadIdx.x % CHUNKS;
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const int place = threadIdx.x / CHUNKS + i * ROW_STEP;
            const int row = row_of(place % ROWS), start = place / ROWS * PANEL + chunk * 8;
            const size_t at = static_cast<size_t>(row) * inputs + start;
            from[i] = row >= 0 ? static_cast<const uint16_t *>(matrix) + at : nullptr;
        }
    }

    // `to`: the matrix's rows in a stage's first panel.
    __device__ void copy(uint32_t to, int step, int inputs, const void *anywhere) const {
        const int chunk = threadIdx.x % CHUNKS, input = step * S::GROUPS * PANEL;
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const int where = threadIdx.x / CHUNKS + i * ROW_STEP;
            const int row = where % ROWS, group = where / ROWS;
            const bool valid = from[i] && input + group * PANEL + chunk * 8 < inputs;
            copy16(to + group * S::PANEL_BYTES + place(row, chunk), valid ? from[i] + input : anywhere, valid);
        }
    }
};

// One warp's part of a panel.
template <class T, class S>
__device__ void multiply(float (&sums)[S::TILES_M][S::TILES_N][4], uint32_t panel, int warp_m, int warp_n) {
    const int lane = threadIdx.x % WARP;
    const uint32_t weights = panel + S::BLOCK_M * ROW_BYTES;
#pragma unroll
    for (int k = 0; k < PANEL / 16; ++k) {
        uint32_t a[S::TILES_M][4], b[S::TILES_N / 2][4];
#pragma unroll
        for (int m = 0; m < S::TILES_M; ++m) {
            const int row = (warp_m * S::TILES_M + m) * 16 + lane % 16;
            load_matrices(a[m], panel + place(row, k * 2 + lane / 16));
        }
#pragma unroll
        for (int n = 0; n < S::TILES_N / 2; ++n) {
            const int row = (warp_n * S::TILES_N + n * 2) * 8 + lane % 8 + lane / 16 * 8;
            load_matrices(b[n], weights + place(row, k * 2 + lane / 8 % 2));
        }
#pragma unroll
        for (int m = 0; m < S::TILES_M; ++m) {
#pragma unroll
            for (int n = 0; n < S::TILES_N; ++n) {
                mma(T{}, sums[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
            }
        }
    }
}

// Bias, activation, residual; two neighbours at a time.
template <class T>
__device__ void finish(const LanternProduct &p, int row, int result, int results, float2 sum, float2 rest,
                       bool gated) {
    if (row >= p.rows || result >= results) {
        return;
    }
    const auto read = [](const void *from, size_t at) {
        return Pair<T>::unpack(*reinterpret_cast<const uint32_t *>(static_cast<const T *>(from) + at));
    };
    if (p.bias) {
        const float2 bias = read(p.bias, result);
        sum.x += bias.x;
        sum.y += bias.y;
        if (gated) {
            const float2 more = read(p.bias, result + results);
            rest.x += more.x;
            rest.y += more.y;
        }
    }
    float2 value = make_float2(combined(sum.x, rest.x, p.activation, gated),
                               combined(sum.y, rest.y, p.activation, gated));
    const size_t at = static_cast<size_t>(row) * results + result;
    if (p.residual) {
        const float2 residual = read(p.residual, at);
        value.x += residual.x;
        value.y += residual.y;
    }
    *reinterpret_cast<uint32_t *>(static_cast<T *>(p.out) + at) = Pair<T>::pack(value.x, value.y);
}

template <class T, class S, bool GATED>
__global__ void __launch_bounds__(S::THREADS) product(const LanternProduct p) {
    extern __shared__ uint4 shared[];
    start_dependents();
    const int results = GATED ? p.outputs / 2 : p.outputs;
    const int width = GATED ? S::BLOCK_N / 2 : S::BLOCK_N;
    const int first_row = blockIdx.x * S::BLOCK_M, first_result = blockIdx.y * width;
    const Source<S, S::BLOCK_M> rows(p.x, p.inputs, [&](int row) {
        return first_row + row < p.rows ? first_row + row : -1;
    });
    // Of a gated product 8 outputs of the gate, then 8 of the rest.
    const Source<S, S::BLOCK_N> weights(p.weight, p.inputs, [&](int row) {
        const int result = first_result + (GATED ? row / 16 * 8 + row % 8 : row);
        return result < results ? result + (GATED ? row / 8 % 2 * results : 0) : -1;
    });
    const uint32_t base = shared_address(shared);
    const auto copy_rows = [&](int step) {
        rows.copy(base + step % S::STAGES * S::STAGE_BYTES, step, p.inputs, p.x);
    };
    const auto copy_weights = [&](int step) {
        const uint32_t to = base + step % S::STAGES * S::STAGE_BYTES + S::BLOCK_M * ROW_BYTES;
        weights.copy(to, step, p.inputs, p.weight);
    };
    const int steps = (p.inputs + PANEL * S::GROUPS - 1) / (PANEL * S::GROUPS);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int group = warp / (S::WARPS_M * S::WARPS_N);
    const int warp_m = warp % S::WARPS_M, warp_n = warp / S::WARPS_M % S::WARPS_N;

    for (int step = 0; step < S::STAGES - 1 && step < steps; ++step) {
        copy_weights(step);
    }
    wait_for_predecessors();
    for (int step = 0; step < S::STAGES - 1; ++step) {
        if (step < steps) {
            copy_rows(step);
        }
        close_copies();
    }
    float sums[S::TILES_M][S::TILES_N][4] = {};
    for (int step = 0; step < steps; ++step) {
        await_copies<S::STAGES - 2>();
        __syncthreads();
        const int next = step + S::STAGES - 1;
        if (next < steps) {
            copy_weights(next);
            copy_rows(next);
        }
        close_copies();
        const uint32_t stage = base + step % S::STAGES * S::STAGE_BYTES;
        multiply<T, S>(sums, stage + group * S::PANEL_BYTES, warp_m, warp_n);
    }

    if (S::GROUPS > 1) {
        await_copies<0>();
        __syncthreads();
        auto *meeting = reinterpret_cast<float4 *>(shared);
        const int lane_of_group = threadIdx.x % (S::THREADS / S::GROUPS);
#pragma unroll
        for (int m = 0; m < S::TILES_M; ++m) {
#pragma unroll
            for (int n = 0; n < S::TILES_N; ++n) {
                const int at = (m * S::TILES_N + n) * (S::THREADS / S::GROUPS) + lane_of_group;
                const auto &s = sums[m][n];
                if (group > 0) {
                    meeting[(group - 1) * S::BLOCK_M * S::BLOCK_N / 4 + at] = make_float4(s[0], s[1], s[2], s[3]);
                }
            }
        }
        __syncthreads();
        if (group > 0) {
            return;
        }
#pragma unroll
        for (int m = 0; m < S::TILES_M; ++m) {
#pragma unroll
            for (int n = 0; n < S::TILES_N; ++n) {
                for (int other = 0; other < S::GROUPS - 1; ++other) {
                    const int at = (m * S::TILES_N + n) * (S::THREADS / S::GROUPS) + lane_of_group;
                    const float4 s = meeting[other * S::BLOCK_M * S::BLOCK_N / 4 + at];
                    sums[m][n][0] += s.x;
                    sums[m][n][1] += s.y;
                    sums[m][n][2] += s.z;
                    sums[m][n][3] += s.w;
                }
            }
        }
    }

    constexpr int STRIDE = GATED ? 2 : 1;
#pragma unroll
    for (int m = 0; m < S::TILES_M; ++m) {
#pragma unroll
        for (int n = 0; n < S::TILES_N; n += STRIDE) {
            const int row = first_row + (warp_m * S::TILES_M + m) * 16 + lane / 4;
            const int tile = (warp_n * S::TILES_N + n) / STRIDE;
            const int result = first_result + tile * 8 + lane % 4 * 2;
            const auto &s = sums[m][n];
            const auto &r = sums[m][n + STRIDE - 1];
            finish<T>(p, row, result, results, make_float2(s[0], s[1]), make_float2(r[0], r[1]), GATED);
            finish<T>(p, row + 8, result, results, make_float2(s[2], s[3]), make_float2(r[2], r[3]), GATED);
        }
    }
}

template <class T, class S>
cudaError_t start(const LanternProduct &p, cudaStream_t stream) {
    const int results = p.gated ? p.outputs / 2 : p.outputs;
    const int width = p.gated ? S::BLOCK_N / 2 : S::BLOCK_N;
    const dim3 grid(ceil_div(p.rows, S::BLOCK_M), ceil_div(results, width));
    const auto kernel = p.gated ? product<T, S, true> : product<T, S, false>;
    return launch(kernel, grid, S::THREADS, S::BYTES, stream, p);
}

inline bool fits(int inputs, int outputs, bool gated) {
    return inputs % 8 == 0 && (gated ? outputs / 2 : outputs) % 2 == 0;
}

template <class T>
cudaError_t run(const LanternProduct &p, cudaStream_t stream) {
    constexpr int MANY_BLOCKS = 120;  // most of the multiprocessors of a large GPU
    const auto blocks = [&](int m, int n) { return ceil_div(p.rows, m) * ceil_div(p.outputs, n); };
    if (blocks(128, 128) >= MANY_BLOCKS) {
        return start<T, Shape<128, 128, 2, 4, 1, 3>>(p, stream);
    }
    if (blocks(64, 64) >= MANY_BLOCKS) {
        return start<T, Shape<64, 64, 2, 2, 2, 3>>(p, stream);
    }
    if (p.rows > 32) {
        return start<T, Shape<64, 32, 4, 1, 2, 4>>(p, stream);
    }
    return start<T, Shape<32, 32, 2, 1, 4, 3>>(p, stream);
}

}  // namespace tiled
}  // namespace lantern
