// Attention of tiles of prompts, bf16.

#include "attention.h"
#include "prefill.cuh"

namespace lantern {

template <>
cudaError_t attend_tiles<__nv_bfloat16>(const LanternAttention &p, cudaStream_t stream) {
    return prefill::run<__nv_bfloat16>(p, stream);
}

}  // namespace lantern
