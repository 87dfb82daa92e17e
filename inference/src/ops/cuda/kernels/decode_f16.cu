// Attention of single rows, f16.

#include "attention.h"
#include "decode.cuh"

namespace lantern {

template <>
cudaError_t attend_singles<__half>(const LanternAttention &p, bool placed, cudaStream_t stream) {
    return decode::run<__half>(p, placed, stream);
}

}  // namespace lantern
