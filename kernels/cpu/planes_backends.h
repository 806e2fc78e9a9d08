// What SplitPlanes and MergePlanes do for elements of two bytes, where tokens
// are a multiple of kPlaneTokens and channels of kPlaneChannels.
#ifndef LATENTKV_KERNELS_CPU_PLANES_BACKENDS_H_
#define LATENTKV_KERNELS_CPU_PLANES_BACKENDS_H_

#include <cstdint>

namespace latentkv::kernels {

inline constexpr uint32_t kPlaneTokens = 32;
inline constexpr uint32_t kPlaneChannels = 8;

void SplitPlanes16Avx2(const uint8_t* values, uint32_t tokens,
                       uint32_t channels, uint8_t* top, uint8_t* rest);
void MergePlanes16Avx2(const uint8_t* top, const uint8_t* rest, uint32_t tokens,
                       uint32_t channels, uint8_t* values);

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_PLANES_BACKENDS_H_
