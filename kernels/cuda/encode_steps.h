// The small kernels between the products of encoding: whether a prediction
// helps, bounds across groups, losses, sinks.
#ifndef LATENTKV_KERNELS_CUDA_ENCODE_STEPS_H_
#define LATENTKV_KERNELS_CUDA_ENCODE_STEPS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "core/geometry.h"
#include "kernels/cuda/restore_steps.h"
#include "kernels/cuda/restore_types.h"

namespace latentkv::cuda {

// Of one group; arrays of [blocks] unless they say otherwise.
struct PredictionParams {
  uint32_t blocks;
  uint32_t tile_count;
  // [tile_count][blocks * kBlockTokens] (encode_product.h)
  const float2* energies;
  unsigned long long* exact;  // Emptied where the prediction does not help.
  // 1 where the prediction leaves tokens less than the means do, on geometric
  // average
  uint8_t* predicted;
  const BlockPlan* plans;  // What the residuals were formed by.
  // The same for blocks that are formed again, from the means alone; invalid
  // for others.
  BlockPlan* again;
  uint32_t* again_count;  // Of one, 0 before: how many these are.
};
absl::Status JudgePredictions(const PredictionParams& params,
                              cudaStream_t stream);

// One group's latents, behind ProjectResiduals.
struct BoundParams {
  uint32_t group, blocks;
  float step;
  uint32_t own_tiles;  // That are coded.
  uint32_t column;     // In `latents`.
  int8_t* latents;     // [blocks * kBlockTokens][latent_stride]
  uint64_t latent_stride;
  const uint16_t* rest_tiles;  // [blocks][kRankTilesMax]
  int8_t* rests;
  const uint32_t* has_rests;       // [groups][blocks]
  const uint8_t* predicted;        // [blocks]
  const uint32_t* first_tokens;    // [blocks]
  const uint32_t* faults;          // [blocks]
  const uint32_t* own_sums;        // [blocks * kBlockTokens]
  const uint32_t* inherited_sums;  // the same
  // [blocks * kBlockTokens] of the groups before; this one is added
  uint32_t* inherited_totals;
  unsigned long long* exact;  // [blocks]; tokens out of bounds are added
  // [blocks] the product with own latents alone
  BlockPlan* loss_plans;
  BlockPlan* next_plans;  // [blocks] the prediction of the next group
};
// Tokens out of bounds lose their latents, and are to be stored exact.
absl::Status BoundLatents(const BoundParams& params, cudaStream_t stream);

// The first group's prediction, from features alone; of tiles of rests
// kZeroRest's alone is taken.
absl::Status PlanFirst(uint32_t blocks, float step,
                       const uint32_t* first_tokens, BlockPlan* plans,
                       uint32_t* rest_count, cudaStream_t stream);

// losses[block] = scale * sum of partial[block][count], nats a token.
absl::Status SumLosses(const float* partial, uint32_t blocks, uint32_t count,
                       float scale, float* losses, cudaStream_t stream);

struct SinkParams {
  uint32_t groups, blocks;
  // [groups + 1]: of each group, and the end of the last
  const uint32_t* first_layers;
  const LayerShape* layers;
  const uint32_t* first_tokens;  // [blocks]
  // [groups][blocks] where those of the chain lie in `known_sinks`; negative:
  // nowhere
  const int32_t* known;
  const uint8_t* known_sinks;
  const TokenSlot* slots;   // [blocks * kBlockTokens]
  const DevicePart* parts;  // [2 * layers]
  // [groups][blocks]: 0 none, 1 stored, 2 known, as in a section's flags
  uint8_t* sources;
};
absl::Status MatchSinks(const SinkParams& params, DType dtype,
                        cudaStream_t stream);

// A block's frame in the memory for frames: room for a header, then its
// sections, tightly.
struct PlaceParams {
  uint32_t groups, blocks;
  uint32_t header_bytes;
  uint64_t room_bytes;            // Of the memory for frames.
  const uint32_t* section_bytes;  // [groups][blocks]
  // [blocks]; kEncodeRoom where there is no room
  uint32_t* faults;
  // [blocks] where each begins, multiples of 16; blocks with a fault have none
  uint64_t* frames;
};
inline constexpr uint32_t kPlacedBlocksMax = 1024;  // A CTA.
absl::Status PlaceFrames(const PlaceParams& params, cudaStream_t stream);

struct CopyParams {
  PlaceParams placed;
  const uint8_t* sections;          // Where sections lie now.
  const uint64_t* section_offsets;  // [groups][blocks]
  // The memory for frames, aligned to 16 bytes; may be pinned host memory.
  uint8_t* room;
};
absl::Status CopySections(const CopyParams& params, cudaStream_t stream);

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_ENCODE_STEPS_H_
