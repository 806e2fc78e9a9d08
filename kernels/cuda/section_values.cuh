// Values that a section stores as the engine holds them: tokens that are exact,
// and sinks. Both are rare, and out of line.
#ifndef LATENTKV_KERNELS_CUDA_SECTION_VALUES_CUH_
#define LATENTKV_KERNELS_CUDA_SECTION_VALUES_CUH_

#include <cstdint>

#include "kernels/cuda/latent_encode.h"
#include "kernels/cuda/load_value.cuh"

namespace latentkv::cuda {

inline constexpr uint32_t kWarp = 32;

template <DType kDType>
__device__ inline Stored<kDType> ValueAt(const CodingParams& params,
                                         uint32_t part, uint32_t block,
                                         uint32_t token, uint32_t head,
                                         uint32_t dim) {
  const DevicePart& pages = params.parts[part];
  const TokenSlot slot = params.slots[size_t{block} * kBlockTokens + token];
  return *reinterpret_cast<const Stored<kDType>*>(
      pages.base + slot.page * pages.page + slot.offset * pages.token +
      head * pages.head + dim * pages.dim);
}

// A token's values of some parts, by a warp.
template <DType kDType>
__device__ __noinline__ void PutToken(const CodingParams& params,
                                      uint32_t first_part, uint32_t last_part,
                                      uint32_t block, uint32_t token,
                                      uint8_t* to) {
  using Value = Stored<kDType>;
  for (uint32_t part = first_part; part < last_part; ++part) {
    const uint32_t dims = params.layers[part / 2].dims[part % 2],
                   count = params.layers[part / 2].kv_heads * dims;
    for (uint32_t i = threadIdx.x % kWarp; i < count; i += kWarp) {
      const Value value =
          ValueAt<kDType>(params, part, block, token, i / dims, i % dims);
      for (uint32_t b = 0; b < sizeof(Value); ++b)
        to[i * sizeof(Value) + b] = value >> 8 * b;
    }
    to += count * sizeof(Value);
  }
}

// As WriteSinks of codec/sinks.h.
template <DType kDType>
__device__ __noinline__ void PutSinks(const CodingParams& params,
                                      uint32_t first_part, uint32_t last_part,
                                      uint32_t block, uint8_t* to) {
  const uint32_t lane = threadIdx.x % kWarp;
  for (uint32_t part = first_part; part < last_part; ++part) {
    const uint32_t heads = params.layers[part / 2].kv_heads,
                   dims = params.layers[part / 2].dims[part % 2];
    for (uint32_t i = 0; i < kSinkTokens * heads;
         ++i, to += sizeof(float) + dims) {
      const auto value = [&](uint32_t d) {
        return ToFloat<kDType>(
            ValueAt<kDType>(params, part, block, i / heads, i % heads, d));
      };
      float largest = 0;
      for (uint32_t d = lane; d < dims; d += kWarp)
        largest = fmaxf(largest, fabsf(value(d)));
      for (int apart = 16; apart > 0; apart /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, apart));
      const float scale = __fdiv_rn(largest, 127);
      for (uint32_t d = lane; d < dims; d += kWarp) {
        const float q = scale > 0 ? rintf(__fdiv_rn(value(d), scale)) : 0;
        to[sizeof(float) + d] = static_cast<int8_t>(fminf(fmaxf(q, -127), 127));
      }
      if (lane < sizeof(float)) to[lane] = __float_as_uint(scale) >> 8 * lane;
    }
  }
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_SECTION_VALUES_CUH_
