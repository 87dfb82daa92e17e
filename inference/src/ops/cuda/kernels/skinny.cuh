// Products with few rows of activations (1 to 16): as fast as the weights can be read.
//
// A warp takes 8 outputs and a share of the inputs, and reads its weights straight into the registers in which
// the tensor cores want them: the sum over inputs may run in any order, so each lane takes 8 neighbours of one
// weight row (16 bytes) and the activations are taken in the same order. No shuffles, and the weights do not
// pass through shared memory. The first two chunks are asked for before the kernel waits for the one before it,
// which hides most of a launch. Warps that share outputs meet in shared memory.
//
// Of a step at context 512 on an H200: with one chunk asked for early OPT-125m took 252 us at batch 1, with two 240;
// Llama-3-8B's products 4.8 ms and 4.4.
#pragma once

#include "activation.cuh"
#include "common.cuh"

namespace lantern {
namespace skinny {

constexpr int MAX_ROWS = 16;
constexpr int TILE = 8;       // outputs of a warp
constexpr int STEP = 32;      // inputs of one 16-byte load of all lanes
constexpr int LOADS = 8;      // of these in one chunk
// Between rows of normed activations in shared memory: so rows that are read together differ in banks.
constexpr int ROW_PAD = 32;
constexpr int MAX_STAGED_BYTES = 64 * 1024;

inline int padded(int inputs) { return (inputs + 63) / 64 * 64 + ROW_PAD; }

// Weights of one chunk: TILES tiles of 8 outputs.
template <int TILES>
struct Chunk {
    static constexpr int LOADS = skinny::LOADS / TILES;
    static constexpr int INPUTS = STEP * LOADS;
    uint4 weights[TILES][LOADS];

    __device__ void load(const uint16_t *const (&row)[TILES], int from, int to) {
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            const int at = from + i * STEP;
            if (at < to) {
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    weights[tile][i] = row[tile] ? load_once(row[tile] + at) : make_uint4(0, 0, 0, 0);
                }
            }
        }
    }

    // TOGETHER: loads of activations under way at a time.
    template <class T, int TOGETHER>
    __device__ void multiply(float (&sums)[TILES][2][4], const uint16_t *low, const uint16_t *high, int from,
                             int to) const {
        const uint4 none = make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int first = 0; first < LOADS; first += TOGETHER) {
            uint4 x[TOGETHER], y[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) {
                const int at = from + (first + i) * STEP;
                x[i] = low && at < to ? load16(low + at) : none;
                y[i] = high && at < to ? load16(high + at) : none;
            }
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) {
                if (from + (first + i) * STEP < to) {
#pragma unroll
                    for (int tile = 0; tile < TILES; ++tile) {
                        const uint4 &w = weights[tile][first + i];
                        mma(T{}, sums[tile][0], {x[i].x, y[i].x, x[i].y, y[i].y}, w.x, w.y);
                        mma(T{}, sums[tile][1], {x[i].z, y[i].z, x[i].w, y[i].w}, w.z, w.w);
                    }
                }
            }
        }
    }
};

// Norms rows in shared memory, in place, once all of them are there. Sums and squares are taken together: in f32
// that loses nothing of rows whose mean is not hundreds of times their deviation.
template <class T>
__device__ void norm_rows(const LanternProduct &p, uint16_t *rows, int stride, const uint16_t *weight,
                          const uint16_t *bias) {
    __shared__ float2 met[WARP];
    const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // One row is shared by all warps, of several each has a warp.
    const bool together = p.rows == 1;
    const int start = (together ? threadIdx.x : lane) * 8, step = (together ? blockDim.x : WARP) * 8;
    for (int row = together ? 0 : warp; row < p.rows; row += warps) {
        uint16_t *x = rows + row * stride;
        float sum = 0.f, squares = 0.f;
        for (int at = start; at < p.inputs; at += step) {
            float values[8];
            unpack8<T>(load16(x + at), values);
#pragma unroll
            for (float value : values) {
                sum += value;
                squares += value * value;
            }
        }
        sum = sum_lanes(sum);
        squares = sum_lanes(squares);
        if (together) {
            if (lane == 0) {
                met[warp] = make_float2(sum, squares);
            }
            __syncthreads();
            sum = squares = 0.f;
            for (int other = 0; other < warps; ++other) {
                sum += met[other].x;
                squares += met[other].y;
            }
        }
        const float mean = p.norm.kind == LANTERN_LAYER_NORM ? sum / p.inputs : 0.f;
        const float scale = rsqrtf(fmaxf(squares / p.inputs - mean * mean, 0.f) + p.norm.eps);
        for (int at = start; at < p.inputs; at += step) {
            float values[8], weights[8], biases[8] = {};
            unpack8<T>(load16(x + at), values);
            unpack8<T>(load16(weight + at), weights);
            if (bias) {
                unpack8<T>(load16(bias + at), biases);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                values[i] = (values[i] - mean) * scale * weights[i] + biases[i];
            }
            *reinterpret_cast<uint4 *>(x + at) = pack8<T>(values);
        }
    }
    __syncthreads();
}

// `inputs` numbers to shared memory, in the background, by all threads.
__device__ inline void copy_row(uint16_t *to, const void *from, int inputs) {
    for (int at = threadIdx.x * 8; at < inputs; at += blockDim.x * 8) {
        copy16(shared_address(to + at), static_cast<const uint16_t *>(from) + at);
    }
}

// One number of what a block gives, by its index there: (rows, wide, TILE).
template <int WIDE>
struct Place {
    int index;

    __device__ int column() const { return index % TILE; }
    __device__ int wide() const { return index / TILE % WIDE; }
    __device__ int row() const { return index / (TILE * WIDE); }
    __device__ int result() const { return (blockIdx.x * WIDE + wide()) * TILE + column(); }
    __device__ size_t at(int results) const { return static_cast<size_t>(row()) * results + result(); }

    template <class T, int TILES>
    __device__ void read_bias(const LanternProduct &p, int results, float (&bias)[TILES]) const {
        if (p.bias && row() < p.rows && result() < results) {
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                bias[tile] = to_float(static_cast<const T *>(p.bias)[result() + tile * results]);
            }
        }
    }

    template <class T>
    __device__ float read_residual(const LanternProduct &p, int results) const {
        const bool there = p.residual && row() < p.rows && result() < results;
        return there ? to_float(static_cast<const T *>(p.residual)[at(results)]) : 0.f;
    }
};

// Blocks of WIDE x DEEP warps: WIDE groups of outputs, DEEP shares of the inputs. STAGED: the activations go to shared
// memory first, normed there if they are to be. ONCE: a share is one chunk at most, which takes half the
// registers and so leaves room for the next kernel's blocks.
template <class T, bool GATED, bool STAGED, int WIDE, int DEEP, bool ONCE>
__global__ void __launch_bounds__(WIDE *DEEP *WARP, ONCE ? 1024 / (WIDE * DEEP * WARP) : 1)
    product(const LanternProduct p, int stride) {
    constexpr int TILES = GATED ? 2 : 1;
    extern __shared__ uint4 shared[];
    auto *partial = reinterpret_cast<float *>(shared);  // (DEEP, WIDE, TILES, rows, TILE)
    auto *staged = reinterpret_cast<uint16_t *>(partial + DEEP * WIDE * TILES * p.rows * TILE);
    start_dependents();

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int wide = warp % WIDE, deep = warp / WIDE;
    const int results = GATED ? p.outputs / 2 : p.outputs;
    const int output = (blockIdx.x * WIDE + wide) * TILE + lane / 4;
    const int share = (p.inputs / STEP + DEEP - 1) / DEEP * STEP;
    const int begin = deep * share, end = min(p.inputs, begin + share);
    const int offset = lane % 4 * 8;

    const auto *weight = static_cast<const uint16_t *>(p.weight) + offset;
    const uint16_t *row[TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
        const size_t index = output + static_cast<size_t>(tile) * results;
        row[tile] = output < results ? weight + index * p.inputs : nullptr;
    }
    constexpr int INPUTS = Chunk<TILES>::INPUTS;
    Chunk<TILES> even, odd;
    even.load(row, begin, end);
    if (!ONCE) {
        odd.load(row, begin + INPUTS, end);
    }
    uint16_t *norm_weight = staged + p.rows * stride, *norm_bias = norm_weight + p.inputs;
    const bool normed = STAGED && p.norm.kind != LANTERN_NO_NORM;
    if (normed) {
        copy_row(norm_weight, p.norm.weight, p.inputs);
        if (p.norm.bias) {
            copy_row(norm_bias, p.norm.bias, p.inputs);
        }
    }
    // Of the number that this thread finishes first.
    const Place<WIDE> first = {static_cast<int>(threadIdx.x)};
    float bias[TILES] = {};
    first.template read_bias<T>(p, results, bias);

    wait_for_predecessors();
    const auto *x = static_cast<const uint16_t *>(p.x);
    size_t x_stride = p.inputs;
    if (STAGED) {
        for (int r = 0; r < p.rows; ++r) {
            copy_row(staged + r * stride, x + static_cast<size_t>(r) * p.inputs, p.inputs);
        }
        close_copies();
    }
    float residual = first.template read_residual<T>(p, results);
    if (STAGED) {
        await_copies<0>();
        __syncthreads();
        if (normed) {
            norm_rows<T>(p, staged, stride, norm_weight, p.norm.bias ? norm_bias : nullptr);
        }
        x = staged;
        x_stride = stride;
    }
    const int group = lane / 4;
    const auto *low = group < p.rows ? x + group * x_stride + offset : nullptr;
    const auto *high = group + 8 < p.rows ? x + (group + 8) * x_stride + offset : nullptr;

    constexpr int TOGETHER = ONCE ? 1 : 4;
    float sums[TILES][2][4] = {};
    if (ONCE) {
        even.template multiply<T, TOGETHER>(sums, low, high, begin, end);
    } else {
        for (int at = begin; at < end; at += 2 * INPUTS) {
            even.template multiply<T, TOGETHER>(sums, low, high, at, end);
            even.load(row, at + 2 * INPUTS, end);
            odd.template multiply<T, TOGETHER>(sums, low, high, at + INPUTS, end);
            odd.load(row, at + 3 * INPUTS, end);
        }
    }

#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
        float *to = partial + ((deep * WIDE + wide) * TILES + tile) * p.rows * TILE + lane % 4 * 2;
        const auto &s = sums[tile];
        if (group < p.rows) {
            *reinterpret_cast<float2 *>(to + group * TILE) = make_float2(s[0][0] + s[1][0], s[0][1] + s[1][1]);
        }
        if (group + 8 < p.rows) {
            *reinterpret_cast<float2 *>(to + (group + 8) * TILE) =
                make_float2(s[0][2] + s[1][2], s[0][3] + s[1][3]);
        }
    }
    __syncthreads();

    for (int i = threadIdx.x; i < WIDE * p.rows * TILE; i += blockDim.x) {
        const Place<WIDE> place = {i};
        if (i != static_cast<int>(threadIdx.x)) {
            place.template read_bias<T>(p, results, bias);
            residual = place.template read_residual<T>(p, results);
        }
        if (place.result() >= results) {
            continue;
        }
        float total[TILES];
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            total[tile] = bias[tile];
            const float *from = partial + ((place.wide() * TILES + tile) * p.rows + place.row()) * TILE;
#pragma unroll
            for (int d = 0; d < DEEP; ++d) {
                total[tile] += from[d * WIDE * TILES * p.rows * TILE + place.column()];
            }
        }
        const float value = combined(total[0], total[TILES - 1], p.activation, GATED) + residual;
        static_cast<T *>(p.out)[place.at(results)] = from_float<T>(value);
    }
}

template <class T, bool GATED, bool STAGED, int WIDE, int DEEP>
cudaError_t start(const LanternProduct &p, cudaStream_t stream) {
    const int results = GATED ? p.outputs / 2 : p.outputs;
    const int stride = padded(p.inputs);
    size_t bytes = static_cast<size_t>(DEEP) * WIDE * (GATED ? 2 : 1) * p.rows * TILE * sizeof(float);
    if (STAGED) {
        bytes += (static_cast<size_t>(p.rows) * stride + 2 * p.inputs) * sizeof(T);
    }
    const bool once = STAGED && DEEP > 1 && ceil_div(p.inputs / STEP, DEEP) <= Chunk<GATED ? 2 : 1>::LOADS;
    const auto kernel = once ? product<T, GATED, STAGED, WIDE, DEEP, (STAGED && DEEP > 1)>
                             : product<T, GATED, STAGED, WIDE, DEEP, false>;
    return launch(kernel, ceil_div(results, WIDE * TILE), WIDE * DEEP * WARP, bytes, stream, p, stride);
}

// The shape of the blocks: enough warps to have most of the weights on their way at once.
template <class T, bool GATED, bool STAGED>
cudaError_t choose(const LanternProduct &p, cudaStream_t stream) {
    constexpr int MANY_WARPS = 2112;  // 16 on each of 132 multiprocessors
    constexpr int FEW_BLOCKS = 96;
    const int tiles = ceil_div(GATED ? p.outputs / 2 : p.outputs, TILE), loads = p.inputs / STEP;
    int deep = tiles >= MANY_WARPS ? 1 : 4;
    while (deep > 1 && deep < 16 && loads > deep * LOADS && tiles * deep < MANY_WARPS) {
        deep *= 2;
    }
    while (deep < 8 && loads >= deep * 4 && tiles * deep < FEW_BLOCKS * 8) {
        deep *= 2;
    }
    switch (deep) {
        case 1:
            return start<T, GATED, STAGED, 8, 1>(p, stream);
        case 4:
            return start<T, GATED, STAGED, 2, 4>(p, stream);
        case 8:
            return start<T, GATED, STAGED, 1, 8>(p, stream);
        default:
            return start<T, GATED, STAGED, 1, 16>(p, stream);
    }
}

inline bool fits(int rows, int inputs) { return rows <= MAX_ROWS && inputs % STEP == 0; }

inline bool stages(int rows, int inputs) {
    return fits(rows, inputs) && static_cast<size_t>(rows) * padded(inputs) * 2 <= MAX_STAGED_BYTES;
}

template <class T>
cudaError_t run(const LanternProduct &p, cudaStream_t stream) {
    if (stages(p.rows, p.inputs)) {
        return p.gated ? choose<T, true, true>(p, stream) : choose<T, false, true>(p, stream);
    }
    return p.gated ? choose<T, true, false>(p, stream) : choose<T, false, false>(p, stream);
}

}  // namespace skinny
}  // namespace lantern
