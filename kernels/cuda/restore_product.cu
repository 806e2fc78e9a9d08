#include "kernels/cuda/restore_product.h"

#include <algorithm>

#include "kernels/cuda/check_launch.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/store_value.cuh"

namespace latentkv::cuda {
namespace {

// A CTA restores three blocks, each by a warpgroup, times kTileChannels channels; a fourth warpgroup copies. CTAs that
// share what they copy, in clusters of two and of four, were slower: they wait for one another more than they save.
constexpr uint32_t kTileBlocks = 3, kWarpgroup = 128, kThreads = (kTileBlocks + 1) * kWarpgroup;
static_assert(kTileBlocks * kBlockTokens == kTokenRows);
constexpr uint32_t kBlockBytes = kBlockTokens * kRankTile, kDecoderBytes = kTileChannels * kRankTile;
constexpr uint32_t kStages = 5;
constexpr uint32_t kConsumerWarps = kTileBlocks * kWarpgroup / 32;
// Of 128 a thread at the start: sums, bases and little else for consumers.
constexpr uint32_t kConsumerRegisters = 160, kProducerRegisters = 32;
static_assert(kTileBlocks * kConsumerRegisters + kProducerRegisters <= 512);
// Tiles of channels that are worked on at the same time as many blocks, so that both stay in the second-level cache.
constexpr uint32_t kBandTiles = 12;

struct Stage {
  int8_t latents[kTileBlocks][kBlockBytes];
  int8_t decoder[kDecoderBytes];
};
// What consumers know of a tile.
struct TileData {
  ProductTile tile;
  float mean[kTileChannels], feature_scale[kTileChannels], row_scale[kTileChannels];
  TokenSlot slots[kTileBlocks * kBlockTokens];
  BlockPlan plans[kTileBlocks];
  uint32_t rest_steps;  // Written before the bytes are expected.
};
constexpr uint32_t kTileBuffers = 2;

struct Shared {
  Stage stages[kStages];
  TileData tiles[kTileBuffers];
  DevicePart parts[2 * kGroupLayersMax];  // Of the group's layers.
  uint64_t full[kStages], empty[kStages];
  uint64_t tile_full[kTileBuffers], tile_empty[kTileBuffers];
};
constexpr uint32_t kSharedBytes = sizeof(Shared) + 1024;  // Swizzled operands begin at multiples of 1024.
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

// What of three blocks is to be restored. Bit b of a mask is block b.
struct TileBlocks {
  uint32_t first;      // Block.
  uint32_t valid = 0;
  uint32_t predicted = 0;
  uint32_t rests = 0;  // Of own or inherited latents.
  uint32_t own_tiles[kTileBlocks] = {};
  uint32_t own_tiles_max = 0;
};

__device__ TileBlocks BlocksOf(uint32_t tile, const BlockPlan (&plans)[kTileBlocks]) {
  TileBlocks blocks;
  blocks.first = tile * kTileBlocks;
#pragma unroll
  for (uint32_t b = 0; b < kTileBlocks; ++b) {
    const uint32_t flags = plans[b].flags;
    if ((flags & kPlanValid) == 0) continue;
    blocks.valid |= 1u << b;
    blocks.own_tiles[b] = plans[b].own_tiles;
    blocks.own_tiles_max = max(blocks.own_tiles_max, plans[b].own_tiles);
    blocks.predicted |= uint32_t{(flags & kPlanPredicted) != 0} << b;
    blocks.rests |= uint32_t{(flags & kPlanRests) != 0} << b;
  }
  return blocks;
}

struct RestTiles {
  bool any = false;
  uint32_t tiles[kTileBlocks];  // kZeroRest where there is none.
};

__device__ RestTiles RestsOf(const ProductParams& p, const TileBlocks& blocks, uint32_t among, uint32_t group,
                             uint32_t tile) {
  RestTiles rests;
#pragma unroll
  for (uint32_t b = 0; b < kTileBlocks; ++b) {
    rests.tiles[b] = kZeroRest;
    if ((among >> b & 1) == 0) continue;
    const uint32_t found = p.rest_tiles[(size_t{group} * p.blocks + blocks.first + b) * kRankTilesMax + tile];
    if (found == kNoRest) continue;
    rests.tiles[b] = found;
    rests.any = true;
  }
  return rests;
}

// Calls visit(tiles of the rests, column of the decoder) for every tile of latents that has a rest.
template <typename Visit>
__device__ __forceinline__ void ForEachRest(const ProductParams& p, const TileBlocks& blocks, Visit visit) {
  if (blocks.rests == 0) return;
  for (uint32_t k = 0; k < blocks.own_tiles_max; ++k) {
    uint32_t among = 0;
#pragma unroll
    for (uint32_t b = 0; b < kTileBlocks; ++b) among |= uint32_t{k < blocks.own_tiles[b]} << b;
    const RestTiles rests = RestsOf(p, blocks, among & blocks.rests, p.group, k);
    if (rests.any) visit(rests, (p.feature_tiles + k) * kRankTile);
  }
  for (uint32_t g = 0; g < p.group; ++g) {
    for (uint32_t k = 0; k < p.inherited_tiles; ++k) {
      const RestTiles rests = RestsOf(p, blocks, blocks.predicted & blocks.rests, g, k);
      if (rests.any) visit(rests, (p.feature_tiles + p.own_tiles + g * p.inherited_tiles + k) * kRankTile);
    }
  }
}

// Tiles in an order in which neighbours share operands.
struct TilePlace {
  uint32_t blocks;    // Index of three blocks.
  uint32_t channels;  // Index of the tile of channels.
};

__device__ TilePlace PlaceOf(uint32_t index, uint32_t block_tiles, uint32_t channel_tiles) {
  const uint32_t band = index / (block_tiles * kBandTiles);
  const uint32_t rest = index - band * block_tiles * kBandTiles;
  const uint32_t width = min(kBandTiles, channel_tiles - band * kBandTiles);
  return {rest / width, band * kBandTiles + rest % width};
}

// A lane of each of two warps of the fourth warpgroup: one copies latents, the other the decoder; a single one could not
// keep up. Both go through the same steps.
class Producer {
 public:
  __device__ Producer(const ProductMaps& maps, const ProductParams& params, Shared* shared, uint32_t warp)
      : maps_(maps), params_(params), shared_(shared), warp_(warp) {}

  // The plans of the tile that comes next, read while the one before is worked on.
  __device__ __forceinline__ void Prefetch(const TilePlace& place) {
#pragma unroll
    for (uint32_t b = 0; b < kTileBlocks; ++b) {
      const uint32_t block = place.blocks * kTileBlocks + b;
      plans_[b].flags = 0;
      if (block < params_.blocks) plans_[b] = params_.plans[block];
    }
  }

  // The tile whose plans were fetched; `next` is the one behind it.
  __device__ __forceinline__ void Tile(const TilePlace& place, const TilePlace& next) {
    const TileBlocks blocks = BlocksOf(place.blocks, plans_);
    Prefetch(next);
    if (CopiesDecoder()) CopyTileData(place, blocks);
    row_ = CopiesDecoder() ? place.channels * kTileChannels : blocks.first * kBlockTokens;
    if (blocks.predicted != 0) {
      for (uint32_t k = 0; k < params_.feature_tiles; ++k) Copy(maps_.features, k * kRankTile, k * kRankTile);
    }
    ForEachRest(params_, blocks, [&](const RestTiles& rests, uint32_t decoder_column) {
      CopyRests(rests, decoder_column);
    });
    for (uint32_t k = 0; k < blocks.own_tiles_max; ++k) {
      Copy(maps_.latents, (params_.feature_tiles + k) * kRankTile, params_.columns[params_.group] + k * kRankTile);
    }
    if (blocks.predicted == 0) return;
    uint32_t decoder_column = (params_.feature_tiles + params_.own_tiles) * kRankTile;
    for (uint32_t g = 0; g < params_.group; ++g) {
      const uint32_t column = params_.columns[g];
      for (uint32_t k = 0; k < params_.inherited_tiles; ++k, decoder_column += kRankTile) {
        Copy(maps_.latents, decoder_column, column + k * kRankTile);
      }
    }
  }

 private:
  __device__ __forceinline__ bool CopiesDecoder() const { return warp_ == 1; }
  __device__ __forceinline__ void CopyTileData(const TilePlace& place, const TileBlocks& blocks) {
    const uint32_t tile = place.channels, first = place.blocks * kTileBlocks;
    const uint32_t count = min(kTileBlocks, params_.blocks - first);
    TileData* data = &shared_->tiles[tile_cursor_.stage];
    uint64_t* full = &shared_->tile_full[tile_cursor_.stage];
    constexpr uint32_t kFactorBytes = kTileChannels * sizeof(float), kSlotBytes = kBlockTokens * sizeof(TokenSlot);
    uint32_t rest_steps = 0;
    ForEachRest(params_, blocks, [&](const RestTiles&, uint32_t) { ++rest_steps; });
    Wait(&shared_->tile_empty[tile_cursor_.stage], tile_cursor_.parity ^ 1);
    data->rest_steps = rest_steps;
    ArriveExpecting(full, sizeof(ProductTile) + 3 * kFactorBytes + count * (kSlotBytes + sizeof(BlockPlan)));
    CopyBytes(params_.tiles + tile, sizeof(ProductTile), full, &data->tile);
    CopyBytes(params_.mean + tile * kTileChannels, kFactorBytes, full, data->mean);
    CopyBytes(params_.feature_scale + tile * kTileChannels, kFactorBytes, full, data->feature_scale);
    CopyBytes(params_.row_scale + tile * kTileChannels, kFactorBytes, full, data->row_scale);
    CopyBytes(params_.slots + first * kBlockTokens, count * kSlotBytes, full, data->slots);
    CopyBytes(params_.plans + first, count * sizeof(BlockPlan), full, data->plans);
    tile_cursor_.Next();
  }
  // This warp's share of the next stage, when it is free. Bytes may arrive before they are expected: the phase does not
  // end before that.
  __device__ __forceinline__ void Copy(const CUtensorMap& map, uint32_t decoder_column, uint32_t column) {
    Wait(&shared_->empty[cursor_.stage], cursor_.parity ^ 1);
    if (CopiesDecoder()) {
      CopyDecoder(decoder_column);
    } else {
      CopyLatents(map, column, row_, 0);
    }
    cursor_.Next();
  }
  __device__ __forceinline__ void CopyRests(const RestTiles& rests, uint32_t decoder_column) {
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
    CopyBox(&maps_.decoder, column, row_, full, shared_->stages[cursor_.stage].decoder);
  }
  // A box to the stage's latents from block `to` on.
  __device__ __forceinline__ void CopyLatents(const CUtensorMap& map, uint32_t column, uint32_t row, uint32_t to) {
    CopyBox(&map, column, row, &shared_->full[cursor_.stage], shared_->stages[cursor_.stage].latents[to]);
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

// One warpgroup: block `block_` of a tile.
template <DType kDType>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const ProductParams& params, Shared* shared, uint32_t block)
      : params_(params), shared_(shared), block_(block), lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void Tile(const TilePlace& place) {
    const TileData& data = shared_->tiles[tile_cursor_.stage];
    Wait(&shared_->tile_full[tile_cursor_.stage], tile_cursor_.parity);
    uint32_t predicted = 0, own_tiles_max = 0;
#pragma unroll
    for (uint32_t b = 0; b < kTileBlocks; ++b) {
      if (place.blocks * kTileBlocks + b >= params_.blocks || (data.plans[b].flags & kPlanValid) == 0) continue;
      predicted |= uint32_t{(data.plans[b].flags & kPlanPredicted) != 0} << b;
      own_tiles_max = max(own_tiles_max, data.plans[b].own_tiles);
    }
    const bool valid = place.blocks * kTileBlocks + block_ < params_.blocks &&
                       (data.plans[block_].flags & kPlanValid) != 0;
    const bool mine_predicted = predicted >> block_ & 1;
    const uint32_t own_tiles = valid ? data.plans[block_].own_tiles : 0;
    const uint32_t features = predicted != 0 ? params_.feature_tiles : 0;
    const uint32_t inherited = predicted != 0 ? params_.group * params_.inherited_tiles : 0;

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
      Scatter(data, values);
    }
    Arrive(&shared_->tile_empty[tile_cursor_.stage]);
    tile_cursor_.Next();
  }

 private:
  __device__ static __forceinline__ uint32_t Uniform(uint32_t value) { return __shfl_sync(~0u, value, 0); }

  __device__ static __forceinline__ void Clear(int32_t (&sums)[64]) {
#pragma unroll
    for (uint32_t i = 0; i < 64; ++i) sums[i] = 0;
  }

  // Adds the products of the next `steps` stages. Those of one run while the next is waited for.
  __device__ __forceinline__ void Multiply(uint32_t steps, int32_t (&sums)[64]) {
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
    const uint64_t a = Operand(SharedAddress(stage.latents[block_])), b = Operand(SharedAddress(stage.decoder));
    FenceProducts();
#pragma unroll
    for (uint32_t k = 0; k < kRankTile / 32; ++k) MultiplyAdd(sums, a + 2 * k, b + 2 * k);
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

  // Four factors of this thread's channels 4 i and on.
  __device__ __forceinline__ float4 Factors(const float* factors, uint32_t i) const {
    return reinterpret_cast<const float4*>(factors)[4 * i + lane_ % 4];
  }

  __device__ __forceinline__ void Base(const TileData& data, bool predicted, const int32_t (&sums)[64],
                                       float (&values)[64]) {
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const float4 mean = Factors(data.mean, i), scale = Factors(data.feature_scale, i);
      const float means[4] = {mean.x, mean.y, mean.z, mean.w}, scales[4] = {scale.x, scale.y, scale.z, scale.w};
      // Channel 4 i + c of this thread is that of values 8 i + 4 (c / 2) + c % 2, and 2 more in the other row.
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) {
#pragma unroll
        for (uint32_t r = 0; r < 2; ++r) {
          const uint32_t at = 8 * i + 4 * (c / 2) + c % 2 + 2 * r;
          values[at] = predicted ? __fmaf_rn(scales[c], __int2float_rn(sums[at]), means[c]) : means[c];
        }
      }
    }
  }

  __device__ __forceinline__ void AddLatents(const TileData& data, const int32_t (&sums)[64], float (&values)[64]) {
    const float step = data.plans[block_].step;
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const float4 scale = Factors(data.row_scale, i);
      const float scales[4] = {__fmul_rn(scale.x, step), __fmul_rn(scale.y, step), __fmul_rn(scale.z, step),
                               __fmul_rn(scale.w, step)};
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) {
#pragma unroll
        for (uint32_t r = 0; r < 2; ++r) {
          const uint32_t at = 8 * i + 4 * (c / 2) + c % 2 + 2 * r;
          values[at] = __fmaf_rn(scales[c], __int2float_rn(sums[at]), values[at]);
        }
      }
    }
  }

  // Chunk 4 (i / 4) + lane % 4 of the tile lies in values 4 i to 4 i + 3 of four i, two of each row.
  __device__ __forceinline__ void Scatter(const TileData& data, float (&values)[64]) {
    const ProductTile& tile = data.tile;
    const uint32_t row = threadIdx.x % kWarpgroup / 32 * 16 + lane_ / 4;
#pragma unroll
    for (uint32_t r = 0; r < 2; ++r) {
      const uint32_t token = row + 8 * r;
      if (tile.turn != kTurnNone) Turn(tile, data.plans[block_].first_token + token, r, values);
      const TokenSlot slot = data.slots[block_ * kBlockTokens + token];
#pragma unroll
      for (uint32_t s = 0; s < 4; ++s) {
        const ChunkTarget target = tile.chunks[4 * s + lane_ % 4];
        if (target.part < 0) continue;
        float chunk[kChunkChannels];
#pragma unroll
        for (uint32_t k = 0; k < kChunkChannels; ++k) chunk[k] = values[4 * (4 * s + k / 2) + 2 * r + k % 2];
        const DevicePart& part = shared_->parts[target.part - params_.first_part];
        StoreChunk<kDType>(chunk, part.base + slot.page * part.page + slot.offset * part.token +
                                      target.head * part.head + target.dim * part.dim,
                           part.dim);
      }
    }
  }

  // Row r's keys. Tables are read four pairs at a time, which lie together and are aligned (product_tiles.cc).
  __device__ __forceinline__ void Turn(const ProductTile& tile, uint32_t position, uint32_t r, float (&values)[64]) {
    const DeviceRotary rotary = params_.rotaries[tile.rotary];
    const size_t at = size_t{position} * rotary.pairs;
    const bool halves = tile.turn == kTurnHalves;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      const ChunkTarget& target = tile.chunks[4 * s + lane_ % 4];
      if (target.part < 0 || (halves && s >= 2)) continue;
      const float4* cosines = reinterpret_cast<const float4*>(rotary.cosine + at + target.pair);
      const float4* sines = reinterpret_cast<const float4*>(rotary.sine + at + target.pair);
#pragma unroll
      for (uint32_t four = 0; four < 2; ++four) {
        if (!halves && four == 1) continue;
        const float4 c = __ldg(cosines + four), d = __ldg(sines + four);
        const float cosine[4] = {c.x, c.y, c.z, c.w}, sine[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
        for (uint32_t k = 0; k < 4; ++k) {
          if (halves) {
            const uint32_t first = (4 * (4 * s + 2 * four + k / 2) + 2 * r + k % 2) % 32;
            Turn(cosine[k], sine[k], &values[first], &values[first + 32]);
          } else {
            const uint32_t first = 4 * (4 * s + k) + 2 * r;
            Turn(cosine[k], sine[k], &values[first], &values[first + 1]);
          }
        }
      }
    }
  }

  __device__ static __forceinline__ void Turn(float cosine, float sine, float* x, float* y) {
    const float turned = __fmaf_rn(*x, cosine, -__fmul_rn(*y, sine));
    *y = __fmaf_rn(*y, cosine, __fmul_rn(*x, sine));
    *x = turned;
  }

  const ProductParams& params_;
  Shared* const shared_;
  const uint32_t block_, lane_;
  Cursor<kStages> cursor_;
  Cursor<kTileBuffers> tile_cursor_;
};

template <DType kDType>
__global__ void __launch_bounds__(kThreads, 1)
    RestoreProductKernel(const __grid_constant__ ProductMaps maps, const __grid_constant__ ProductParams params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t memory[];
  Shared* shared = reinterpret_cast<Shared*>(reinterpret_cast<uintptr_t>(memory + 1023) & ~uintptr_t{1023});
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
  for (uint32_t i = threadIdx.x; i < params.part_count; i += kThreads) shared->parts[i] = params.parts[params.first_part + i];
  __syncthreads();
  const uint32_t block_tiles = (params.blocks + kTileBlocks - 1) / kTileBlocks, channel_tiles = params.tile_count;
  const uint32_t count = block_tiles * channel_tiles;
  const uint32_t warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0);
  if (warpgroup == kTileBlocks) {
    GiveRegisters<kProducerRegisters>();
    if (threadIdx.x % 32 == 0 && threadIdx.x % kWarpgroup / 32 < 2) {
      Producer producer(maps, params, shared, threadIdx.x % kWarpgroup / 32);
      producer.Prefetch(PlaceOf(blockIdx.x, block_tiles, channel_tiles));
      for (uint32_t i = blockIdx.x; i < count; i += gridDim.x) {
        producer.Tile(PlaceOf(i, block_tiles, channel_tiles), PlaceOf(min(i + gridDim.x, count - 1), block_tiles, channel_tiles));
      }
    }
  } else {
    TakeRegisters<kConsumerRegisters>();
    Consumer<kDType> consumer(params, shared, warpgroup);
    for (uint32_t i = blockIdx.x; i < count; i += gridDim.x) consumer.Tile(PlaceOf(i, block_tiles, channel_tiles));
  }
#endif
}

template <DType kDType>
absl::Status Launch(const ProductMaps& maps, const ProductParams& params, uint32_t multiprocessors,
                    cudaStream_t stream) {
  auto* kernel = &RestoreProductKernel<kDType>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return CudaStatus(error, "asking for shared memory");
  const uint32_t tiles = (params.blocks + kTileBlocks - 1) / kTileBlocks * params.tile_count;
  kernel<<<std::min(multiprocessors, tiles), kThreads, kSharedBytes, stream>>>(maps, params);
  return LaunchStatus("restoring a group on the device");
}

}  // namespace

absl::StatusOr<CUtensorMap> MakeProductMap(const int8_t* matrix, uint64_t rows, uint64_t columns, uint32_t box_rows) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  constexpr unsigned int kVersion = 12000;  // The first with tensor maps.
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, kVersion, cudaEnableDefault, &found) !=
          cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    return absl::UnimplementedError("this CUDA driver has no tensor maps: use one of version 12 or later");
  }
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  CUtensorMap map;
  const cuuint64_t sizes[2] = {columns, rows}, strides[1] = {columns};
  const cuuint32_t box[2] = {kRankTile, box_rows}, element_strides[2] = {1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<int8_t*>(matrix), sizes, strides,
                                 box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return map;
  return absl::InternalError(absl::StrCat("a tensor map of ", rows, " by ", columns, ": error ", int{result}));
}

absl::Status RestoreProduct(const ProductMaps& maps, const ProductParams& params, DType dtype, uint32_t multiprocessors,
                            cudaStream_t stream) {
  if (params.blocks == 0 || params.tile_count == 0) return absl::OkStatus();
  switch (dtype) {
    case DType::kBf16: return Launch<DType::kBf16>(maps, params, multiprocessors, stream);
    case DType::kFp16: return Launch<DType::kFp16>(maps, params, multiprocessors, stream);
    case DType::kFp32: return Launch<DType::kFp32>(maps, params, multiprocessors, stream);
    case DType::kFp8E4M3: return Launch<DType::kFp8E4M3>(maps, params, multiprocessors, stream);
  }
  return absl::InvalidArgumentError("pages of an unknown type");
}

}  // namespace latentkv::cuda
