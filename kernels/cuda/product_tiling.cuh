// What CTAs of the product (product_pipeline.cuh) work on: tiles of three
// blocks times kTileChannels channels, the order of tiles, and the stages that
// three blocks need.
#ifndef LATENTKV_KERNELS_CUDA_PRODUCT_TILING_CUH_
#define LATENTKV_KERNELS_CUDA_PRODUCT_TILING_CUH_

#include <cstdint>

#include "kernels/cuda/restore_product.h"

namespace latentkv::cuda::product {

constexpr uint32_t kTileBlocks = 3;
static_assert(kTileBlocks * kBlockTokens == kTokenRows);
// Tiles of channels that are worked on at the same time as many blocks, so that
// both stay in the second-level cache.
constexpr uint32_t kBandTiles = 12;

// What is to be done with three blocks. Bit b of a mask is block b.
struct TileBlocks {
  uint32_t first;  // Block.
  uint32_t valid = 0;
  uint32_t predicted = 0;
  uint32_t rests = 0;  // Of own or inherited latents.
  uint32_t own_tiles[kTileBlocks] = {};
  uint32_t own_tiles_max = 0;
};

__device__ inline TileBlocks BlocksOf(uint32_t tile,
                                      const BlockPlan (&plans)[kTileBlocks]) {
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

__device__ inline RestTiles RestsOf(const ProductParams& p,
                                    const TileBlocks& blocks, uint32_t among,
                                    uint32_t group, uint32_t tile) {
  RestTiles rests;
#pragma unroll
  for (uint32_t b = 0; b < kTileBlocks; ++b) {
    rests.tiles[b] = kZeroRest;
    if ((among >> b & 1) == 0) continue;
    const uint32_t found =
        p.rest_tiles[(size_t{group} * p.blocks + blocks.first + b) *
                         kRankTilesMax +
                     tile];
    if (found == kNoRest) continue;
    rests.tiles[b] = found;
    rests.any = true;
  }
  return rests;
}

// Calls visit(tiles of the rests, column of the decoder) for every tile of
// latents that has a rest.
template <typename Visit>
__device__ __forceinline__ void ForEachRest(const ProductParams& p,
                                            const TileBlocks& blocks,
                                            Visit visit) {
  if (blocks.rests == 0) return;
  for (uint32_t k = 0; k < blocks.own_tiles_max; ++k) {
    uint32_t among = 0;
#pragma unroll
    for (uint32_t b = 0; b < kTileBlocks; ++b)
      among |= uint32_t{k < blocks.own_tiles[b]} << b;
    const RestTiles rests =
        RestsOf(p, blocks, among & blocks.rests, p.group, k);
    if (rests.any) visit(rests, (p.feature_tiles + k) * kRankTile);
  }
  for (uint32_t g = 0; g < p.group; ++g) {
    for (uint32_t k = 0; k < p.inherited_tiles; ++k) {
      const RestTiles rests =
          RestsOf(p, blocks, blocks.predicted & blocks.rests, g, k);
      if (rests.any)
        visit(rests,
              (p.feature_tiles + p.own_tiles + g * p.inherited_tiles + k) *
                  kRankTile);
    }
  }
}

// Where a tile lies.
struct TilePlace {
  uint32_t blocks;    // Index of three blocks.
  uint32_t channels;  // Index of the tile of channels.
};

// Runs of kRun tiles side by side, in an order in which neighbours share
// operands.
template <uint32_t kRun>
class TileOrder {
 public:
  __host__ __device__ explicit TileOrder(const ProductParams& params)
      : blocks_((params.blocks + kTileBlocks - 1) / kTileBlocks),
        step_(params.tile_step * kRun),
        offset_(params.tile_offset),
        tiles_(params.tile_count),
        runs_((params.tile_count + step_ - 1) / step_) {}
  __host__ __device__ uint32_t count() const { return blocks_ * runs_; }
  __device__ __forceinline__ uint32_t tiles() const { return tiles_; }
  // The first tile of a run.
  __device__ __forceinline__ TilePlace At(uint32_t index) const {
    const uint32_t band = index / (blocks_ * kBand);
    const uint32_t rest = index - band * blocks_ * kBand;
    const uint32_t width = min(kBand, runs_ - band * kBand);
    const uint32_t blocks = rest / width, run = band * kBand + rest % width;
    return {blocks,
            min(run * step_ + (blocks + offset_) % (step_ / kRun) * kRun,
                tiles_ - 1)};
  }

 private:
  static_assert(kBandTiles % kRun == 0);
  static constexpr uint32_t kBand = kBandTiles / kRun;
  const uint32_t blocks_, step_, offset_, tiles_, runs_;
};

// A CTA's tiles, one after the other.
template <uint32_t kRun>
class TileWalk {
 public:
  __device__ __forceinline__ explicit TileWalk(const ProductParams& params)
      : order_(params), run_(blockIdx.x), place_(order_.At(run_)) {}
  __device__ __forceinline__ bool Done() const {
    return run_ >= order_.count();
  }
  // Behind the last, the last.
  __device__ __forceinline__ const TilePlace& place() const { return place_; }
  __device__ __forceinline__ void Next() {
    if (++within_ < kRun && place_.channels + 1 < order_.tiles()) {
      ++place_.channels;
      return;
    }
    within_ = 0;
    run_ += gridDim.x;
    if (!Done()) place_ = order_.At(run_);
  }

 private:
  const TileOrder<kRun> order_;
  uint32_t run_, within_ = 0;
  TilePlace place_;
};

}  // namespace latentkv::cuda::product

#endif  // LATENTKV_KERNELS_CUDA_PRODUCT_TILING_CUH_
