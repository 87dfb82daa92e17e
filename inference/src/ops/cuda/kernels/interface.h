// What Rust calls: plain structs and functions that launch kernels on a stream. `kernels.rs` mirrors it.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

extern "C" {

enum LanternType { LANTERN_F32 = 0, LANTERN_F16 = 1, LANTERN_BF16 = 2 };

enum LanternActivation {
    LANTERN_NO_ACTIVATION = 0,
    LANTERN_RELU = 1,
    LANTERN_GELU = 2,
    LANTERN_GELU_TANH = 3,
    LANTERN_SILU = 4,
};

enum LanternNormKind { LANTERN_NO_NORM = 0, LANTERN_LAYER_NORM = 1, LANTERN_RMS_NORM = 2 };

// A norm over the last dimension. `bias` may be null.
struct LanternNorm {
    const void *weight;
    const void *bias;
    float eps;
    int kind;
};

// out = residual + activation(norm(x) . weight^T + bias): x (rows, inputs), weight (outputs, inputs), out (rows,
// outputs), or (rows, outputs / 2) if gated. `bias` and `residual` may be null.
struct LanternProduct {
    const void *x;
    const void *weight;
    const void *bias;
    const void *residual;
    void *out;
    LanternNorm norm;
    int rows;
    int inputs;
    int outputs;
    int activation;
    int gated;
    int type;
};

// Whether there is a kernel for such a product, and whether it takes a norm along; if not, `norm.kind` must be
// LANTERN_NO_NORM.
int lantern_product_fits(int rows, int inputs, int type);
int lantern_product_norms(int rows, int inputs, int type);
cudaError_t lantern_product(const LanternProduct *product, cudaStream_t stream);

// out = activation(x), or activation of x's first half times its second if gated: out (rows, results). `out` may be
// `x` if it is not gated.
cudaError_t lantern_activate(const void *x, void *out, int rows, int results, int activation, int gated, int type,
                             cudaStream_t stream);

// out = residual + norm(x), (rows, size); `residual` may be null.
cudaError_t lantern_norm(const void *x, const void *residual, void *out, const LanternNorm *norm, int rows,
                         int size, int type, cudaStream_t stream);

// out[row] = tokens[ids[row]] * scale + table[positions[row] + offset]; `tokens` or `table` may be null.
struct LanternEmbedding {
    const void *tokens;
    const void *table;
    void *out;
    const uint32_t *ids;
    const uint32_t *positions;
    float scale;
    int offset;
    int rows;
    int size;
    int type;
};
cudaError_t lantern_embed(const LanternEmbedding *embedding, cudaStream_t stream);

// out[i] = x[rows[i]], rows of `size` numbers.
cudaError_t lantern_gather(const void *x, const uint32_t *rows, void *out, int count, int size, int type,
                           cudaStream_t stream);

// Rows of a prompt that are attended with together.
#define LANTERN_TILE_ROWS 64

// Causal attention over pages. Row r of `qkv` (rows, (heads + 2 kv_heads) * dim) belongs to span `span_of[r]`;
// its keys and values go to `slots[r]`, nowhere if that is ~0; its place is `positions[r]`.
struct LanternAttention {
    const void *qkv;
    void *keys;
    void *values;
    void *out;
    const uint32_t *positions;
    const uint32_t *slots;
    const uint32_t *span_of;
    // Per span: where in `tables` its block table starts.
    const uint32_t *table_starts;
    const uint32_t *tables;
    // Radians per token, (dim / 2); null: none.
    const float *frequencies;
    LanternNorm query_norm;
    LanternNorm key_norm;
    // Of split decode: see lantern_attention_scratch_bytes. `arrivals` holds zeros between launches.
    float *scratch;
    uint32_t *arrivals;
    float scale;
    // A row sees so many tokens; 0: all.
    int window;
    int rows;
    // Rows of spans that have one alone, and how many; not read if there are no tiles: then all rows are.
    const uint32_t *single_rows;
    int singles;
    // Of longer spans, up to LANTERN_TILE_ROWS rows each: where they start, and how many they are.
    int tiles;
    const uint32_t *tile_rows;
    const uint32_t *tile_lengths;
    int heads;
    int kv_heads;
    int dim;
    int type;
    // Into how many parts long contexts of single rows are split.
    int splits;
};

// How many parts contexts should be split into when so many rows decode.
int lantern_attention_splits(int rows, int kv_heads);
size_t lantern_attention_scratch_bytes(int rows, int heads, int dim, int splits);
cudaError_t lantern_attention(const LanternAttention *attention, cudaStream_t stream);

// The residual stream of one row on its way between kernels, `hidden` numbers as `parts` rows to be added up: two
// 16-bit numbers and the step's tag in 8 bytes (parts, hidden / 2), so that a reader sees by itself what has come.
// Or, where a layer is the first, the numbers themselves.
struct LanternStream {
    const void *row;
    unsigned long long *lines;
    int parts;
};

// The attention of a decoder layer with its products, of one row: out = x + attention(norm(x)), as one part for each
// head. `attention` lacks what is between its kernels: qkv, out, scratch, tiles, splits.
struct LanternAttentionBlock {
    LanternStream x;
    LanternNorm norm;
    const void *qkv_weight;
    const void *qkv_bias;
    const void *out_weight;
    const void *out_bias;
    unsigned long long *out;
    const uint32_t *step;
    LanternAttention attention;
    int hidden;
    int type;
};

// The feed-forward: out = x + down(activation(up(norm(x)))), as lantern_layer_parts(inner) parts.
struct LanternFeedForward {
    LanternStream x;
    LanternNorm norm;
    const void *up_weight;
    const void *up_bias;
    const void *down_weight;
    const void *down_bias;
    unsigned long long *out;
    const uint32_t *step;
    int hidden;
    int inner;
    int activation;
    int type;
};

// Whether there are kernels for layers of these sizes, and how many parts their feed-forward gives.
int lantern_layer_fits(int hidden, int heads, int kv_heads, int dim, int inner, int type);
int lantern_layer_parts(int inner);
// The most parts there are.
#define LANTERN_MAX_PARTS 16
// `step` counts steps: lines are as long, and zeros before the first one. Kernels of a step must be launched one right
// after the other.
cudaError_t lantern_attention_block(const LanternAttentionBlock *block, cudaStream_t stream);
cudaError_t lantern_feed_forward(const LanternFeedForward *block, cudaStream_t stream);
// out (hidden) = the sum of the parts; ends the step.
cudaError_t lantern_add_parts(const LanternStream *x, void *out, uint32_t *step, int hidden, int type,
                              cudaStream_t stream);

// How a row's token is chosen. Tokens that have occurred lose something first. Then, at a temperature of 0, it is the
// best one; else one among those that are at least `min_p` times as likely as the best, of these the `top_k` best (0:
// all), of these the fewest best that have the share `top_p`; as likely as their logits, divided by the temperature,
// say. Chance is in the key.
struct LanternChoice {
    float temperature;
    float min_p;
    uint32_t top_k;
    float top_p;
    uint32_t key_low;
    uint32_t key_high;
    float repetition;
    float frequency;
    float presence;
    // Where in `penalized` its pairs begin, in numbers, and how many they are.
    uint32_t penalized;
    uint32_t penalized_count;
    // The row's own token is to be counted too; the last pair is free for it.
    uint32_t counts_last;
    // 0: no log probabilities; else one more than the number of best tokens that are wanted with theirs.
    uint32_t logprobs;
};

// In place of how often a token is in the output: it must not be taken.
#define LANTERN_NEVER 0xffffffffu
// The most best tokens.
#define LANTERN_MAX_TOP_LOGPROBS 20

// Log probabilities by the logits alone: of the token chosen, which has that rank, and of the best ones.
struct LanternLogprobs {
    float chosen;
    uint32_t rank;
    uint32_t tokens[LANTERN_MAX_TOP_LOGPROBS];
    float values[LANTERN_MAX_TOP_LOGPROBS];
};

// chosen[row] = an index of logits[row] (rows, vocabulary), ~0 if none is a number.
struct LanternChoose {
    const void *logits;
    const LanternChoice *choices;
    // Of each row of logits: which row of the step that is, whose token is in `ids`.
    const uint32_t *wanted;
    const uint32_t *ids;
    // Pairs of a token and how often it is in the output; overwritten.
    uint32_t *penalized;
    uint32_t *chosen;
    LanternLogprobs *logprobs;
    int rows;
    int vocabulary;
    int type;
};
cudaError_t lantern_choose(const LanternChoose *choose, cudaStream_t stream);

// ids[rows[i]] = chosen[from[i]]
cudaError_t lantern_carry(uint32_t *ids, const uint32_t *rows, const uint32_t *from, const uint32_t *chosen,
                          int count, cudaStream_t stream);
}
