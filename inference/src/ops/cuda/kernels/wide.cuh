// Products of one row with so many outputs that the weights' way takes far longer than their start: a model's head. Few
// warps stay for all of it, each with two rows of weights on their way while it multiplies two others; a warp norms the
// row for itself, so that no warp waits for another. OPT-125m's head, with the choice of a token, on an H200: 28.5 us,
// and 35.7 as a product of few rows.
#pragma once

#include "common.cuh"
#include "interface.h"

namespace lantern {
namespace wide {

constexpr int THREADS = 256;
constexpr int BLOCKS = 264;      // two on each multiprocessor of a large GPU
constexpr int ROWS = 2;          // of weights, at a time
constexpr int PIECE = 8;         // 16-bit numbers in 16 bytes
constexpr int MAX_PIECES = 4;    // of a row, on each lane
constexpr int MIN_OUTPUTS = BLOCKS * THREADS / WARP * ROWS * 4;

// PIECES of each of ROWS rows.
template <int PIECES>
struct Unit {
    uint4 weights[ROWS][PIECES];

    __device__ void load(const LanternProduct &p, int first) {
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            const auto *from = static_cast<const uint16_t *>(p.weight) + static_cast<size_t>(first + row) * p.inputs;
#pragma unroll
            for (int i = 0; i < PIECES; ++i) {
                const int at = (i * WARP + threadIdx.x % WARP) * PIECE;
                const bool there = first + row < p.outputs && at < p.inputs;
                weights[row][i] = there ? load_once(from + at) : make_uint4(0, 0, 0, 0);
            }
        }
    }

    template <class T>
    __device__ void multiply(const LanternProduct &p, const float (&x)[PIECES][8], int first) const {
        float sums[ROWS] = {};
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                float weight[8];
                unpack8<T>(weights[row][i], weight);
#pragma unroll
                for (int k = 0; k < 8; ++k) {
                    sums[row] += weight[k] * x[i][k];
                }
            }
        }
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            const float sum = sum_lanes(sums[row]);
            if (threadIdx.x % WARP == row && first + row < p.outputs) {
                const float bias = p.bias ? to_float(static_cast<const T *>(p.bias)[first + row]) : 0.f;
                static_cast<T *>(p.out)[first + row] = from_float<T>(sum + bias);
            }
        }
    }
};

// The row's pieces of this lane, normed.
template <class T, int PIECES>
__device__ void read_row(const LanternProduct &p, float (&x)[PIECES][8]) {
    float sum = 0.f, squares = 0.f;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
        const int at = (i * WARP + threadIdx.x % WARP) * PIECE;
        const uint4 *from = reinterpret_cast<const uint4 *>(static_cast<const T *>(p.x) + at);
        unpack8<T>(at < p.inputs ? __ldcg(from) : make_uint4(0, 0, 0, 0), x[i]);
#pragma unroll
        for (float value : x[i]) {
            sum += value;
            squares += value * value;
        }
    }
    if (p.norm.kind == LANTERN_NO_NORM) {
        return;
    }
    const float mean = p.norm.kind == LANTERN_LAYER_NORM ? sum_lanes(sum) / p.inputs : 0.f;
    const float scale = rsqrtf(fmaxf(sum_lanes(squares) / p.inputs - mean * mean, 0.f) + p.norm.eps);
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
        const int at = (i * WARP + threadIdx.x % WARP) * PIECE;
        if (at < p.inputs) {
            float weights[8], biases[8] = {};
            unpack8<T>(load16(static_cast<const T *>(p.norm.weight) + at), weights);
            if (p.norm.bias) {
                unpack8<T>(load16(static_cast<const T *>(p.norm.bias) + at), biases);
            }
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                // Rounded as in the other products.
                x[i][k] = to_float(from_float<T>((x[i][k] - mean) * scale * weights[k] + biases[k]));
            }
        }
    }
}

template <class T, int PIECES>
__global__ void __launch_bounds__(THREADS, 2) product(const LanternProduct p) {
    start_dependents();
    constexpr int STRIDE = BLOCKS * THREADS / WARP * ROWS;
    int first = (threadIdx.x / WARP * BLOCKS + blockIdx.x) * ROWS;
    Unit<PIECES> even, odd;
    even.load(p, first);
    odd.load(p, first + STRIDE);
    wait_for_predecessors();
    float x[PIECES][8];
    read_row<T>(p, x);
    for (; first < p.outputs; first += 2 * STRIDE) {
        even.template multiply<T>(p, x, first);
        even.load(p, first + 2 * STRIDE);
        odd.template multiply<T>(p, x, first + STRIDE);
        odd.load(p, first + 3 * STRIDE);
    }
}

inline bool fits(const LanternProduct &p) {
    const bool plain = p.activation == LANTERN_NO_ACTIVATION && !p.gated && !p.residual;
    const bool sized = p.inputs % PIECE == 0 && p.inputs <= MAX_PIECES * WARP * PIECE && p.outputs >= MIN_OUTPUTS;
    return plain && p.rows == 1 && sized;
}

template <class T>
cudaError_t run(const LanternProduct &p, cudaStream_t stream) {
    const auto kernel = p.inputs <= 3 * WARP * PIECE ? product<T, 3> : product<T, MAX_PIECES>;
    return launch(kernel, BLOCKS, THREADS, 0, stream, p);
}

}  // namespace wide
}  // namespace lantern
