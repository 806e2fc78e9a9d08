// The checksum of a section, by a warp.
#ifndef LATENTKV_KERNELS_CUDA_SECTION_CHECKSUM_CUH_
#define LATENTKV_KERNELS_CUDA_SECTION_CHECKSUM_CUH_

#include <cstdint>

#include "kernels/cuda/crc32c.h"
#include "kernels/cuda/decode_image.h"

namespace latentkv::cuda {

// x^(8 bytes): what the remainder of a run is multiplied by for `bytes` behind
// it.
__device__ inline uint32_t CrcPower(const DecodeImage& image, uint32_t bytes) {
  uint32_t power = 0x80000000;  // x^0.
  for (uint32_t i = 0; bytes >> i != 0; ++i) {
    if (bytes >> i & 1) power = CrcProduct(power, image.powers[i]);
  }
  return power;
}

// CRC-32C of `count` bytes, which are aligned to 16 and readable up to a
// multiple of 16: each lane takes a run of them.
__device__ inline uint32_t SectionChecksum(const DecodeImage& image,
                                           const uint8_t* bytes, uint32_t count,
                                           uint32_t lane) {
  const uint32_t run = (count + 32 * 16 - 1) / (32 * 16) * 16;
  const uint32_t first = min(lane * run, count), last = min(first + run, count);
  const uint4* from = reinterpret_cast<const uint4*>(bytes);
  uint32_t crc = lane == 0 ? 0xffffffff : 0;
  uint4 next = first < last ? from[first / 16] : uint4{};
  for (uint32_t at = first; at < last; at += 16) {
    const uint32_t words[4] = {next.x, next.y, next.z, next.w};
    const uint32_t valid = min(16u, last - at);
    if (valid == 16 && at + 16 < last) next = from[at / 16 + 1];
#pragma unroll
    for (uint32_t w = 0; w < 4; ++w) {
      if (valid >= 4 * w + 4) {
        crc ^= words[w];
        crc =
            image.checksums[3][crc & 255] ^ image.checksums[2][crc >> 8 & 255] ^
            image.checksums[1][crc >> 16 & 255] ^ image.checksums[0][crc >> 24];
      } else {
        for (uint32_t b = 4 * w; b < valid; ++b) {
          crc = crc >> 8 ^
                image.checksums[0][(crc ^ words[w] >> 8 * (b % 4)) & 255];
        }
      }
    }
  }
  crc = CrcProduct(crc, CrcPower(image, count - last));
  for (int apart = 16; apart > 0; apart /= 2)
    crc ^= __shfl_xor_sync(~0u, crc, apart);
  return ~crc;
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_SECTION_CHECKSUM_CUH_
