// The kernels of attention on tensor cores and over single rows: each type's are compiled by themselves, at the same
// time.
#pragma once

#include "interface.h"

namespace lantern {

// Single rows; `placed`: those that `single_rows` names, once keys and values are in the pages. Else all rows, and
// they place their own.
template <class T>
cudaError_t attend_singles(const LanternAttention &p, bool placed, cudaStream_t stream);

// Tiles of placed rows.
template <class T>
cudaError_t attend_tiles(const LanternAttention &p, cudaStream_t stream);

}  // namespace lantern
