// Values in the engine's type to floats, exactly, from its memory.
#ifndef LATENTKV_KERNELS_CUDA_LOAD_VALUE_CUH_
#define LATENTKV_KERNELS_CUDA_LOAD_VALUE_CUH_

#include "kernels/cuda/store_value.cuh"

namespace latentkv::cuda {

template <DType kDType>
__device__ inline float ToFloat(Stored<kDType> value) {
  if constexpr (kDType == DType::kFp32) {
    return __uint_as_float(value);
  } else if constexpr (kDType == DType::kBf16) {
    return __uint_as_float(uint32_t{value} << 16);
  } else if constexpr (kDType == DType::kFp16) {
    return __half2float(__ushort_as_half(value));
  } else {
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(value, __NV_E4M3)));
  }
}

// kChunkChannels values from `from` on, `stride` bytes apart.
template <DType kDType>
__device__ inline void LoadChunk(const uint8_t* from, int64_t stride, float (&values)[kChunkChannels]) {
  using Value = Stored<kDType>;
  constexpr uint32_t kBytes = kChunkChannels * sizeof(Value), kAlignment = kBytes < 16 ? kBytes : 16;
  if (stride == sizeof(Value) && reinterpret_cast<uintptr_t>(from) % kAlignment == 0) {
    constexpr uint32_t kPerWord = 4 / sizeof(Value), kWords = kBytes / 4;
    uint32_t words[kWords];
    if constexpr (kAlignment == 8) {
      const uint2 two = __ldcs(reinterpret_cast<const uint2*>(from));
      words[0] = two.x, words[1] = two.y;
    } else {
#pragma unroll
      for (uint32_t w = 0; w < kWords; w += 4) {
        const uint4 four = __ldcs(reinterpret_cast<const uint4*>(from + 4 * w));
        words[w] = four.x, words[w + 1] = four.y, words[w + 2] = four.z, words[w + 3] = four.w;
      }
    }
#pragma unroll
    for (uint32_t k = 0; k < kChunkChannels; ++k) {
      values[k] = ToFloat<kDType>(static_cast<Value>(words[k / kPerWord] >> 8 * sizeof(Value) * (k % kPerWord)));
    }
  } else {
#pragma unroll
    for (uint32_t k = 0; k < kChunkChannels; ++k) {
      values[k] = ToFloat<kDType>(*reinterpret_cast<const Value*>(from + k * stride));
    }
  }
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_LOAD_VALUE_CUH_
