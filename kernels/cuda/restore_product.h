// Latents to pages on the device: the product with a group's decoder in int8 on
// the tensor cores, and as its epilogue scale, prediction, rotation, rounding
// and the scatter into the engine's pages. Gives the bits of
// kernels/reconstruct.h, rotary.h and pages.h.
#ifndef LATENTKV_KERNELS_CUDA_RESTORE_PRODUCT_H_
#define LATENTKV_KERNELS_CUDA_RESTORE_PRODUCT_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/geometry.h"
#include "kernels/cuda/restore_types.h"

namespace latentkv::cuda {

// int8 matrices as the copy engine sees them, made by MakeProductMap.
struct ProductMaps {
  CUtensorMap features;  // [tokens][feature_tiles * kRankTile]
  CUtensorMap latents;   // [tokens][latent_stride]
  CUtensorMap rests;     // [rests_max * kBlockTokens][kRankTile]
  // [tile_count * kTileChannels][columns]: of features, own and inherited
  // latents in whole tiles
  CUtensorMap decoder;
};

// The rows of a map's boxes: features and latents of three blocks, rests of
// one, a tile of the decoder.
inline constexpr uint32_t kTokenRows = 3 * kBlockTokens,
                          kRestRows = kBlockTokens,
                          kDecoderRows = kTileChannels;

// A row-major matrix in device memory, copied in boxes of kRankTile columns and
// `box_rows` rows. `columns` is a multiple of kRankTile. Unimplemented without
// a driver that has tensor maps.
absl::StatusOr<CUtensorMap> MakeProductMap(const int8_t* matrix, uint64_t rows,
                                           uint64_t columns, uint32_t box_rows);

struct ProductParams {
  // Of the group; channels in the order of the decoder's rows, but for the
  // factors: those of channels 16 i + 8 j + 2 k + e of a tile come by rising i
  // (below 8), then k (below 4), j and e (below 2).
  const ProductTile* tiles;    // [tile_count]
  const float* mean;           // [tile_count * kTileChannels]
  const float* feature_scale;  // the same; zeros without features
  const float* row_scale;      // the same
  // the same, of an epilogue that wants one; null otherwise
  const float* factor;
  uint32_t tile_count;
  // 1: all tiles of channels; n: one of n, others for other blocks,
  uint32_t tile_step;
  uint32_t tile_offset;  // from this on.
  uint32_t feature_tiles;
  uint32_t own_tiles;        // Of the decoder.
  uint32_t inherited_tiles;  // Of each group before.
  // [groups] where each group's latents begin in `latents`
  const uint32_t* columns;
  uint32_t group;

  uint32_t blocks;
  const BlockPlan* plans;      // [blocks]
  const uint16_t* rest_tiles;  // [groups][blocks][kRankTilesMax]
  const TokenSlot* slots;      // [blocks * kBlockTokens]
  const DevicePart* parts;     // [2 * layers]
  // Of the group's layers, at most 2 * kGroupLayersMax.
  uint32_t first_part, part_count;
  const DeviceRotary* rotaries;
  // Nothing is done where it is 0; null: all is done.
  const uint32_t* wanted;
};

// Writes group params.group of all blocks that are sound so far into pages of
// `dtype`. Needs compute capability 9.0.
absl::Status RestoreProduct(const ProductMaps& maps,
                            const ProductParams& params, DType dtype,
                            uint32_t multiprocessors, cudaStream_t stream);

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_RESTORE_PRODUCT_H_
