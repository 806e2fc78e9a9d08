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

// kChunkChannels values as they lie in memory.
template <DType kDType>
struct RawChunk {
  using Value = Stored<kDType>;
  static constexpr uint32_t kBytes = kChunkChannels * sizeof(Value),
                            kPerWord = 4 / sizeof(Value);
  static constexpr uint32_t kAlignment = kBytes < 16 ? kBytes : 16;
  uint32_t words[kBytes / 4];

  // From `from` on, a multiple of kAlignment.
  __device__ __forceinline__ static RawChunk Load(const uint8_t* from) {
    RawChunk chunk;
    if constexpr (kAlignment == 8) {
      const uint2 two = __ldcs(reinterpret_cast<const uint2*>(from));
      chunk.words[0] = two.x, chunk.words[1] = two.y;
    } else {
#pragma unroll
      for (uint32_t w = 0; w < kBytes / 4; w += 4) {
        const uint4 four = __ldcs(reinterpret_cast<const uint4*>(from + 4 * w));
        chunk.words[w] = four.x, chunk.words[w + 1] = four.y,
        chunk.words[w + 2] = four.z, chunk.words[w + 3] = four.w;
      }
    }
    return chunk;
  }
  // From `from` on, `stride` bytes apart.
  __device__ __noinline__ static RawChunk Load(const uint8_t* from,
                                               int64_t stride) {
    RawChunk chunk = {};
#pragma unroll
    for (uint32_t k = 0; k < kChunkChannels; ++k) {
      const uint32_t value = *reinterpret_cast<const Value*>(from + k * stride);
      chunk.words[k / kPerWord] |= value << 8 * sizeof(Value) * (k % kPerWord);
    }
    return chunk;
  }
  // `k` is known to the compiler.
  __device__ __forceinline__ float At(uint32_t k) const {
    return ToFloat<kDType>(static_cast<Value>(
        words[k / kPerWord] >> 8 * sizeof(Value) * (k % kPerWord)));
  }
};

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_LOAD_VALUE_CUH_
