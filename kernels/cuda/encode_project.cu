#include <algorithm>

#include "kernels/cuda/check_launch.h"
#include "kernels/cuda/encode_product.h"
#include "kernels/cuda/encode_project.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/product_pipeline.cuh"
#include "kernels/latents.h"

namespace latentkv::cuda {
namespace {

using product::Cursor;
using product::kConsumerWarps;
using product::kStages;
using product::kThreads;
using product::kTileBlocks;
using product::kWarpgroup;
using product::Stage;

// Of a tile's, for each of a thread's two tokens.
constexpr uint32_t kThreadLatents = 32;
// kLatentMagnitudeMax of codec/latent_section.h
constexpr int32_t kMagnitudeBound = 256;
// Any above the bound will do, as long as a byte and a rest hold it.
constexpr float kClamp = 300;
constexpr uint16_t kRestInTheMaking = 0xfffe;
// Sums of products begin at the bits of kWholeFloat, and then are those of the
// float that is as much larger: quicker than to convert them.
static_assert(kResidualTiles * kTileChannels * 128 * 127 < 1 << 22);
// AddStages of what is left behind whole runs.
static_assert(kResidualTiles == 2);

struct Shared {
  Stage stages[kStages];
  uint64_t full[kStages], empty[kStages];
};
// Swizzled operands begin at multiples of 1024.
constexpr uint32_t kSharedBytes = sizeof(Shared) + 1024;
static_assert(kSharedBytes <= 227 * 1024);

// Neighbours share the residuals of three blocks.
struct Place {
  uint32_t blocks, tile;
};
__device__ __forceinline__ Place PlaceOf(uint32_t index, uint32_t tiles) {
  return {index / tiles, index % tiles};
}

// A lane each of two warps: one copies residuals, the other the encoder.
__device__ void Produce(const ProjectMaps& maps, const ProjectParams& params,
                        uint32_t count, uint32_t tiles, bool encoder,
                        Shared* shared) {
  Cursor<kStages> cursor;
  for (uint32_t i = blockIdx.x; i < count; i += gridDim.x) {
    const Place place = PlaceOf(i, tiles);
    const uint32_t row = encoder ? place.tile * kRankTile
                                 : place.blocks * kTileBlocks * kBlockTokens;
    for (uint32_t k = 0; k < params.tiles; ++k) {
      Stage* stage = &shared->stages[cursor.stage];
      uint64_t* full = &shared->full[cursor.stage];
      Wait(&shared->empty[cursor.stage], cursor.parity ^ 1);
      if (encoder) {
        ArriveExpecting(full, sizeof(Stage));
        CopyBox(&maps.encoder, k * kTileChannels, row, full, stage->decoder);
      } else {
        CopyBox(&maps.residuals, k * kTileChannels, row, full, stage->latents);
      }
      cursor.Next();
    }
  }
}

// A tile of rests for a block's tile of latents, made by the first warp that
// asks; kZeroRest if there is none left.
__device__ uint32_t RestTile(const ProjectParams& params, uint32_t block,
                             uint32_t tile) {
  uint32_t rest = 0;
  if (threadIdx.x % 32 == 0) {
    uint16_t* slot = params.rest_tiles + size_t{block} * kRankTilesMax + tile;
    rest = atomicCAS(slot, kNoRest, kRestInTheMaking);
    if (rest == kNoRest) {
      rest = atomicAdd(params.rest_count, 1);
      if (rest >= params.rests_max) {
        rest = kZeroRest;
        atomicOr(params.faults + block, kEncodeRests);
      }
      params.has_rests[block] = 1;
      *reinterpret_cast<volatile uint16_t*>(slot) = rest;
    }
    while (rest == kRestInTheMaking)
      rest = *reinterpret_cast<volatile uint16_t*>(slot);
  }
  return __shfl_sync(~0u, rest, 0);
}

// One warpgroup: block `block_` of three.
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const ProjectParams& params,
                                      Shared* shared, uint32_t block)
      : params_(params),
        shared_(shared),
        block_(block),
        lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void Tile(const Place& place) {
    __syncwarp();  // Lanes part in Quantize.
    const uint32_t block = place.blocks * kTileBlocks + block_;
    const float* units = params_.units + block * kBlockTokens + Row();
    float sums[64] = {};
    float2 next = {__ldg(units), __ldg(units + 8)};
#pragma unroll 1
    for (uint32_t left = params_.tiles; left >= kResidualTiles;
         left -= kResidualTiles) {
      const float2 now = next;
      if (left > kResidualTiles) units += params_.unit_stride;
      next = {__ldg(units), __ldg(units + 8)};
      AddStages<kResidualTiles>(now, sums);
    }
    if (params_.tiles % kResidualTiles != 0) AddStages<1>(next, sums);
    if (block < params_.blocks && params_.plans[block].flags & kPlanValid) {
      Quantize(block, place.tile, sums);
    }
  }

 private:
  // Adds the products of the next stages, in the units of the thread's two
  // rows. Each time the tensor cores wait while sums are taken from them: as
  // seldom as units allow.
  template <uint32_t kCount>
  __device__ __forceinline__ void AddStages(float2 units, float (&sums)[64]) {
    int32_t products[64];
#pragma unroll
    for (uint32_t i = 0; i < 64; ++i) products[i] = __float_as_int(kWholeFloat);
    uint32_t stages[kCount];
    FenceSums(products);
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) {
      stages[i] = cursor_.stage;
      Wait(&shared_->full[cursor_.stage], cursor_.parity);
      const Stage& stage = shared_->stages[cursor_.stage];
      const uint64_t a = Operand(SharedAddress(stage.latents[block_])),
                     b = Operand(SharedAddress(stage.decoder));
      FenceProducts();
#pragma unroll
      for (uint32_t k = 0; k < kRankTile / 32; ++k)
        MultiplyAdd(products, a + 2 * k, b + 2 * k);
      CommitProducts();
      cursor_.Next();
    }
    AwaitProducts<0>();
    FenceSums(products);
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) Release(stages[i]);
#pragma unroll
    for (uint32_t i = 0; i < 64; ++i) {
      sums[i] = fmaf(i / 2 % 2 == 0 ? units.x : units.y,
                     __int_as_float(products[i]) - kWholeFloat, sums[i]);
    }
  }
  __device__ __forceinline__ uint32_t Row() const {
    return threadIdx.x % kWarpgroup / 32 * 16 + lane_ / 4;
  }
  __device__ __forceinline__ void Release(uint32_t stage) {
    __syncwarp();
    if (lane_ == 0) Arrive(&shared_->empty[stage]);
  }

  // A thread has latents 32 (lane % 4) + j of the tile, j below 32, of two
  // tokens: sums[4 (j / 2) + 2 r + j % 2].
  __device__ __forceinline__ void Quantize(uint32_t block, uint32_t tile,
                                           const float (&sums)[64]) {
    const uint32_t first = tile * kRankTile + lane_ % 4 * kThreadLatents;
    const bool first_block = params_.first_tokens[block] == 0;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t token = Row() + 8 * r;
      const bool sink = first_block && token < kSinkTokens;
      uint32_t bytes[kThreadLatents / 4] = {}, highs[kThreadLatents / 4] = {};
      uint32_t own = 0, inherited = 0;
      int32_t largest = 0;
#pragma unroll
      for (uint32_t j = 0; j < kThreadLatents; ++j) {
        const float scale = __ldg(params_.column_scale + first + j);
        const float z = fminf(
            fmaxf(sums[4 * (j / 2) + 2 * r + j % 2] * scale, -kClamp), kClamp);
        const int32_t q =
            first + j < params_.live && !sink ? __float2int_rn(z) : 0;
        const uint32_t magnitude = abs(q);
        own += magnitude;
        if (first + j < params_.inherited_rank) inherited += magnitude;
        largest = max(largest, abs(q));
        // A rest is q / 2 where q is no byte.
        const int32_t rest = magnitude > kMagnitudeMax ? min(q >> 1, 127) : 0;
        bytes[j / 4] |= (q - 2 * rest & 255) << 8 * (j % 4);
        highs[j / 4] |= (rest & 255) << 8 * (j % 4);
      }
      int8_t* to =
          params_.latents +
          (size_t{block} * kBlockTokens + token) * params_.latent_stride +
          params_.column + first;
      *reinterpret_cast<uint4*>(to) = {bytes[0], bytes[1], bytes[2], bytes[3]};
      *reinterpret_cast<uint4*>(to + 16) = {bytes[4], bytes[5], bytes[6],
                                            bytes[7]};
      if (__any_sync(~0u, largest > static_cast<int32_t>(kMagnitudeMax))) {
        const uint32_t rest = RestTile(params_, block, tile);
        if (rest != kZeroRest) {
          uint4* high = reinterpret_cast<uint4*>(
              params_.rests +
              (size_t{rest} * kBlockTokens + token) * kRankTile +
              lane_ % 4 * kThreadLatents);
          high[0] = {highs[0], highs[1], highs[2], highs[3]};
          high[1] = {highs[4], highs[5], highs[6], highs[7]};
        }
      }
#pragma unroll
      for (uint32_t apart = 1; apart < 4; apart *= 2) {
        own += __shfl_xor_sync(~0u, own, apart);
        inherited += __shfl_xor_sync(~0u, inherited, apart);
        largest = max(largest, __shfl_xor_sync(~0u, largest, apart));
      }
      if (lane_ % 4 != 0) continue;
      const size_t at = size_t{block} * kBlockTokens + token;
      if (own != 0) atomicAdd(params_.own_sums + at, own);
      if (inherited != 0) atomicAdd(params_.inherited_sums + at, inherited);
      if (largest > kMagnitudeBound)
        atomicOr(params_.exact + block, 1ull << token);
    }
  }

  const ProjectParams& params_;
  Shared* const shared_;
  const uint32_t block_, lane_;
  Cursor<kStages> cursor_;
};

__global__ void __launch_bounds__(kThreads, 1)
    ProjectKernel(const __grid_constant__ ProjectMaps maps,
                  const __grid_constant__ ProjectParams params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t memory[];
  Shared* shared = reinterpret_cast<Shared*>(
      reinterpret_cast<uintptr_t>(memory + 1023) & ~uintptr_t{1023});
  if (threadIdx.x == 0) {
    for (uint32_t s = 0; s < kStages; ++s) {
      InitBarrier(&shared->full[s], 1);
      InitBarrier(&shared->empty[s], kConsumerWarps);
    }
    FenceBarriers();
  }
  __syncthreads();
  const uint32_t tiles = (params.live + kRankTile - 1) / kRankTile;
  const uint32_t count =
      (params.blocks + kTileBlocks - 1) / kTileBlocks * tiles;
  const uint32_t warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0);
  if (warpgroup == kTileBlocks) {
    GiveRegisters<product::kProducerRegisters>();
    const uint32_t warp = threadIdx.x % kWarpgroup / 32;
    if (threadIdx.x % 32 == 0 && warp < 2)
      Produce(maps, params, count, tiles, warp == 1, shared);
  } else {
    TakeRegisters<product::kConsumerRegisters>();
    Consumer consumer(params, shared, warpgroup);
    for (uint32_t i = blockIdx.x; i < count; i += gridDim.x)
      consumer.Tile(PlaceOf(i, tiles));
  }
#endif
}

}  // namespace

absl::Status ProjectResiduals(const ProjectMaps& maps,
                              const ProjectParams& params,
                              uint32_t multiprocessors, cudaStream_t stream) {
  const uint32_t tiles = (params.live + kRankTile - 1) / kRankTile;
  const uint32_t count =
      (params.blocks + kTileBlocks - 1) / kTileBlocks * tiles;
  if (count == 0) return absl::OkStatus();
  const cudaError_t error = cudaFuncSetAttribute(
      ProjectKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess)
    return CudaStatus(error, "asking for shared memory");
  ProjectKernel<<<std::min(multiprocessors, count), kThreads, kSharedBytes,
                  stream>>>(maps, params);
  return LaunchStatus("projecting residuals on the device");
}

}  // namespace latentkv::cuda
