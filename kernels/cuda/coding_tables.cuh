// The tables of the entropy coder in shared memory.
#ifndef LATENTKV_KERNELS_CUDA_CODING_TABLES_CUH_
#define LATENTKV_KERNELS_CUDA_CODING_TABLES_CUH_

#include <cstdint>

#include "kernels/cuda/latent_encode.h"
#include "kernels/entropy.h"
#include "kernels/latent_entropy.h"
#include "kernels/latents.h"

namespace latentkv::cuda {

// Of a class's symbols. One more than there are, so that a symbol's places in
// all classes lie in different banks.
inline constexpr uint32_t kClassStride = 257;

// frequency | kEscapes | start << 16
inline constexpr uint32_t kFrequency = 2 * kProbabilityOne - 1,
                          kEscapes = 1u << 15;
static_assert(kFrequency < kEscapes);
// Leaves states as they are.
inline constexpr uint2 kNoSymbol = {kProbabilityOne,
                                    1u << (32 - kProbabilityBits)};

struct CodingTables {
  // A range as above, and 2^32 / frequency. Symbols that a class lacks have
  // that of its escape.
  uint2 ranges[kLatentClasses * kClassStride];
  uint8_t magnitude_max[kLatentClasses];
};
static_assert(sizeof(CodingTables) <= 227 * 1024);

// By a CTA of kThreads.
template <uint32_t kThreads>
__device__ inline void LoadTables(const CodingParams& params,
                                  CodingTables* shared) {
  for (uint32_t i = threadIdx.x; i < kLatentClasses * 256; i += kThreads) {
    uint32_t range = params.ranges[i];
    const bool escapes = (range & kFrequency) == 0 || i % 256 == kEscapeSymbol;
    if (escapes) range = params.ranges[i | kEscapeSymbol] | kEscapes;
    const uint32_t frequency = range & kFrequency;
    const uint32_t inverse =
        frequency < 2 ? ~0u
                      : static_cast<uint32_t>((uint64_t{1} << 32) / frequency);
    shared->ranges[i / 256 * kClassStride + i % 256] = {range, inverse};
  }
  for (uint32_t i = threadIdx.x; i < kLatentClasses; i += kThreads)
    shared->magnitude_max[i] = params.magnitude_max[i];
  __syncthreads();
}

// Of an address in shared memory, which has 32 bits. The tables are written
// before any is read, and not again.
__device__ inline uint32_t SharedByte(uint32_t address) {
  uint32_t value;
  asm("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(address));
  return value;
}
__device__ inline uint2 SharedPair(uint32_t address) {
  uint2 value;
  asm("ld.shared.v2.u32 {%0, %1}, [%2];"
      : "=r"(value.x), "=r"(value.y)
      : "r"(address));
  return value;
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_CODING_TABLES_CUH_
