// The product of latents with a group's decoder, in int8 on the tensor cores,
// as restoring and encoding share it: what is done with a tile of values is the
// Epilogue's.
#ifndef LATENTKV_KERNELS_CUDA_PRODUCT_PIPELINE_CUH_
#define LATENTKV_KERNELS_CUDA_PRODUCT_PIPELINE_CUH_

#include <algorithm>

#include "kernels/cuda/check_launch.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/product_tiling.cuh"
#include "kernels/cuda/restore_product.h"

namespace latentkv::cuda::product {

// A CTA works on three blocks, each by a warpgroup, times kTileChannels
// channels; a fourth warpgroup copies. CTAs that share what they copy, in
// clusters of two and of four, were slower: they wait for one another more than
// they save.
constexpr uint32_t kWarpgroup = 128, kThreads = (kTileBlocks + 1) * kWarpgroup;
constexpr uint32_t kBlockBytes = kBlockTokens * kRankTile,
                   kDecoderBytes = kTileChannels * kRankTile;
constexpr uint32_t kStages = 5;
constexpr uint32_t kConsumerWarps = kTileBlocks * kWarpgroup / 32;
// Of 128 a thread at the start: sums, bases and little else for consumers.
constexpr uint32_t kConsumerRegisters = 160, kProducerRegisters = 32;
static_assert(kTileBlocks * kConsumerRegisters + kProducerRegisters <= 512);

struct Stage {
  int8_t latents[kTileBlocks][kBlockBytes];
  int8_t decoder[kDecoderBytes];
};
// What consumers know of a tile.
struct TileData {
  ProductTile tile;
  float mean[kTileChannels], feature_scale[kTileChannels],
      row_scale[kTileChannels], factor[kTileChannels];
  TokenSlot slots[kTileBlocks * kBlockTokens];
  BlockPlan plans[kTileBlocks];
  // Written before the bytes are expected. kNoTile: there is none left.
  TilePlace place;
  uint32_t rest_steps;
};
constexpr uint32_t kTileBuffers = 2;
constexpr TilePlace kNoTile = {~0u, ~0u};

struct Shared {
  Stage stages[kStages];
  TileData tiles[kTileBuffers];
  DevicePart parts[2 * kGroupLayersMax];  // Of the group's layers.
  uint64_t full[kStages], empty[kStages];
  uint64_t tile_full[kTileBuffers], tile_empty[kTileBuffers];
};
// Swizzled operands begin at multiples of 1024.
constexpr uint32_t kSharedBytes = sizeof(Shared) + 1024;
static_assert(kSharedBytes <= 227 * 1024);
static_assert(sizeof(Stage) % 1024 == 0);

// Where a pipeline of `kCount` stages stands.
template <uint32_t kCount>
struct Cursor {
  uint32_t stage = 0, parity = 0;
  __device__ void Next() {
    if (++stage == kCount) stage = 0, parity ^= 1;
  }
};

// A lane of each of two warps of the fourth warpgroup: one copies latents, the
// other the decoder; a single one could not keep up. Both go through the same
// steps.
class Producer {
 public:
  __device__ Producer(const ProductMaps& maps, const ProductParams& params,
                      Shared* shared, uint32_t warp)
      : maps_(maps), params_(params), shared_(shared), warp_(warp) {}

  // The plans of the tile that comes next, read while the one before is worked
  // on.
  __device__ __forceinline__ void Prefetch(const TilePlace& place) {
#pragma unroll
    for (uint32_t b = 0; b < kTileBlocks; ++b) {
      const uint32_t block = place.blocks * kTileBlocks + b;
      plans_[b].flags = 0;
      if (block < params_.blocks) plans_[b] = params_.plans[block];
    }
  }

  // The tile whose plans were fetched; `next` is the one behind it.
  __device__ __forceinline__ void Tile(const TilePlace& place,
                                       const TilePlace& next) {
    const TileBlocks blocks = BlocksOf(place.blocks, plans_);
    Prefetch(next);
    if (CopiesDecoder()) CopyTileData(place, blocks);
    row_ = CopiesDecoder() ? place.channels * kTileChannels
                           : blocks.first * kBlockTokens;
    if (blocks.predicted != 0) {
      for (uint32_t k = 0; k < params_.feature_tiles; ++k)
        Copy(maps_.features, k * kRankTile, k * kRankTile);
    }
    ForEachRest(params_, blocks,
                [&](const RestTiles& rests, uint32_t decoder_column) {
                  CopyRests(rests, decoder_column);
                });
    for (uint32_t k = 0; k < blocks.own_tiles_max; ++k) {
      Copy(maps_.latents, (params_.feature_tiles + k) * kRankTile,
           params_.columns[params_.group] + k * kRankTile);
    }
    if (blocks.predicted == 0) return;
    uint32_t decoder_column =
        (params_.feature_tiles + params_.own_tiles) * kRankTile;
    for (uint32_t g = 0; g < params_.group; ++g) {
      const uint32_t column = params_.columns[g];
      for (uint32_t k = 0; k < params_.inherited_tiles;
           ++k, decoder_column += kRankTile) {
        Copy(maps_.latents, decoder_column, column + k * kRankTile);
      }
    }
  }

  // Behind the last tile.
  __device__ __forceinline__ void End() {
    if (!CopiesDecoder()) return;
    Wait(&shared_->tile_empty[tile_cursor_.stage], tile_cursor_.parity ^ 1);
    shared_->tiles[tile_cursor_.stage].place = kNoTile;
    Arrive(&shared_->tile_full[tile_cursor_.stage]);
  }

 private:
  __device__ __forceinline__ bool CopiesDecoder() const { return warp_ == 1; }
  __device__ __forceinline__ void CopyTileData(const TilePlace& place,
                                               const TileBlocks& blocks) {
    const uint32_t tile = place.channels, first = place.blocks * kTileBlocks;
    const uint32_t count = min(kTileBlocks, params_.blocks - first);
    TileData* data = &shared_->tiles[tile_cursor_.stage];
    uint64_t* full = &shared_->tile_full[tile_cursor_.stage];
    constexpr uint32_t kFactorBytes = kTileChannels * sizeof(float),
                       kSlotBytes = kBlockTokens * sizeof(TokenSlot);
    uint32_t rest_steps = 0;
    ForEachRest(params_, blocks,
                [&](const RestTiles&, uint32_t) { ++rest_steps; });
    Wait(&shared_->tile_empty[tile_cursor_.stage], tile_cursor_.parity ^ 1);
    data->place = place;
    data->rest_steps = rest_steps;
    const bool factor = params_.factor != nullptr;
    ArriveExpecting(full, sizeof(ProductTile) +
                              (factor ? 4 : 3) * kFactorBytes +
                              count * (kSlotBytes + sizeof(BlockPlan)));
    CopyBytes(params_.tiles + tile, sizeof(ProductTile), full, &data->tile);
    CopyBytes(params_.mean + tile * kTileChannels, kFactorBytes, full,
              data->mean);
    CopyBytes(params_.feature_scale + tile * kTileChannels, kFactorBytes, full,
              data->feature_scale);
    CopyBytes(params_.row_scale + tile * kTileChannels, kFactorBytes, full,
              data->row_scale);
    if (factor)
      CopyBytes(params_.factor + tile * kTileChannels, kFactorBytes, full,
                data->factor);
    CopyBytes(params_.slots + first * kBlockTokens, count * kSlotBytes, full,
              data->slots);
    CopyBytes(params_.plans + first, count * sizeof(BlockPlan), full,
              data->plans);
    tile_cursor_.Next();
  }
  // This warp's share of the next stage, when it is free. Bytes may arrive
  // before they are expected: the phase does not end before that.
  __device__ __forceinline__ void Copy(const CUtensorMap& map,
                                       uint32_t decoder_column,
                                       uint32_t column) {
    Wait(&shared_->empty[cursor_.stage], cursor_.parity ^ 1);
    if (CopiesDecoder()) {
      CopyDecoder(decoder_column);
    } else {
      CopyLatents(map, column, row_, 0);
    }
    cursor_.Next();
  }
  __device__ __forceinline__ void CopyRests(const RestTiles& rests,
                                            uint32_t decoder_column) {
    Wait(&shared_->empty[cursor_.stage], cursor_.parity ^ 1);
    if (CopiesDecoder()) {
      CopyDecoder(decoder_column);
    } else {
#pragma unroll
      for (uint32_t b = 0; b < kTileBlocks; ++b) {
        CopyLatents(maps_.rests, 0, rests.tiles[b] * kBlockTokens, b);
      }
    }
    cursor_.Next();
  }
  __device__ __forceinline__ void CopyDecoder(uint32_t column) {
    uint64_t* full = &shared_->full[cursor_.stage];
    ArriveExpecting(full, sizeof(Stage));
    CopyBox(&maps_.decoder, column, row_, full,
            shared_->stages[cursor_.stage].decoder);
  }
  // A box to the stage's latents from block `to` on.
  __device__ __forceinline__ void CopyLatents(const CUtensorMap& map,
                                              uint32_t column, uint32_t row,
                                              uint32_t to) {
    CopyBox(&map, column, row, &shared_->full[cursor_.stage],
            shared_->stages[cursor_.stage].latents[to]);
  }

  const ProductMaps& maps_;
  const ProductParams& params_;
  Shared* const shared_;
  const uint32_t warp_;
  uint32_t row_ = 0;
  Cursor<kStages> cursor_;
  Cursor<kTileBuffers> tile_cursor_;
  BlockPlan plans_[kTileBlocks];
};
// Four factors of a thread's channels 4 i and on, which are those of values 8 i
// + 4 (c / 2) + c % 2 and 2 more in the other row, c below 4.
__device__ __forceinline__ float4 Factors(const float* factors, uint32_t i) {
  return reinterpret_cast<const float4*>(factors)[4 * i + threadIdx.x % 4];
}

// A block's 64 tokens times the channels of a tile in the registers of a
// warpgroup. Chunk 4 s + lane % 4 of the tile lies in values[4 (4 s + k / 2) +
// 2 r + k % 2] of the token 16 (warp % 4) + lane / 4 + 8 r, k below 8.
struct TileValues {
  const TileData& data;
  uint32_t block_in_tile;
  uint32_t block;     // Among all.
  uint32_t channels;  // Index of the tile.
  float (&values)[64];
};

// One warpgroup: block `block_` of a tile. `Epilogue(params, epilogue_params,
// shared)(TileValues)` is what is done with values; its Prepare is told before
// they are summed. It gets runs of kRunTiles tiles side by side, or what there
// is of them, one after the other.
template <typename Epilogue>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const ProductParams& params,
                                      const typename Epilogue::Params& epilogue,
                                      Shared* shared, uint32_t block)
      : params_(params),
        epilogue_(params, epilogue, *shared),
        shared_(shared),
        block_(block),
        lane_(threadIdx.x % 32) {}

  // The next tile; false if there is none.
  __device__ __forceinline__ bool Tile() {
    const TileData& data = shared_->tiles[tile_cursor_.stage];
    Wait(&shared_->tile_full[tile_cursor_.stage], tile_cursor_.parity);
    const TilePlace place = data.place;
    if (place.blocks == kNoTile.blocks) return false;
    uint32_t predicted = 0, own_tiles_max = 0;
#pragma unroll
    for (uint32_t b = 0; b < kTileBlocks; ++b) {
      if (place.blocks * kTileBlocks + b >= params_.blocks ||
          (data.plans[b].flags & kPlanValid) == 0)
        continue;
      predicted |= uint32_t{(data.plans[b].flags & kPlanPredicted) != 0} << b;
      own_tiles_max = max(own_tiles_max, data.plans[b].own_tiles);
    }
    const bool valid = place.blocks * kTileBlocks + block_ < params_.blocks &&
                       (data.plans[block_].flags & kPlanValid) != 0;
    const bool mine_predicted = predicted >> block_ & 1;
    const uint32_t own_tiles = valid ? data.plans[block_].own_tiles : 0;
    const uint32_t features = predicted != 0 ? params_.feature_tiles : 0;
    const uint32_t inherited =
        predicted != 0 ? params_.group * params_.inherited_tiles : 0;

    if (valid) epilogue_.Prepare(data, block_);
    int32_t sums[64];
    float values[64];
    Clear(sums);
    Multiply(mine_predicted ? features : 0, sums);
    Skip(mine_predicted ? 0 : features);
    Base(data, mine_predicted && features > 0, sums, values);
    Clear(sums);
    const uint32_t rest_steps = Uniform(data.rest_steps);
    if (rest_steps > 0) {
      Multiply(rest_steps, sums);
#pragma unroll
      for (uint32_t i = 0; i < 64; ++i) sums[i] *= 2;
    }
    Multiply(own_tiles, sums);
    Skip(own_tiles_max - own_tiles);
    Multiply(mine_predicted ? inherited : 0, sums);
    Skip(mine_predicted ? 0 : inherited);
    if (valid) {
      AddLatents(data, sums, values);
      epilogue_({data, block_, place.blocks * kTileBlocks + block_,
                 place.channels, values});
    }
    Arrive(&shared_->tile_empty[tile_cursor_.stage]);
    tile_cursor_.Next();
    return true;
  }

 private:
  __device__ static __forceinline__ uint32_t Uniform(uint32_t value) {
    return __shfl_sync(~0u, value, 0);
  }

  __device__ static __forceinline__ void Clear(int32_t (&sums)[64]) {
#pragma unroll
    for (uint32_t i = 0; i < 64; ++i) sums[i] = 0;
  }

  // Adds the products of the next `steps` stages. Those of one run while the
  // next is waited for.
  __device__ __forceinline__ void Multiply(uint32_t steps,
                                           int32_t (&sums)[64]) {
    steps = Uniform(steps);
    if (steps == 0) return;
    uint32_t running = cursor_.stage;
    Start(sums);
#pragma unroll 1
    for (uint32_t i = 1; i < steps; ++i) {
      const uint32_t next = cursor_.stage;
      Start(sums);
      AwaitProducts<1>();
      Release(running);
      running = next;
    }
    AwaitProducts<0>();
    Release(running);
  }
  // Starts the products of the next stage.
  __device__ __forceinline__ void Start(int32_t (&sums)[64]) {
    Wait(&shared_->full[cursor_.stage], cursor_.parity);
    const Stage& stage = shared_->stages[cursor_.stage];
    const uint64_t a = Operand(SharedAddress(stage.latents[block_])),
                   b = Operand(SharedAddress(stage.decoder));
    FenceProducts();
#pragma unroll
    for (uint32_t k = 0; k < kRankTile / 32; ++k)
      MultiplyAdd(sums, a + 2 * k, b + 2 * k);
    CommitProducts();
    cursor_.Next();
  }
  // Lets stages pass that are for other blocks.
  __device__ __forceinline__ void Skip(uint32_t steps) {
    steps = Uniform(steps);
#pragma unroll 1
    for (uint32_t i = 0; i < steps; ++i) {
      Wait(&shared_->full[cursor_.stage], cursor_.parity);
      Release(cursor_.stage);
      cursor_.Next();
    }
  }
  // Gives a stage back.
  __device__ __forceinline__ void Release(uint32_t stage) {
    __syncwarp();
    if (lane_ == 0) Arrive(&shared_->empty[stage]);
  }

  __device__ __forceinline__ void Base(const TileData& data, bool predicted,
                                       const int32_t (&sums)[64],
                                       float (&values)[64]) {
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const float4 mean = Factors(data.mean, i),
                   scale = Factors(data.feature_scale, i);
      const float means[4] = {mean.x, mean.y, mean.z, mean.w},
                  scales[4] = {scale.x, scale.y, scale.z, scale.w};
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) {
#pragma unroll
        for (uint32_t r = 0; r < 2; ++r) {
          const uint32_t at = 8 * i + 4 * (c / 2) + c % 2 + 2 * r;
          values[at] = predicted ? __fmaf_rn(scales[c],
                                             __int2float_rn(sums[at]), means[c])
                                 : means[c];
        }
      }
    }
  }

  __device__ __forceinline__ void AddLatents(const TileData& data,
                                             const int32_t (&sums)[64],
                                             float (&values)[64]) {
    const float step = data.plans[block_].step;
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const float4 scale = Factors(data.row_scale, i);
      const float scales[4] = {
          __fmul_rn(scale.x, step), __fmul_rn(scale.y, step),
          __fmul_rn(scale.z, step), __fmul_rn(scale.w, step)};
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) {
#pragma unroll
        for (uint32_t r = 0; r < 2; ++r) {
          const uint32_t at = 8 * i + 4 * (c / 2) + c % 2 + 2 * r;
          values[at] =
              __fmaf_rn(scales[c], __int2float_rn(sums[at]), values[at]);
        }
      }
    }
  }
  const ProductParams& params_;
  Epilogue epilogue_;
  Shared* const shared_;
  const uint32_t block_, lane_;
  Cursor<kStages> cursor_;
  Cursor<kTileBuffers> tile_cursor_;
};

template <typename Epilogue>
__global__ void __launch_bounds__(kThreads, 1)
    ProductKernel(const __grid_constant__ ProductMaps maps,
                  const __grid_constant__ ProductParams params,
                  const __grid_constant__ typename Epilogue::Params epilogue) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if (params.wanted != nullptr && *params.wanted == 0) return;
  extern __shared__ uint8_t memory[];
  Shared* shared = reinterpret_cast<Shared*>(
      reinterpret_cast<uintptr_t>(memory + 1023) & ~uintptr_t{1023});
  if (threadIdx.x == 0) {
    for (uint32_t s = 0; s < kStages; ++s) {
      InitBarrier(&shared->full[s], 1);
      InitBarrier(&shared->empty[s], kConsumerWarps);
    }
    for (uint32_t t = 0; t < kTileBuffers; ++t) {
      InitBarrier(&shared->tile_full[t], 1);
      InitBarrier(&shared->tile_empty[t], kTileBlocks * kWarpgroup);
    }
    FenceBarriers();
  }
  for (uint32_t i = threadIdx.x; i < params.part_count; i += kThreads)
    shared->parts[i] = params.parts[params.first_part + i];
  __syncthreads();
  const uint32_t warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0);
  if (warpgroup == kTileBlocks) {
    GiveRegisters<kProducerRegisters>();
    if (threadIdx.x % 32 == 0 && threadIdx.x % kWarpgroup / 32 < 2) {
      Producer producer(maps, params, shared, threadIdx.x % kWarpgroup / 32);
      TileWalk<Epilogue::kRunTiles> walk(params);
      producer.Prefetch(walk.place());
      while (!walk.Done()) {
        const TilePlace place = walk.place();
        walk.Next();
        producer.Tile(place, walk.place());
      }
      producer.End();
    }
  } else {
    TakeRegisters<kConsumerRegisters>();
    Consumer<Epilogue> consumer(params, epilogue, shared, warpgroup);
    while (consumer.Tile()) {
    }
  }
#endif
}

// Runs the product of params.group's decoder with `Epilogue`, for what `what`
// says.
template <typename Epilogue>
absl::Status LaunchProduct(const ProductMaps& maps, const ProductParams& params,
                           const typename Epilogue::Params& epilogue,
                           uint32_t multiprocessors, cudaStream_t stream,
                           absl::string_view what) {
  auto* kernel = &ProductKernel<Epilogue>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess)
    return CudaStatus(error, "asking for shared memory");
  kernel<<<std::min(multiprocessors,
                    TileOrder<Epilogue::kRunTiles>(params).count()),
           kThreads, kSharedBytes, stream>>>(maps, params, epilogue);
  return LaunchStatus(what);
}

}  // namespace latentkv::cuda::product

#endif  // LATENTKV_KERNELS_CUDA_PRODUCT_PIPELINE_CUH_
