// Values of an engine's type as byte planes, for lossless coding: the sign goes to the low end, so that the first plane
// holds the exponent's leading bits, and each channel's tokens lie together.
#ifndef LATENTKV_KERNELS_PLANES_H_
#define LATENTKV_KERNELS_PLANES_H_

#include <cstdint>

namespace latentkv {

// planes[p][channel][token] is byte element_bytes - 1 - p (the most significant first) of
// values[token][channel] rotated left by one bit. `values` holds little-endian integers of `element_bytes` bytes
// (1, 2 or 4); nothing need be aligned.
void SplitPlanes(const uint8_t* values, uint32_t tokens, uint32_t channels, uint32_t element_bytes, uint8_t* planes);

// The inverse, plane by plane: `top` is plane 0, [channels][tokens], and `rest` the planes after it.
void MergePlanes(const uint8_t* top, const uint8_t* rest, uint32_t tokens, uint32_t channels, uint32_t element_bytes,
                 uint8_t* values);

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_PLANES_H_
