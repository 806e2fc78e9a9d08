// Values of an engine's type as byte planes, for lossless coding: the sign goes
// to the low end, so that the first plane holds the exponent's leading bits,
// and each channel's tokens lie together.
#ifndef LATENTKV_KERNELS_PLANES_H_
#define LATENTKV_KERNELS_PLANES_H_

#include <cstdint>

#include "kernels/backend.h"

namespace latentkv {

// Plane p, [channel][token], is byte element_bytes - 1 - p (the most
// significant first) of values[token][channel] rotated left by one bit: plane 0
// into `top`, the planes after it into `rest`. `values` holds little-endian
// integers of `element_bytes` bytes (1, 2 or 4); nothing need be aligned.
// `backend` must be available.
void SplitPlanes(const uint8_t* values, uint32_t tokens, uint32_t channels,
                 uint32_t element_bytes, uint8_t* top, uint8_t* rest,
                 Backend backend = BestBackend());

// The inverse.
void MergePlanes(const uint8_t* top, const uint8_t* rest, uint32_t tokens,
                 uint32_t channels, uint32_t element_bytes, uint8_t* values,
                 Backend backend = BestBackend());

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_PLANES_H_
