// Attention of single rows, bf16.

#include "attention.h"
#include "decode.cuh"

namespace lantern {

template <>
cudaError_t attend_singles<__nv_bfloat16>(const LanternAttention &p, bool placed, cudaStream_t stream) {
    return decode::run<__nv_bfloat16>(p, placed, stream);
}

}  // namespace lantern
