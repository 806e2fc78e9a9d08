// Floats to values in the engine's type, with the bits of FromFloat of
// kernels/rotary.h, and to its memory.
#ifndef LATENTKV_KERNELS_CUDA_STORE_VALUE_CUH_
#define LATENTKV_KERNELS_CUDA_STORE_VALUE_CUH_

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

#include "core/geometry.h"
#include "kernels/cuda/restore_types.h"

namespace latentkv::cuda {

template <DType kDType>
using Stored = std::conditional_t<
    kDType == DType::kFp32, uint32_t,
    std::conditional_t<kDType == DType::kFp8E4M3, uint8_t, uint16_t>>;

template <DType kDType>
__device__ inline Stored<kDType> Convert(float value) {
  const uint32_t bits = __float_as_uint(value);
  if constexpr (kDType == DType::kFp32) {
    return bits;
  } else if constexpr (kDType == DType::kBf16) {
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  } else if constexpr (kDType == DType::kFp16) {
    if ((bits & 0x7fffffffu) > 0x7f800000u)
      return (bits >> 16 & 0x8000) | 0x7e00 | (bits >> 13 & 0x3ff);
    return __half_as_ushort(__float2half_rn(value));
  } else {
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 24 & 0x80) | 0x7f;
    return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
  }
}

// kChunkChannels values to `to`, `stride` bytes apart: together where they lie
// together and are aligned. They are not read again soon, and the cache is for
// operands.
template <DType kDType>
__device__ inline void StoreChunk(const float (&values)[kChunkChannels],
                                  uint8_t* to, int64_t stride) {
  using Value = Stored<kDType>;
  constexpr uint32_t kBytes = kChunkChannels * sizeof(Value),
                     kAlignment = kBytes < 16 ? kBytes : 16;
  constexpr uint32_t kPerWord = 4 / sizeof(Value), kWords = kBytes / 4;
  uint32_t words[kWords];
#pragma unroll
  for (uint32_t w = 0; w < kWords; ++w) {
    words[w] = 0;
#pragma unroll
    for (uint32_t i = 0; i < kPerWord; ++i) {
      words[w] |= uint32_t{Convert<kDType>(values[w * kPerWord + i])}
                  << 8 * sizeof(Value) * i;
    }
  }
  if (stride == sizeof(Value) &&
      reinterpret_cast<uintptr_t>(to) % kAlignment == 0) {
    if constexpr (kAlignment == 8) {
      __stcs(reinterpret_cast<uint2*>(to), make_uint2(words[0], words[1]));
    } else {
#pragma unroll
      for (uint32_t w = 0; w < kWords; w += 4) {
        __stcs(reinterpret_cast<uint4*>(to + 4 * w),
               make_uint4(words[w], words[w + 1], words[w + 2], words[w + 3]));
      }
    }
  } else {
#pragma unroll
    for (uint32_t k = 0; k < kChunkChannels; ++k) {
      *reinterpret_cast<Value*>(to + k * stride) = static_cast<Value>(
          words[k / kPerWord] >> 8 * sizeof(Value) * (k % kPerWord));
    }
  }
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_STORE_VALUE_CUH_
