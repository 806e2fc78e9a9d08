// The small kernels around a restore's product: features of tokens, bounds
// across groups, and values that are stored.
#ifndef LATENTKV_KERNELS_CUDA_RESTORE_STEPS_H_
#define LATENTKV_KERNELS_CUDA_RESTORE_STEPS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "core/geometry.h"
#include "kernels/cuda/restore_types.h"
#include "kernels/heads.h"

namespace latentkv::cuda {

// Before a chain's first: it has no features.
inline constexpr uint32_t kNoToken = ~0u;

struct FeatureParams {
  const int8_t* embedding;  // [vocabulary][dims]
  uint32_t vocabulary, dims, history;
  // [blocks][history - 1 + kBlockTokens], the last kBlockTokens are the block's
  const uint32_t* tokens;
  uint32_t blocks;
  // [blocks * kBlockTokens][stride]: history * dims features, then zeros
  int8_t* features;
  uint32_t stride;  // A multiple of kRankTile.
};
absl::Status MakeFeatures(const FeatureParams& params, cudaStream_t stream);

struct VerifyParams {
  uint32_t group, blocks;
  const SectionSource* sources;    // [groups][blocks]
  SectionState* states;            // [groups][blocks]
  const uint32_t* first_tokens;    // [blocks]
  const uint32_t* own_sums;        // [groups][blocks][kBlockTokens]
  const uint32_t* inherited_sums;  // the same
  // [blocks][kBlockTokens] of the groups before, whatever it is for group 0
  uint32_t* inherited_totals;
  // [blocks], lowered to `group` where the section is not sound
  uint32_t* first_faults;
  BlockPlan* plans;  // [blocks] of this group
};
// Groups in order: checks what of a section needs the ones before, and plans
// the product.
absl::Status VerifySections(const VerifyParams& params, cudaStream_t stream);

struct LayerShape {
  uint32_t kv_heads;
  uint32_t dims[2];  // Of a head of K, and of V: as parts are.
  HeadRange held;    // In the pages.
};
struct StoredParams {
  uint32_t group, blocks;
  uint32_t first_layer, last_layer;
  const LayerShape* layers;      // Of all layers.
  const SectionSource* sources;  // [groups][blocks]
  const SectionState* states;    // [groups][blocks]
  const uint32_t* first_faults;  // [blocks]
  const TokenSlot* slots;        // [blocks * kBlockTokens]
  const DevicePart* parts;       // [2 * layers]
  const uint8_t* known_sinks;
};
// Writes sinks and exact tokens of a group over what its product left there.
absl::Status WriteStored(const StoredParams& params, DType dtype,
                         cudaStream_t stream);

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_RESTORE_STEPS_H_
