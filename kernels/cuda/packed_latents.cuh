// Latents of a token in four rows, a byte of a word each: byte j is of row j.
#ifndef LATENTKV_KERNELS_CUDA_PACKED_LATENTS_CUH_
#define LATENTKV_KERNELS_CUDA_PACKED_LATENTS_CUH_

#include <cstdint>

namespace latentkv::cuda {

// `w` is known to the compiler.
__device__ inline uint32_t Word(const uint4& words, uint32_t w) {
  return w == 0 ? words.x : w == 1 ? words.y : w == 2 ? words.z : words.w;
}
// Zigzags (kernels/latents.h).
__device__ inline uint32_t Zigzags(uint32_t latents) {
  return (latents << 1 & 0xfefefefeu) ^ (latents >> 7 & 0x01010101u) * 255;
}
// No latent is -128.
__device__ inline uint32_t Magnitudes(uint32_t latents) {
  const uint32_t negative = latents >> 7 & 0x01010101u;
  return (latents ^ negative * 255) + negative;
}
// 0x80 where a byte is not 0, and 0 elsewhere.
__device__ inline uint32_t NotZero(uint32_t bytes) {
  return ((bytes & 0x7f7f7f7fu) + 0x7f7f7f7fu | bytes) & 0x80808080u;
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_PACKED_LATENTS_CUH_
