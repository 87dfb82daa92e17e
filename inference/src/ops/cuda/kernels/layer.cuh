// A decoder layer of one row in two kernels, attention's and the feed-forward's: at this size the chain of kernels is
// what a step takes, not the memory.
//
// Attention: a cluster for each head. Its blocks share the head's rows of the product before attention, tell each other
// what these give, share the context, tell each other what they saw of it, and share the outputs of the head's
// part of the product after attention. Feed-forward: each block has some of the inner numbers, and multiplies them by
// their columns of the second matrix; a cluster adds up what that gives. What clusters give is not added up: the
// residual stream goes from kernel to kernel as parts (`LanternStream`), one of each cluster, added up in order by its
// readers.
//
// All weights and the first keys and values are asked for before anything is waited for, into shared memory: each
// thread has its own pieces, which takes no barrier. No kernel waits for the end of the one before, which takes
// longer than the work: parts say themselves when they are there. That cannot hang, since a kernel starts when all
// blocks of the one before have.
//
// OPT-125m's 12 layers at context 512 on an H200, in us: five kernels a layer about 200; two, with
// `griddepcontrol.wait` between them and loops that were not unrolled, 241; without either 145; on tensor cores, and
// with all loads of parts at once, 133. Starting the next kernel later than at once: 136.
#pragma once

#include "activation.cuh"
#include "cluster.cuh"
#include "decode.cuh"

namespace lantern {
namespace layer {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int ADD_THREADS = 1024;
static_assert(WARPS == CLUSTER, "a warp of the feed-forward works for one block of its cluster");
constexpr int DIM = 64;
constexpr int PIECE = 8;  // 16-bit numbers in 16 bytes
constexpr int MAX_PARTS = LANTERN_MAX_PARTS;
constexpr int MAX_PIECES = 4;  // of a row, on each lane
constexpr int MAX_HIDDEN = MAX_PIECES * WARP * PIECE;
constexpr int MAX_SHARE = 4;   // inner numbers of a block, in pieces
constexpr int TILE = 8;        // outputs that lanes multiply for together
constexpr int STEP = 32;       // inputs of one piece of all lanes
// Bounds on registers, so that blocks of the next kernel fit beside these and have their weights on the way. With three
// blocks of attention, which does not have the registers then, the 12 layers take 151 us.
constexpr int ATTENTION_BLOCKS = 2, FEED_FORWARD_BLOCKS = 4;
constexpr int QKV_ROWS = 3 * DIM / CLUSTER;  // of a block

// Pieces of inner numbers that a block has: a power of two, so that lanes can share an output.
inline int inner_share(int inner) {
    int share = 1;
    while (inner > CLUSTER * PIECE * share * MAX_PARTS) {
        share *= 2;
    }
    return share;
}

// A thread's pieces of weights, each of a tile: 8 outputs by 32 inputs, four neighbouring lanes for an output. As in
// the products of few rows, the activations are taken in the order in which weights lie, and are the other
// operand of the tensor cores, of which the first row alone is used.
template <class T>
struct Pieces {
    uint4 *mine;

    __device__ explicit Pieces(void *shared) : mine(static_cast<uint4 *>(shared) + threadIdx.x) {}

    // Where it is not `valid` nothing is read, and zeros come.
    __device__ void ask(int index, const void *weight, size_t number, bool valid) const {
        const auto *from = static_cast<const uint16_t *>(weight) + (valid ? number : 0);
        copy16(shared_address(mine + index * THREADS), from, valid);
    }

    __device__ void multiply(int index, const uint4 &x, float (&sums)[2][4]) const {
        const uint4 weight = mine[index * THREADS];
        mma(T{}, sums[0], {x.x, 0, x.y, 0}, weight.x, weight.y);
        mma(T{}, sums[1], {x.z, 0, x.w, 0}, weight.z, weight.w);
    }
};

// Of 32 activations in shared memory what a lane has to multiply by.
template <class T>
__device__ uint4 activations(const T *x, bool valid = true) {
    const int lane = threadIdx.x % WARP;
    return valid && lane < STEP / PIECE ? load16(x + lane * PIECE) : make_uint4(0, 0, 0, 0);
}

// Two neighbouring outputs of a tile, on each of its first four lanes.
__device__ inline float2 outputs_of(const float (&sums)[2][4]) {
    return make_float2(sums[0][0] + sums[1][0], sums[0][1] + sums[1][1]);
}

// TILES tiles of outputs of a product with the whole stream, for which each warp has a share of the inputs.
template <class T, int PIECES, int TILES>
struct Rows {
    static constexpr int COUNT = PIECES * TILES;
    static constexpr int OUTPUTS = TILES * TILE;
    alignas(16) float partial[WARPS][OUTPUTS];

    static __device__ int input(int i) { return (threadIdx.x / WARP * PIECES + i) * STEP; }

    // `row_of`: an output's row of the weights.
    template <class RowOf>
    static __device__ void ask(const Pieces<T> &pieces, const void *weight, int hidden, RowOf row_of) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const size_t row = row_of(tile * TILE + lane / 4);
#pragma unroll
            for (int i = 0; i < PIECES; ++i) {
                pieces.ask(tile * PIECES + i, weight, row * hidden + input(i) + lane % 4 * PIECE, input(i) < hidden);
            }
        }
    }

    // Behind it all threads have met.
    __device__ void multiply(const Pieces<T> &pieces, const T *x, int hidden) {
        float sums[TILES][2][4] = {};
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            const uint4 numbers = activations(x + input(i), input(i) < hidden);
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                pieces.multiply(tile * PIECES + i, numbers, sums[tile]);
            }
        }
        const int lane = threadIdx.x % WARP;
        if (lane < STEP / PIECE) {
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                float *to = partial[threadIdx.x / WARP] + tile * TILE + lane * 2;
                *reinterpret_cast<float2 *>(to) = outputs_of(sums[tile]);
            }
        }
        __syncthreads();
    }

    __device__ float sum(int output) const {
        float sum = 0.f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) {
            sum += partial[warp][output];
        }
        return sum;
    }
};

// Eight numbers of shared memory.
__device__ inline void read8(const float *from, float (&to)[8]) {
    const float4 low = reinterpret_cast<const float4 *>(from)[0], high = reinterpret_cast<const float4 *>(from)[1];
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// Four numbers of the stream, of every CLUSTER-th part from the first one: eight threads beside each other have them of
// all parts. What is in parts is awaited: the step's tag is on both halves of 16 bytes.
template <class T>
__device__ float4 await_parts(const LanternStream &x, size_t at, int hidden, int first, uint32_t tag) {
    constexpr int MOST = MAX_PARTS / CLUSTER;
    unsigned long long words[MOST][2];
    bool there;
    do {
#pragma unroll
        for (int i = 0; i < MOST; ++i) {
            const int part = first + i * CLUSTER;
            words[i][0] = words[i][1] = static_cast<unsigned long long>(tag) << 32;
            if (part < x.parts) {
                asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                             : "=l"(words[i][0]), "=l"(words[i][1])
                             : "l"(x.lines + (static_cast<size_t>(part) * hidden + at) / 2)
                             : "memory");
            }
        }
        there = true;
#pragma unroll
        for (int i = 0; i < MOST; ++i) {
            there = there && words[i][0] >> 32 == tag && words[i][1] >> 32 == tag;
        }
    } while (!there);
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int i = 0; i < MOST; ++i) {
        const float2 low = Pair<T>::unpack(static_cast<uint32_t>(words[i][0]));
        const float2 high = Pair<T>::unpack(static_cast<uint32_t>(words[i][1]));
        sum.x += low.x, sum.y += low.y, sum.z += high.x, sum.w += high.y;
    }
    return sum;
}

// What eight threads have of all parts.
__device__ inline float4 add_parts_up(float4 sum) {
#pragma unroll
    for (int step = CLUSTER / 2; step > 0; step /= 2) {
        sum.x += __shfl_xor_sync(ALL_LANES, sum.x, step);
        sum.y += __shfl_xor_sync(ALL_LANES, sum.y, step);
        sum.z += __shfl_xor_sync(ALL_LANES, sum.z, step);
        sum.w += __shfl_xor_sync(ALL_LANES, sum.w, step);
    }
    return sum;
}

// Two numbers to a line.
template <class T>
__device__ void tell_numbers(unsigned long long *line, float first, float second, uint32_t tag) {
    const unsigned long long word = static_cast<unsigned long long>(tag) << 32 | Pair<T>::pack(first, second);
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(line), "l"(word) : "memory");
}

// On what is not a step's yet there are zeros, or the tag of the step before.
__device__ inline uint32_t tag_of(const uint32_t *step) { return *step + 1; }

// The residual stream, and its norm, in shared memory.
template <class T>
struct Stream {
    alignas(16) float raw[MAX_HIDDEN];
    alignas(16) T normed[MAX_HIDDEN];
    float2 met[WARPS];
    uint64_t told;

    // By one thread.
    __device__ void expect(int hidden) { expect_bytes(shared_address(&told), hidden * sizeof(float)); }

    // Four numbers of a norm on each thread.
    struct Factors {
        uint2 weight, bias;
        float share;  // of a number in a mean

        __device__ Factors(const LanternNorm &norm, int hidden)
            : weight(make_uint2(0, 0)), bias(make_uint2(0, 0)), share(1.f / hidden) {
            const int at = threadIdx.x * 4;
            if (at < hidden) {
                weight = *reinterpret_cast<const uint2 *>(static_cast<const T *>(norm.weight) + at);
                if (norm.bias) {
                    bias = *reinterpret_cast<const uint2 *>(static_cast<const T *>(norm.bias) + at);
                }
            }
        }
    };

    // Each block of the cluster adds up its share of the numbers and tells the others: of eight threads with the same
    // four numbers each tells another one.
    __device__ void add_up(const LanternStream &x, int hidden, uint32_t rank, uint32_t tag) {
        const int slot = threadIdx.x % CLUSTER, at = rank * (hidden / CLUSTER) + threadIdx.x / CLUSTER * 4;
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
        const bool mine = threadIdx.x / CLUSTER * 4 < hidden / CLUSTER;
        if (x.row) {
            wait_for_predecessors();
            if (mine && slot == 0) {
                const uint2 bits = __ldcg(reinterpret_cast<const uint2 *>(static_cast<const T *>(x.row) + at));
                const float2 low = Pair<T>::unpack(bits.x), high = Pair<T>::unpack(bits.y);
                sum = make_float4(low.x, low.y, high.x, high.y);
            }
        } else if (mine) {
            sum = await_parts<T>(x, at, hidden, slot, tag);
        }
        __syncwarp();
        sum = add_parts_up(sum);
        if (mine) {
            send(slot, shared_address(raw + at), sum, shared_address(&told));
        }
        await_bytes(shared_address(&told));
    }

    // Behind it all threads have met.
    __device__ void apply(const LanternNorm &norm, const Factors &factors, int hidden) {
        const int at = threadIdx.x * 4;
        const float4 x = at < hidden ? *reinterpret_cast<const float4 *>(raw + at) : make_float4(0.f, 0.f, 0.f, 0.f);
        float sum = x.x + x.y + x.z + x.w, squares = x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
#pragma unroll
        for (int step = WARP / 2; step > 0; step /= 2) {
            sum += __shfl_xor_sync(ALL_LANES, sum, step);
            squares += __shfl_xor_sync(ALL_LANES, squares, step);
        }
        if (threadIdx.x % WARP == 0) {
            met[threadIdx.x / WARP] = make_float2(sum, squares);
        }
        __syncthreads();
        sum = squares = 0.f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) {
            sum += met[warp].x;
            squares += met[warp].y;
        }
        const float mean = norm.kind == LANTERN_LAYER_NORM ? sum * factors.share : 0.f;
        const float scale = rsqrtf(fmaxf(squares * factors.share - mean * mean, 0.f) + norm.eps);
        if (at < hidden) {
            const float2 weights[2] = {Pair<T>::unpack(factors.weight.x), Pair<T>::unpack(factors.weight.y)};
            const float2 biases[2] = {Pair<T>::unpack(factors.bias.x), Pair<T>::unpack(factors.bias.y)};
            *reinterpret_cast<uint2 *>(normed + at) =
                make_uint2(Pair<T>::pack((x.x - mean) * scale * weights[0].x + biases[0].x,
                                         (x.y - mean) * scale * weights[0].y + biases[0].y),
                           Pair<T>::pack((x.z - mean) * scale * weights[1].x + biases[1].x,
                                         (x.w - mean) * scale * weights[1].y + biases[1].y));
        }
        __syncthreads();
    }
};

// One of the biases, 0 if there are none.
template <class T>
__device__ float bias_at(const void *biases, int index) {
    return biases ? to_float(static_cast<const T *>(biases)[index]) : 0.f;
}

// What blocks of attention's kernel tell each other.
struct alignas(16) Told {
    // Of the head: queries, keys and values of the row.
    float qkv[3][DIM];
    // What each warp, and each block, saw of the context: greatest score, sum of weights, sums of values.
    float warps_seen[WARPS][DIM + 2];
    float seen[CLUSTER][DIM + 2];
    float qkv_bias[QKV_ROWS];
    float out_bias[MAX_HIDDEN / CLUSTER];
    uint64_t qkv_told, seen_told;
};

// A softmax by what its parts saw: one of the sums of values, with the greatest score and the sum of weights.
struct Met {
    float best = -INFINITY, total = 0.f, sum = 0.f;

    __device__ Met(const float (&seen)[CLUSTER][DIM + 2], int number) {
        float bests[CLUSTER];
#pragma unroll
        for (int i = 0; i < CLUSTER; ++i) {
            bests[i] = seen[i][0];
            best = fmaxf(best, bests[i]);
        }
#pragma unroll
        for (int i = 0; i < CLUSTER; ++i) {
            const float scale = best == -INFINITY ? 0.f : exp2f(bests[i] - best);
            total += seen[i][1] * scale;
            sum += seen[i][2 + number] * scale;
        }
    }
};

// Attention of the row over what this warp has of its tokens, the row's own among them: whose warp that is writes its
// keys and values to their pages.
template <class T>
struct Attention {
    static constexpr int LOADS = 3;
    using Unit = decode::Lanes<T, DIM, 1, LOADS>;
    const LanternAttention &p;
    const int head;
    const uint32_t *table;
    int position, from, end;  // tokens [from, end)
    uint32_t slot;
    // Asked for before there is a query; what a longer context has more is waited for.
    Unit unit;

    __device__ Attention(const LanternAttention &p, int head, uint32_t rank) : p(p), head(head) {
        constexpr int SHARES = CLUSTER * WARPS;
        position = p.positions[0];
        slot = p.slots[0];
        table = p.tables + p.table_starts[p.span_of[0]];
        const int all = position + 1, first = p.window > 0 ? max(0, all - p.window) : 0;
        const int share = ceil_tokens((all - first + SHARES - 1) / SHARES);
        from = min(all, first + static_cast<int>(rank * WARPS + threadIdx.x / WARP) * share);
        end = min(all, from + share);
        load();
    }

    // Whole loads.
    static __device__ int ceil_tokens(int tokens) { return (tokens + Unit::TOKENS - 1) / Unit::TOKENS * Unit::TOKENS; }

    // The row's own token is in no page yet.
    __device__ void load() { unit.load(p, table, head, from, min(end, position)); }

    // Puts the row's own token in its place.
    __device__ void add_own(const Placer<T, DIM> &placer, const Told &told) {
        const int lane = threadIdx.x % WARP, mine = lane / Unit::HEAD, part = lane % Unit::HEAD;
        float key[8], value[8];
        read8(told.qkv[1] + part * 8, key);
        read8(told.qkv[2] + part * 8, value);
        placer.place(key, p.key_norm, part);
        const uint4 keys = pack8<T>(key), values = pack8<T>(value);
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            if (from + i * Unit::TOKENS + mine == position) {
                unit.keys[i] = keys;
                unit.values[i] = values;
            }
        }
        if (mine == 0 && slot != NO_SLOT) {
            const size_t page = slot / PAGE_TOKENS;
            const size_t to = ((page * p.kv_heads + head) * PAGE_TOKENS + slot % PAGE_TOKENS) * DIM + part * 8;
            *reinterpret_cast<uint4 *>(static_cast<T *>(p.keys) + to) = keys;
            *reinterpret_cast<uint4 *>(static_cast<T *>(p.values) + to) = values;
        }
    }

    // The unit's tokens; one of them at least is this warp's.
    __device__ void attend(const float (&query)[8], float &best, float &total, float (&sums)[8]) const {
        const int mine = threadIdx.x % WARP / Unit::HEAD;
        float scores[LOADS], highest = best;
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            float key[8], score = 0.f;
            unpack8<T>(unit.keys[i], key);
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                score += query[k] * key[k];
            }
            score = sum_lanes<Unit::HEAD>(score);
            scores[i] = from + i * Unit::TOKENS + mine < end ? score : -INFINITY;
            highest = fmaxf(highest, scores[i]);
        }
        // All lanes keep to one greatest score, so that in the end their sums need only be added.
#pragma unroll
        for (int step = Unit::HEAD; step < WARP; step *= 2) {
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, step));
        }
        const float keep = exp2f(best - highest);
        best = highest;
        total *= keep;
#pragma unroll
        for (float &sum : sums) {
            sum *= keep;
        }
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            float value[8];
            unpack8<T>(unit.values[i], value);
            const float weight = exp2f(scores[i] - best);
            total += weight;
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                sums[k] += weight * value[k];
            }
        }
    }

    __device__ void run(Told &told) {
        const int lane = threadIdx.x % WARP, part = lane % Unit::HEAD;
        const Placer<T, DIM> placer(p, part, position, true);
        float query[8];
        read8(told.qkv[0] + part * 8, query);
        placer.place(query, p.query_norm, part);
#pragma unroll
        for (float &number : query) {
            number *= p.scale * 1.44269504f;  // exp2 is the machine's own
        }
        float best = -INFINITY, total = 0.f, sums[8] = {};
        while (from < end) {
            if (from <= position && position < min(end, from + Unit::UNIT)) {
                add_own(placer, told);
            }
            attend(query, best, total, sums);
            from += Unit::UNIT;
            if (from < end) {
                load();
            }
        }
#pragma unroll
        for (int step = Unit::HEAD; step < WARP; step *= 2) {
            total += __shfl_xor_sync(ALL_LANES, total, step);
#pragma unroll
            for (float &sum : sums) {
                sum += __shfl_xor_sync(ALL_LANES, sum, step);
            }
        }
        if (lane < Unit::HEAD) {
            float *seen = told.warps_seen[threadIdx.x / WARP];
            if (part == 0) {
                seen[0] = best;
                seen[1] = total;
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                seen[2 + part * 8 + i] = sums[i];
            }
        }
    }
};

// Grid: a cluster for each head.
template <class T, int PIECES>
__global__ void __launch_bounds__(THREADS, ATTENTION_BLOCKS) attention_block(const LanternAttentionBlock p) {
    using Qkv = Rows<T, PIECES, QKV_ROWS / TILE>;
    constexpr int HALVES = DIM / STEP;
    constexpr int ROUNDS = (PIECES * WARP * PIECE / CLUSTER / TILE + WARPS - 1) / WARPS;  // of outputs
    extern __shared__ uint4 shared[];
    __shared__ Stream<T> stream;
    __shared__ Told told;
    __shared__ alignas(16) T mixed[DIM];
    __shared__ Qkv qkv;
    start_dependents();
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, hidden = p.hidden, heads = p.attention.heads;
    const int head = blockIdx.x / CLUSTER, rank = cluster_rank();
    const uint32_t qkv_told = shared_address(&told.qkv_told), seen_told = shared_address(&told.seen_told);
    if (threadIdx.x == 0) {
        stream.expect(hidden);
        expect_bytes(qkv_told, sizeof(told.qkv));
        expect_bytes(seen_told, sizeof(told.seen));
    }
    announce_barriers();

    const Pieces<T> weights(shared);
    // The block's rows of queries, keys and values, which may be of two of these.
    const auto row_of = [&](int index) {
        const int row = rank * QKV_ROWS + index;
        return (row / DIM * heads + head) * DIM + row % DIM;
    };
    Qkv::ask(weights, p.qkv_weight, hidden, row_of);
    const int outputs = hidden / CLUSTER, first_output = rank * outputs;
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const int output = (round * WARPS + warp) * TILE + lane / 4;
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            const size_t row = (static_cast<size_t>(first_output + output) * heads + head) * DIM;
            weights.ask(Qkv::COUNT + round * HALVES + half, p.out_weight, row + half * STEP + lane % 4 * PIECE,
                        output < outputs);
        }
    }
    close_copies();
    const typename Stream<T>::Factors factors(p.norm, hidden);
    const uint32_t tag = tag_of(p.step);
    Attention<T> attention(p.attention, head, rank);
    // A thread for each output and each block that is told it.
    const int index = threadIdx.x / CLUSTER;
    const float qkv_bias = index < QKV_ROWS ? bias_at<T>(p.qkv_bias, row_of(index)) : 0.f;
    if (static_cast<int>(threadIdx.x) < outputs) {
        told.out_bias[threadIdx.x] = bias_at<T>(p.out_bias, first_output + threadIdx.x);
    }
    await_cluster();

    stream.add_up(p.x, hidden, rank, tag);
    stream.apply(p.norm, factors, hidden);
    await_copies<0>();
    qkv.multiply(weights, stream.normed, hidden);
    if (index < QKV_ROWS) {
        const uint32_t to = shared_address(&told.qkv[0][0] + rank * QKV_ROWS + index);
        send(threadIdx.x % CLUSTER, to, qkv.sum(index) + qkv_bias, qkv_told);
    }
    await_bytes(qkv_told);
    attention.run(told);
    __syncthreads();
    if (threadIdx.x < DIM) {
        const Met met(told.warps_seen, threadIdx.x);
#pragma unroll
        for (int other = 0; other < CLUSTER; ++other) {
            float *seen = told.seen[rank];
            send(other, shared_address(seen + 2 + threadIdx.x), met.sum, seen_told);
            if (threadIdx.x == 0) {
                send(other, shared_address(seen), make_float2(met.best, met.total), seen_told);
            }
        }
    }
    await_bytes(seen_told);
    if (threadIdx.x < DIM) {
        const Met met(told.seen, threadIdx.x);
        mixed[threadIdx.x] = from_float<T>(met.sum / met.total);
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        float sums[2][4] = {};
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            weights.multiply(Qkv::COUNT + round * HALVES + half, activations(mixed + half * STEP), sums);
        }
        const int output = (round * WARPS + warp) * TILE + lane * 2;
        if (lane < STEP / PIECE && output < outputs) {
            float2 result = outputs_of(sums);
            if (head == 0) {
                result.x += told.out_bias[output] + stream.raw[first_output + output];
                result.y += told.out_bias[output + 1] + stream.raw[first_output + output + 1];
            }
            const size_t at = (static_cast<size_t>(head) * hidden + first_output + output) / 2;
            tell_numbers<T>(p.out + at, result.x, result.y, tag);
        }
    }
}

// Grid: a cluster for each part. A block has SHARE pieces of the inner numbers; of the outputs each warp has those
// that the block of its number adds up.
template <class T, int PIECES, int SHARE>
__global__ void __launch_bounds__(THREADS, FEED_FORWARD_BLOCKS) feed_forward_block(const LanternFeedForward p) {
    using Up = Rows<T, PIECES, SHARE>;
    static_assert(PIECE == TILE, "a tile for each piece of inner numbers");
    constexpr int INNER = SHARE * PIECE;
    constexpr int DOWN_TILES = PIECES * WARP * PIECE / CLUSTER / TILE;  // of a warp, at most
    extern __shared__ uint4 shared[];
    __shared__ Stream<T> stream;
    __shared__ Up up;
    // What the cluster's blocks give for this one's outputs, as they send it: (CLUSTER, outputs).
    __shared__ alignas(16) float sums[MAX_HIDDEN];
    __shared__ alignas(16) T inner[STEP];
    __shared__ uint64_t sums_told;
    start_dependents();
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, hidden = p.hidden;
    const int part = blockIdx.x / CLUSTER, rank = cluster_rank(), first = blockIdx.x * INNER;
    const uint32_t told = shared_address(&sums_told);
    if (threadIdx.x == 0) {
        stream.expect(hidden);
        expect_bytes(told, hidden * sizeof(float));
    }
    announce_barriers();

    const Pieces<T> weights(shared);
    Up::ask(weights, p.up_weight, hidden, [&](int index) { return first + index; });
    const int outputs = hidden / CLUSTER;
#pragma unroll
    for (int tile = 0; tile < DOWN_TILES; ++tile) {
        const int output = tile * TILE + lane / 4;
        const size_t row = warp * outputs + output;
        weights.ask(Up::COUNT + tile, p.down_weight, row * p.inner + first + lane % 4 * PIECE,
                    output < outputs && lane % 4 < SHARE);
    }
    close_copies();
    const typename Stream<T>::Factors factors(p.norm, hidden);
    const uint32_t tag = tag_of(p.step);
    const bool has_inner = threadIdx.x < INNER;
    const float up_bias = has_inner ? bias_at<T>(p.up_bias, first + threadIdx.x) : 0.f;
    const int pair = rank * outputs + threadIdx.x * 2;
    const bool finishes = static_cast<int>(threadIdx.x) < outputs / 2;
    float2 down_bias = make_float2(0.f, 0.f);
    if (finishes && part == 0) {
        down_bias = make_float2(bias_at<T>(p.down_bias, pair), bias_at<T>(p.down_bias, pair + 1));
    }
    await_cluster();

    stream.add_up(p.x, hidden, rank, tag);
    stream.apply(p.norm, factors, hidden);
    await_copies<0>();
    up.multiply(weights, stream.normed, hidden);
    if (threadIdx.x < STEP) {
        const float sum = has_inner ? activated(up.sum(threadIdx.x) + up_bias, p.activation) : 0.f;
        inner[threadIdx.x] = from_float<T>(sum);
    }
    __syncthreads();
    const uint4 numbers = activations(inner);
#pragma unroll
    for (int tile = 0; tile < DOWN_TILES; ++tile) {
        float products[2][4] = {};
        weights.multiply(Up::COUNT + tile, numbers, products);
        const int output = tile * TILE + lane * 2;
        if (lane < STEP / PIECE && output < outputs) {
            send(warp, shared_address(sums + rank * outputs + output), outputs_of(products), told);
        }
    }
    await_bytes(told);
    if (finishes) {
        float2 sum = down_bias;
        if (part == 0) {
            sum.x += stream.raw[pair];
            sum.y += stream.raw[pair + 1];
        }
#pragma unroll
        for (int other = 0; other < CLUSTER; ++other) {
            const float2 more = *reinterpret_cast<const float2 *>(sums + other * outputs + threadIdx.x * 2);
            sum.x += more.x;
            sum.y += more.y;
        }
        tell_numbers<T>(p.out + (static_cast<size_t>(part) * hidden + pair) / 2, sum.x, sum.y, tag);
    }
}

// One block. It ends the step: when all parts are there, all kernels before it have read the step's number.
template <class T>
__global__ void __launch_bounds__(ADD_THREADS) add_parts(const LanternStream x, T *out, uint32_t *step, int hidden) {
    start_dependents();
    const uint32_t tag = tag_of(step);
    for (int i = threadIdx.x; i - threadIdx.x % WARP < hidden / 4 * CLUSTER; i += ADD_THREADS) {
        const int slot = i % CLUSTER, at = i / CLUSTER * 4;
        float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
        if (at < hidden) {
            sum = await_parts<T>(x, at, hidden, slot, tag);
        }
        __syncwarp();
        sum = add_parts_up(sum);
        if (at < hidden && slot == 0) {
            *reinterpret_cast<uint2 *>(out + at) =
                make_uint2(Pair<T>::pack(sum.x, sum.y), Pair<T>::pack(sum.z, sum.w));
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        *step = tag;
    }
}

inline int row_pieces(int hidden) { return ceil_div(hidden, WARP * PIECE); }

// Whether there are kernels for layers like these.
inline bool fits(int hidden, int heads, int kv_heads, int dim, int inner) {
    const bool attends = dim == DIM && heads == kv_heads && heads <= MAX_PARTS;
    const int share = inner_share(inner);
    return attends && hidden % (CLUSTER * PIECE) == 0 && hidden <= MAX_HIDDEN && share <= MAX_SHARE &&
           inner % (CLUSTER * PIECE * share) == 0;
}

constexpr size_t bytes_of(int pieces) { return static_cast<size_t>(pieces) * THREADS * sizeof(uint4); }

template <class T, int PIECES>
cudaError_t start(const LanternAttentionBlock &p, cudaStream_t stream) {
    constexpr int ROUNDS = (PIECES * WARP * PIECE / CLUSTER / TILE + WARPS - 1) / WARPS;
    const size_t bytes = bytes_of(PIECES * QKV_ROWS / TILE + ROUNDS * DIM / STEP);
    const int blocks = p.attention.heads * CLUSTER;
    return launch_clusters(attention_block<T, PIECES>, blocks, CLUSTER, THREADS, bytes, stream, p);
}

template <class T, int PIECES, int SHARE>
cudaError_t start_share(const LanternFeedForward &p, cudaStream_t stream) {
    const size_t bytes = bytes_of(PIECES * SHARE + PIECES * WARP * PIECE / CLUSTER / TILE);
    const int blocks = p.inner / (SHARE * PIECE);
    return launch_clusters(feed_forward_block<T, PIECES, SHARE>, blocks, CLUSTER, THREADS, bytes, stream, p);
}

template <class T, int PIECES>
cudaError_t start(const LanternFeedForward &p, cudaStream_t stream) {
    switch (inner_share(p.inner)) {
        case 1:
            return start_share<T, PIECES, 1>(p, stream);
        case 2:
            return start_share<T, PIECES, 2>(p, stream);
        default:
            return start_share<T, PIECES, MAX_SHARE>(p, stream);
    }
}

// Either block.
template <class T, class Block>
cudaError_t run(const Block &p, cudaStream_t stream) {
    switch (row_pieces(p.hidden)) {
        case 1:
            return start<T, 1>(p, stream);
        case 2:
            return start<T, 2>(p, stream);
        case 3:
            return start<T, 3>(p, stream);
        default:
            return start<T, MAX_PIECES>(p, stream);
    }
}

}  // namespace layer
}  // namespace lantern
