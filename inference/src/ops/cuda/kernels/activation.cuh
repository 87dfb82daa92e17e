// The activations that come after a product.
#pragma once

#include "interface.h"

namespace lantern {

__device__ inline float activated(float x, int activation) {
    switch (activation) {
        case LANTERN_RELU:
            return fmaxf(x, 0.f);
        case LANTERN_GELU:
            return 0.5f * x * (1.f + erff(x * 0.70710678f));
        case LANTERN_GELU_TANH:
            return 0.5f * x * (1.f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
        case LANTERN_SILU:
            return x / (1.f + __expf(-x));
        default:
            return x;
    }
}

// A gate's sum and the rest's, or one sum, as what the product gives.
__device__ inline float combined(float sum, float rest, int activation, bool gated) {
    const float value = activated(sum, activation);
    return gated ? value * rest : value;
}

}  // namespace lantern
