// Attention of tiles of prompts, f16.

#include "attention.h"
#include "prefill.cuh"

namespace lantern {

template <>
cudaError_t attend_tiles<__half>(const LanternAttention &p, cudaStream_t stream) {
    return prefill::run<__half>(p, stream);
}

}  // namespace lantern
