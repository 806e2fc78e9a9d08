// Latents that a section stores beside its symbols.
#ifndef LATENTKV_KERNELS_CUDA_SECTION_ESCAPES_CUH_
#define LATENTKV_KERNELS_CUDA_SECTION_ESCAPES_CUH_

#include <cstdint>

#include "kernels/cuda/latent_decode.h"
#include "kernels/cuda/section_bytes.cuh"
#include "kernels/latents.h"

namespace latentkv::cuda {

inline constexpr uint32_t kEscapeBytes = 6;  // Place u32, latent i16.
// kLatentMagnitudeMax of codec/latent_section.h
inline constexpr int32_t kMagnitudeBound = 256;

// What a lane's escape says, less twice its rest; `fault` is the warp's.
struct Escaped {
  int32_t q;
  int32_t rest;
  uint32_t above;  // Whether it was above the bound, and is 0 now.
  uint32_t fault;
  uint32_t rest_tile;  // Of the rows' tile, from now on.
};

// A tile of rests, all 0. kNoRest if there is none left.
__device__ inline uint32_t OpenRest(const DecodeParams& params,
                                    uint16_t* tile_of_rows, uint32_t lane) {
  uint32_t rest = lane == 0 ? atomicAdd(params.rest_count, 1) : 0;
  rest = __shfl_sync(~0u, rest, 0);
  if (rest >= params.rests_max) return kNoRest;
  uint4* to = reinterpret_cast<uint4*>(params.rests +
                                       size_t{rest} * kBlockTokens * kRankTile);
  for (uint32_t i = lane; i < kBlockTokens * kRankTile / 16; i += 32)
    to[i] = {};
  if (lane == 0) *tile_of_rows = rest;
  __syncwarp();
  return rest;
}

// Out of line, as it is rare. The escapes of the warp's symbols begin at byte
// `first`, one for each lane in `escaped`; `token` is the lane's. Large latents
// go to a rest at row `row` of its tile.
__device__ __noinline__ Escaped TakeEscapes(const DecodeParams& params,
                                            const uint8_t* first,
                                            uint32_t escaped, uint32_t row,
                                            uint32_t token, uint32_t rest_tile,
                                            uint16_t* rest_tiles) {
  const uint32_t lane = token % 32;
  const bool mine = escaped >> lane & 1;
  const SectionBytes bytes(
      first + __popc(escaped & ((1u << lane) - 1)) * kEscapeBytes, nullptr);
  Escaped result = {0, 0, 0, kFaultNone, rest_tile};
  bool fits = true;
  if (mine) {
    fits = bytes.Word32(0) == row * kBlockTokens + token;
    result.q = static_cast<int16_t>(bytes.Word16(4));
  }
  if (!__all_sync(~0u, fits)) result.fault = kFaultEscapes;
  result.above = abs(result.q) > kMagnitudeBound;
  if (result.above) result.q = 0;
  const bool large = abs(result.q) > kMagnitudeMax;
  if (!__any_sync(~0u, large) || result.fault != kFaultNone) return result;
  if (rest_tile == kNoRest)
    result.rest_tile = OpenRest(params, rest_tiles + row / kRankTile, lane);
  if (result.rest_tile == kNoRest) {
    result.fault = kFaultRests;
  } else if (large) {
    result.rest = min(result.q >> 1, 127);
    params.rests[(size_t{result.rest_tile} * kBlockTokens + token) * kRankTile +
                 row % kRankTile] = result.rest;
    result.q -= 2 * result.rest;
  }
  return result;
}

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_SECTION_ESCAPES_CUH_
