// Decoder layers of one row.

#include "layer.cuh"

using namespace lantern;

extern "C" int lantern_layer_fits(int hidden, int heads, int kv_heads, int dim, int inner, int type) {
    return type != LANTERN_F32 && device_major() >= 9 && layer::fits(hidden, heads, kv_heads, dim, inner);
}

extern "C" int lantern_layer_parts(int inner) {
    return inner / (CLUSTER * layer::PIECE * layer::inner_share(inner));
}

extern "C" cudaError_t lantern_attention_block(const LanternAttentionBlock *block, cudaStream_t stream) {
    return block->type == LANTERN_F16 ? layer::run<__half>(*block, stream)
                                      : layer::run<__nv_bfloat16>(*block, stream);
}

extern "C" cudaError_t lantern_feed_forward(const LanternFeedForward *block, cudaStream_t stream) {
    return block->type == LANTERN_F16 ? layer::run<__half>(*block, stream)
                                      : layer::run<__nv_bfloat16>(*block, stream);
}

template <class T>
static cudaError_t add_parts(const LanternStream &x, void *out, uint32_t *step, int hidden, cudaStream_t stream) {
    return launch(layer::add_parts<T>, 1, layer::ADD_THREADS, 0, stream, x, static_cast<T *>(out), step, hidden);
}

extern "C" cudaError_t lantern_add_parts(const LanternStream *x, void *out, uint32_t *step, int hidden, int type,
                                         cudaStream_t stream) {
    return type == LANTERN_F16 ? add_parts<__half>(*x, out, step, hidden, stream)
                               : add_parts<__nv_bfloat16>(*x, out, step, hidden, stream);
}
