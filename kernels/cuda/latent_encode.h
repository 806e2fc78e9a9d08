// Quantized latents to sections on the device: contexts, entropy coding and
// everything before it, a warp a section.
#ifndef LATENTKV_KERNELS_CUDA_LATENT_ENCODE_H_
#define LATENTKV_KERNELS_CUDA_LATENT_ENCODE_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "core/geometry.h"
#include "kernels/cuda/latent_decode.h"
#include "kernels/cuda/restore_steps.h"
#include "kernels/cuda/restore_types.h"

namespace latentkv::cuda {

// Per group.
struct CodingGroup {
  uint32_t first_layer, last_layer;
  uint32_t live;  // Latents that are coded.
  // Of latent 0 in a row of `latents`, a multiple of kRankTile.
  uint32_t column;
  uint32_t exact_token_bytes;
  uint32_t sink_bytes;
  StepModel model;
  // Where the group's begin: [blocks][live / 16 up][kBlockTokens] bytes.
  uint64_t shifts;
  // Where the group's begin: [blocks][section_room] bytes.
  uint64_t sections;
  uint64_t section_room;  // A multiple of 16.
};

struct CodingParams {
  uint32_t groups, blocks;
  const CodingGroup* group;      // [groups]
  const uint32_t* ranges;        // [kLatentClasses][256] (DecodeTables)
  const uint8_t* magnitude_max;  // [kLatentClasses]
  const int8_t* latents;         // [blocks * kBlockTokens][latent_stride]
  uint64_t latent_stride;
  const uint16_t* rest_tiles;  // [groups][blocks][kRankTilesMax]
  const int8_t* rests;
  const unsigned long long* exact;  // [groups][blocks]
  const uint8_t* predicted;         // [groups][blocks]
  const uint8_t* sinks;             // [groups][blocks] (SinkParams::sources)
  const LayerShape* layers;
  const TokenSlot* slots;   // [blocks * kBlockTokens]
  const DevicePart* parts;  // [2 * layers]
  uint8_t* shifts;
  uint8_t* sections;
  // [blocks]; kEncodeRoom for a section beyond its room
  uint32_t* faults;
  uint32_t* section_bytes;    // [groups][blocks]
  uint64_t* section_offsets;  // [groups][blocks] from `sections` on
};

// Bytes of room that a section of `live` latents is given: a byte a latent,
// twice what the finest profiles take, eight exact tokens, and what else comes
// before them. A section beyond it is left to the CPU.
uint64_t SectionRoom(uint32_t live, uint32_t exact_token_bytes,
                     uint32_t sink_bytes);

absl::Status CodeSections(const CodingParams& params, DType dtype,
                          uint32_t multiprocessors, cudaStream_t stream);

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_LATENT_ENCODE_H_
