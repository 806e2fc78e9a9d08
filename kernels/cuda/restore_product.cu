#include "kernels/cuda/restore_product.h"

#include <algorithm>

#include "kernels/cuda/check_launch.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/store_value.cuh"

namespace latentkv::cuda {
namespace {

// A CTA restores three blocks, each by a warpgroup, times kTileChannels channels; a fourth warpgroup copies. Two CTAs of a
// cluster share the blocks: each copies half of their latents to both.
constexpr uint32_t kTileBlocks = 3, kWarpgroup = 128, kThreads = (kTileBlocks + 1) * kWarpgroup;
constexpr uint32_t kCluster = 2;
constexpr uint32_t kBlockBytes = kBlockTokens * kRankTile, kDecoderBytes = kTileChannels * kRankTile;
constexpr uint32_t kStages = 5;
constexpr uint32_t kConsumerWarps = kTileBlocks * kWarpgroup / 32;
// Of 128 a thread at the start: sums, bases and little else for consumers.
constexpr uint32_t kConsumerRegisters = 160, kProducerRegisters = 32;
static_assert(kTileBlocks * kConsumerRegisters + kProducerRegisters <= 512);
// Pairs of tiles that are worked on at the same time as many blocks, so that both stay in the second-level cache.
constexpr uint32_t kBandPairs = 4;

struct Stage {
  int8_t latents[kTileBlocks][kBlockBytes];
  int8_t decoder[kDecoderBytes];
};
// What consumers do with a stage, in this order; bit b of a mask is block b of the three.
struct Step {
  uint8_t base;      // Sums so far were of features: they become bases, for these blocks, and for the others means do.
  uint8_t doubled;   // Sums so far were of rests, for these blocks.
  uint8_t multiply;  // For these blocks.
  uint8_t last;      // Of the tile, with nothing copied: these blocks go to their pages.
};
constexpr uint8_t kMarked = 1 << 7;  // In `base` and `last`, which may be for no block: it is such a step.

// What the epilogue of a tile reads.
struct TileData {
  ProductTile tile;
  float mean[kTileChannels], feature_scale[kTileChannels], row_scale[kTileChannels];
  TokenSlot slots[kTileBlocks * kBlockTokens];
  BlockPlan plans[kTileBlocks];
};
constexpr uint32_t kTileBuffers = 2;

struct Shared {
  Stage stages[kStages];
  TileData tiles[kTileBuffers];
  DevicePart parts[2 * kGroupLayersMax];  // Of the group's layers.
  uint64_t full[kStages], empty[kStages];
  uint64_t tile_full[kTileBuffers], tile_empty[kTileBuffers];
  Step steps[kStages];  // Written before the stage's bytes are expected.
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
    blocks.predicted |= uint32_t{(flags & kPlanPredicted) != 0} << b;
    blocks.rests |= uint32_t{(flags & kPlanRests) != 0} << b;
  }
  return blocks;
}

struct RestTiles {
  uint32_t mask = 0;
  uint32_t tiles[kTileBlocks];
};

__device__ RestTiles RestsOf(const ProductParams& p, const TileBlocks& blocks, uint32_t among, uint32_t group,
                             uint32_t tile) {
  RestTiles rests;
#pragma unroll
  for (uint32_t b = 0; b < kTileBlocks; ++b) {
    if ((among >> b & 1) == 0) continue;
    rests.tiles[b] = p.rest_tiles[(size_t{group} * p.blocks + blocks.first + b) * kRankTilesMax + tile];
    rests.mask |= uint32_t{rests.tiles[b] != kNoRest} << b;
  }
  return rests;
}

// Calls visit(tiles of the rests, column of the decoder) for every tile of latents that has a rest.
template <typename Visit>
__device__ __forceinline__ void ForEachRest(const ProductParams& p, const TileBlocks& blocks, Visit visit) {
  if (blocks.rests == 0) return;
  for (uint32_t k = 0; k < p.own_tiles; ++k) {
    uint32_t among = 0;
#pragma unroll
    for (uint32_t b = 0; b < kTileBlocks; ++b) among |= uint32_t{k < blocks.own_tiles[b]} << b;
    const RestTiles rests = RestsOf(p, blocks, among & blocks.rests, p.group, k);
    if (rests.mask != 0) visit(rests, (p.feature_tiles + k) * kRankTile);
  }
  for (uint32_t g = 0; g < p.group; ++g) {
    for (uint32_t k = 0; k < p.inherited_tiles; ++k) {
      const RestTiles rests = RestsOf(p, blocks, blocks.predicted & blocks.rests, g, k);
      if (rests.mask != 0) visit(rests, (p.feature_tiles + p.own_tiles + g * p.inherited_tiles + k) * kRankTile);
    }
  }
}

// Calls visit(mask of the blocks that it is for, column of the decoder, column of the latents).
template <typename Visit>
__device__ __forceinline__ void ForEachLatentTile(const ProductParams& p, const TileBlocks& blocks, Visit visit) {
  for (uint32_t k = 0; k < p.own_tiles; ++k) {
    uint32_t mask = 0;
#pragma unroll
    for (uint32_t b = 0; b < kTileBlocks; ++b) mask |= uint32_t{k < blocks.own_tiles[b]} << b;
    if (mask == 0) break;
    visit(mask, (p.feature_tiles + k) * kRankTile, p.columns[p.group] + k * kRankTile);
  }
  if (blocks.predicted == 0) return;
  for (uint32_t g = 0; g < p.group; ++g) {
    for (uint32_t k = 0; k < p.inherited_tiles; ++k) {
      visit(blocks.predicted, (p.feature_tiles + p.own_tiles + g * p.inherited_tiles + k) * kRankTile,
            p.columns[g] + k * kRankTile);
    }
  }
}

// Tiles in an order in which neighbours share operands.
struct TilePlace {
  uint32_t blocks;  // Index of three blocks.
  uint32_t pair;    // Of channel tiles.
};

__device__ TilePlace PlaceOf(uint32_t index, uint32_t block_tiles, uint32_t pairs) {
  const uint32_t band = index / (block_tiles * kBandPairs);
  const uint32_t rest = index - band * block_tiles * kBandPairs;
  const uint32_t width = min(kBandPairs, pairs - band * kBandPairs);
  return {rest / width, band * kBandPairs + rest % width};
}

// One warp's lane of the fourth warpgroup. Warps 0 to 2 copy a block's latents each, warp 3 the decoder; a single one
// could not keep up. All go through the same steps.
class Producer {
 public:
  __device__ Producer(const ProductMaps& maps, const ProductParams& params, Shared* shared, uint32_t warp)
      : maps_(maps), params_(params), shared_(shared), warp_(warp), rank_(RankInCluster()) {}

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
    if (CopiesDecoder()) CopyTileData(place);
    // Of the decoder's tile, or of this CTA's half of a block's latents.
    row_ = CopiesDecoder() ? (place.pair * kCluster + rank_) * kTileChannels
                           : (blocks.first + warp_) * kBlockTokens + rank_ * kBlockRows;
    step_ = {};
    if (blocks.predicted != 0) {
      for (uint32_t k = 0; k < params_.feature_tiles; ++k) {
        Whole(maps_.features, blocks.predicted, k * kRankTile, k * kRankTile);
      }
    }
    step_.base = kMarked | (params_.feature_tiles > 0 ? blocks.predicted : 0);
    uint32_t doubled = 0;
    ForEachRest(params_, blocks, [&](const RestTiles& rests, uint32_t decoder_column) {
      doubled |= rests.mask;
      step_.multiply = rests.mask;
      Open(__popc(rests.mask) * kBlockBytes + kDecoderBytes);
      if (CopiesDecoder()) {
        CopyDecoder(decoder_column);
      } else if (rests.mask >> warp_ & 1) {
        const uint32_t tile = warp_ == 0 ? rests.tiles[0] : (warp_ == 1 ? rests.tiles[1] : rests.tiles[2]);
        CopyLatents(maps_.rests, 0, tile * kBlockTokens + rank_ * kBlockRows);
      }
      Close();
    });
    step_.doubled = doubled;
    ForEachLatentTile(params_, blocks, [&](uint32_t mask, uint32_t decoder_column, uint32_t column) {
      Whole(maps_.latents, mask, decoder_column, column);
    });
    step_.multiply = 0;
    step_.last = kMarked | blocks.valid;
    Open(0);
    Close();
  }

 private:
  __device__ __forceinline__ bool CopiesDecoder() const { return warp_ == kTileBlocks; }
  __device__ __forceinline__ void CopyTileData(const TilePlace& place) {
    const uint32_t tile = place.pair * kCluster + rank_, first = place.blocks * kTileBlocks;
    const uint32_t count = min(kTileBlocks, params_.blocks - first);
    TileData* data = &shared_->tiles[tile_cursor_.stage];
    uint64_t* full = &shared_->tile_full[tile_cursor_.stage];
    constexpr uint32_t kFactorBytes = kTileChannels * sizeof(float), kSlotBytes = kBlockTokens * sizeof(TokenSlot);
    Wait(&shared_->tile_empty[tile_cursor_.stage], tile_cursor_.parity ^ 1);
    ArriveExpecting(full, sizeof(ProductTile) + 3 * kFactorBytes + count * (kSlotBytes + sizeof(BlockPlan)));
    CopyBytes(params_.tiles + tile, sizeof(ProductTile), full, &data->tile);
    CopyBytes(params_.mean + tile * kTileChannels, kFactorBytes, full, data->mean);
    CopyBytes(params_.feature_scale + tile * kTileChannels, kFactorBytes, full, data->feature_scale);
    CopyBytes(params_.row_scale + tile * kTileChannels, kFactorBytes, full, data->row_scale);
    CopyBytes(params_.slots + first * kBlockTokens, count * kSlotBytes, full, data->slots);
    CopyBytes(params_.plans + first, count * sizeof(BlockPlan), full, data->plans);
    tile_cursor_.Next();
  }
  // A step that takes a tile of all three blocks.
  __device__ __forceinline__ void Whole(const CUtensorMap& map, uint32_t mask, uint32_t decoder_column,
                                        uint32_t column) {
    step_.multiply = mask;
    Open(kTileBlocks * kBlockBytes + kDecoderBytes);
    if (CopiesDecoder()) {
      CopyDecoder(decoder_column);
    } else {
      CopyLatents(map, column, row_);
    }
    Close();
  }
  // Bytes may arrive before they are expected: the phase does not end before that.
  __device__ __forceinline__ void Open(uint32_t bytes) {
    Wait(&shared_->empty[cursor_.stage], cursor_.parity ^ 1);
    if (!CopiesDecoder()) return;
    shared_->steps[cursor_.stage] = step_;
    ArriveExpecting(&shared_->full[cursor_.stage], bytes);
  }
  __device__ __forceinline__ void Close() {
    step_ = {};
    cursor_.Next();
  }
  // To both CTAs.
  __device__ __forceinline__ void CopyLatents(const CUtensorMap& map, uint32_t column, uint32_t row) {
    CopyBoxToAll(&map, column, row, &shared_->full[cursor_.stage],
                 shared_->stages[cursor_.stage].latents[warp_] + rank_ * kBlockRows * kRankTile, (1 << kCluster) - 1);
  }
  __device__ __forceinline__ void CopyDecoder(uint32_t column) {
    CopyBox(&maps_.decoder, column, row_, &shared_->full[cursor_.stage], shared_->stages[cursor_.stage].decoder);
  }

  const ProductMaps& maps_;
  const ProductParams& params_;
  Shared* const shared_;
  const uint32_t warp_, rank_;
  uint32_t row_ = 0;
  Cursor<kStages> cursor_;
  Cursor<kTileBuffers> tile_cursor_;
  Step step_;  // The next one.
  BlockPlan plans_[kTileBlocks];
};

// One warpgroup: block `block_` of a tile.
template <DType kDType>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const ProductParams& params, Shared* shared, uint32_t block)
      : params_(params), shared_(shared), block_(block), lane_(threadIdx.x % 32), rank_(RankInCluster()) {}

  __device__ __forceinline__ void Tile(const TilePlace& place) {
    int32_t sums[64];
    float values[64];
    Clear(sums);
    const TileData& data = shared_->tiles[tile_cursor_.stage];
    Wait(&shared_->tile_full[tile_cursor_.stage], tile_cursor_.parity);
    uint32_t last = 0;
    do {
      Wait(&shared_->full[cursor_.stage], cursor_.parity);
      const Step step = shared_->steps[cursor_.stage];
      if (step.base != 0) {
        Base(data, step.base >> block_ & 1, sums, values);
        Clear(sums);
      }
      if (step.doubled >> block_ & 1) {
#pragma unroll
        for (uint32_t i = 0; i < 64; ++i) sums[i] *= 2;
      }
      if (step.multiply >> block_ & 1) Multiply(shared_->stages[cursor_.stage], sums);
      __syncwarp();
      if (lane_ < kCluster) ArriveInCluster(&shared_->empty[cursor_.stage], lane_);
      cursor_.Next();
      last = step.last;
    } while (last == 0);
    if (last >> block_ & 1) {
      AddLatents(data, sums, values);
#ifdef V_NOSTORE
      float all = 0;
#pragma unroll
      for (uint32_t i = 0; i < 64; ++i) all += values[i];
      if (all == 12345.678f) Scatter(data, values);
#else
      Scatter(data, values);
#endif
    }
    __syncwarp();
    if (lane_ == 0) Arrive(&shared_->tile_empty[tile_cursor_.stage]);
    tile_cursor_.Next();
  }

 private:
  __device__ static __forceinline__ void Clear(int32_t (&sums)[64]) {
#pragma unroll
    for (uint32_t i = 0; i < 64; ++i) sums[i] = 0;
  }

  __device__ __forceinline__ void Multiply(const Stage& stage, int32_t (&sums)[64]) {
    const uint64_t a = Operand(SharedAddress(stage.latents[block_])), b = Operand(SharedAddress(stage.decoder));
    FenceProducts();
#pragma unroll
    for (uint32_t k = 0; k < kRankTile / 32; ++k) MultiplyAdd(sums, a + 2 * k, b + 2 * k);
    CommitProducts();
    AwaitProducts();
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

  __device__ __forceinline__ void Turn(const ProductTile& tile, uint32_t position, uint32_t r, float (&values)[64]) {
    const DeviceRotary rotary = params_.rotaries[tile.rotary];
    const size_t at = size_t{position} * rotary.pairs;
    const bool halves = tile.turn == kTurnHalves;
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
      if (halves && s >= 2) break;
      const ChunkTarget& target = tile.chunks[4 * s + lane_ % 4];
      if (target.part < 0) continue;
      const float* cosines = rotary.cosine + at + target.pair;
      const float* sines = rotary.sine + at + target.pair;
#pragma unroll
      for (uint32_t k = 0; k < kChunkChannels; ++k) {
        if (!halves && k % 2 == 1) continue;
        const uint32_t first = 4 * (4 * s + k / 2) + 2 * r + k % 2;
        if (halves) {
          if (s < 2) Turn(__ldg(cosines + k), __ldg(sines + k), &values[first], &values[(first + 32) % 64]);
        } else {
          Turn(__ldg(cosines + k / 2), __ldg(sines + k / 2), &values[first], &values[first + 1]);
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
  const uint32_t block_, lane_, rank_;
  Cursor<kStages> cursor_;
  Cursor<kTileBuffers> tile_cursor_;
};

template <DType kDType>
__global__ void __cluster_dims__(kCluster) __launch_bounds__(kThreads, 1)
    RestoreProductKernel(const __grid_constant__ ProductMaps maps, const __grid_constant__ ProductParams params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t memory[];
  Shared* shared = reinterpret_cast<Shared*>(reinterpret_cast<uintptr_t>(memory + 1023) & ~uintptr_t{1023});
  if (threadIdx.x == 0) {
    for (uint32_t s = 0; s < kStages; ++s) {
      InitBarrier(&shared->full[s], 1);
      InitBarrier(&shared->empty[s], kConsumerWarps * kCluster);
    }
    for (uint32_t t = 0; t < kTileBuffers; ++t) {
      InitBarrier(&shared->tile_full[t], 1);
      InitBarrier(&shared->tile_empty[t], kConsumerWarps);
    }
    FenceBarriers();
  }
  for (uint32_t i = threadIdx.x; i < params.part_count; i += kThreads) shared->parts[i] = params.parts[params.first_part + i];
  __syncthreads();
  SyncCluster();
  const uint32_t block_tiles = (params.blocks + kTileBlocks - 1) / kTileBlocks, pairs = params.tile_count / kCluster;
  const uint32_t count = block_tiles * pairs, clusters = gridDim.x / kCluster;
  const uint32_t warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == kTileBlocks) {
    GiveRegisters<kProducerRegisters>();
    if (threadIdx.x % 32 == 0) {
      Producer producer(maps, params, shared, threadIdx.x % kWarpgroup / 32);
      producer.Prefetch(PlaceOf(blockIdx.x / kCluster, block_tiles, pairs));
      for (uint32_t i = blockIdx.x / kCluster; i < count; i += clusters) {
        producer.Tile(PlaceOf(i, block_tiles, pairs), PlaceOf(min(i + clusters, count - 1), block_tiles, pairs));
      }
    }
  } else {
    TakeRegisters<kConsumerRegisters>();
    Consumer<kDType> consumer(params, shared, warpgroup);
    for (uint32_t i = blockIdx.x / kCluster; i < count; i += clusters) consumer.Tile(PlaceOf(i, block_tiles, pairs));
  }
  // Nobody leaves while the other may still copy to it, or count at its barriers.
  SyncCluster();
#endif
}

template <DType kDType>
absl::Status Launch(const ProductMaps& maps, const ProductParams& params, uint32_t multiprocessors,
                    cudaStream_t stream) {
  auto* kernel = &RestoreProductKernel<kDType>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return CudaStatus(error, "asking for shared memory");
  const uint32_t tiles = (params.blocks + kTileBlocks - 1) / kTileBlocks * params.tile_count;
  const uint32_t grid = std::min(multiprocessors / kCluster * kCluster, tiles);
  kernel<<<grid, kThreads, kSharedBytes, stream>>>(maps, params);
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
