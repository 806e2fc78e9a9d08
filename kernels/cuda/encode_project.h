// Residuals to quantized latents on the device: the product with a group's
// encoder in int8 on the tensor cores, rounding as its epilogue. The latents
// are as the CPU's but where those lie near a half: each rounds what it
// projects in its own way (docs/decisions/0021-encoding-on-the-gpu.md), and a
// frame says what it was written with.
#ifndef LATENTKV_KERNELS_CUDA_ENCODE_PROJECT_H_
#define LATENTKV_KERNELS_CUDA_ENCODE_PROJECT_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/restore_types.h"

namespace latentkv::cuda {

struct ProjectMaps {
  // [tokens][tiles * kTileChannels], boxes of kTokenRows
  CUtensorMap residuals;
  // [rank in whole tiles][tiles * kTileChannels], boxes of kDecoderRows; row
  // 8 i + 2 k + e of a tile is of latent 32 k + 2 i + e
  CUtensorMap encoder;
};

struct ProjectParams {
  uint32_t blocks;
  const BlockPlan* plans;  // [blocks] Invalid ones have no residuals.
  uint32_t tiles;          // Of channels.
  // Latents of the group that are coded; the others are 0.
  uint32_t live;
  // [tiles / kResidualTiles, rounded up][unit_stride] what a token's residuals
  // are in
  const float* units;
  uint32_t unit_stride;  // A multiple of kTokenRows.
  // [rank in whole tiles] by latent: what the encoder is in
  const float* column_scale;
  const uint32_t* first_tokens;  // [blocks]
  // [blocks * kBlockTokens][latent_stride], from column `column` on: q less
  // twice its rest
  int8_t* latents;
  uint64_t latent_stride;
  uint32_t column;
  uint32_t inherited_rank;
  // [blocks], bit t set: a latent of token t is out of bounds
  unsigned long long* exact;
  uint32_t* own_sums;        // [blocks * kBlockTokens] of magnitudes, added to
  uint32_t* inherited_sums;  // the same of the first inherited_rank
  uint32_t* faults;          // [blocks] EncodeFault
  uint16_t* rest_tiles;      // [blocks][kRankTilesMax], kNoRest before
  // [rests_max][kBlockTokens][kRankTile], zeros before
  int8_t* rests;
  uint32_t* rest_count;  // Used so far, kZeroRest's among them.
  uint32_t rests_max;
  uint32_t* has_rests;  // [blocks], set to 1
};

// Tiles of `live` latents, of all blocks. Needs compute capability 9.0.
absl::Status ProjectResiduals(const ProjectMaps& maps,
                              const ProjectParams& params,
                              uint32_t multiprocessors, cudaStream_t stream);

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_ENCODE_PROJECT_H_
