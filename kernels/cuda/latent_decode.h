// Sections to latents on the device: checksum, first bytes, entropy decoding,
// escapes and bounds, a warp a section.
#ifndef LATENTKV_KERNELS_CUDA_LATENT_DECODE_H_
#define LATENTKV_KERNELS_CUDA_LATENT_DECODE_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/decode_image.h"
#include "kernels/cuda/restore_types.h"

namespace latentkv::cuda {

// Per group, what its sections are read with; all arrays are in device memory.
struct DecodeGroup {
  uint32_t rank;  // Own latents, at most kRankTilesMax tiles.
  // Of latent 0 in a row of `latents`, a multiple of kRankTile.
  uint32_t column;
  uint32_t
      exact_token_bytes;  // Of a token's values in all layers of the group.
  uint32_t sink_bytes;
};

// Of all classes, as kernels/latent_entropy.h has them, for those that the
// image does not have.
struct DecodeTables {
  const DecodeImage* image;
  const uint8_t* symbols;  // [kLatentClasses][kProbabilityOne]
  const uint32_t* ranges;  // [kLatentClasses][256], frequency | start << 16
};

struct DecodeParams {
  DecodeTables tables;
  const DecodeGroup* groups;     // [groups]
  const SectionSource* sources;  // [groups][blocks]
  const uint32_t* first_tokens;  // [blocks]
  SectionState* states;          // [groups][blocks]
  // [blocks * kBlockTokens][latent_stride], q or what a rest leaves of it
  int8_t* latents;
  uint64_t latent_stride;
  // [groups][blocks][kBlockTokens] of magnitudes; bit 31: one is above the
  // bound
  uint32_t* own_sums;
  // the same of the first `inherited_rank` latents
  uint32_t* inherited_sums;
  // [groups][blocks][kRankTilesMax], kNoRest or an index above kZeroRest into
  // `rests`
  uint16_t* rest_tiles;
  // [rests_max][kBlockTokens][kRankTile]: latents are 2 * rest + what is in
  // `latents`
  int8_t* rests;
  // Used so far: before the first decoding of a restore kZeroRest's alone
  uint32_t* rest_count;
  uint32_t rests_max;  // below kNoRest
  uint32_t blocks;
  uint32_t first_group, last_group;  // Decoded now.
  uint32_t inherited_rank;
  // Unless null, the sections' bytes are still there, in pinned memory that the
  // device can read, and are brought to `payload` while they are decoded: what
  // of them is at a place in one is to come to the same place in the other.
  const uint8_t* pinned;
  uint8_t* payload;
};

// Decodes sections [first_group, last_group) of all blocks. A section with a
// fault has rank_tiles 0 and its state says why. Columns of latents that are
// inherited are always written, others up to the tile of the last row.
absl::Status DecodeSections(const DecodeParams& params,
                            uint32_t multiprocessors, cudaStream_t stream);

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_LATENT_DECODE_H_
