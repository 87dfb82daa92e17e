// Products of activations and weights with few rows.

#include "skinny.cuh"
#include "wide.cuh"

extern "C" int lantern_product_fits(int rows, int inputs, int type) {
    return type != LANTERN_F32 && lantern::skinny::fits(rows, inputs);
}

extern "C" int lantern_product_norms(int rows, int inputs, int type) {
    return type != LANTERN_F32 && lantern::skinny::stages(rows, inputs);
}

extern "C" cudaError_t lantern_product(const LanternProduct *product, cudaStream_t stream) {
    const bool norms = product->norm.kind != LANTERN_NO_NORM;
    if (!lantern_product_fits(product->rows, product->inputs, product->type) ||
        (norms && !lantern_product_norms(product->rows, product->inputs, product->type))) {
        return cudaErrorInvalidValue;
    }
    const bool is_f16 = product->type == LANTERN_F16;
    if (lantern::wide::fits(*product)) {
        return is_f16 ? lantern::wide::run<__half>(*product, stream)
                      : lantern::wide::run<__nv_bfloat16>(*product, stream);
    }
    return is_f16 ? lantern::skinny::run<__half>(*product, stream)
                  : lantern::skinny::run<__nv_bfloat16>(*product, stream);
}
