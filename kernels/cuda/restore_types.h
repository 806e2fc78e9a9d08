// What the kernels of a restore read and write, as plain structs in device
// memory. A restore works on blocks of kBlockTokens tokens; what it keeps of
// several groups is [groups][blocks]. docs/formats/payload.md says what
// sections hold, kernels/cuda/README.md how the kernels follow one another.
#ifndef LATENTKV_KERNELS_CUDA_RESTORE_TYPES_H_
#define LATENTKV_KERNELS_CUDA_RESTORE_TYPES_H_

#include <cstdint>

#include "core/limits.h"
#include "kernels/cuda/pages_cuda.h"

namespace latentkv::cuda {

// Latents and features are int8 in rows of whole tiles of this many: what one
// step of the product reads.
inline constexpr uint32_t kRankTile = 128;
// A group's own latents: a basis above it is restored on the CPU. Twice the
// rank that 8192 channels have.
inline constexpr uint32_t kRankTilesMax = 32;
inline constexpr uint16_t kNoRest = 0xffff;  // A tile without a rest.
inline constexpr uint16_t kZeroRest = 0;     // A tile of rests that are all 0.
// Layers of one group: twice the deepest group that kChannelsMax of
// core/limits.h has heads of 128 for.
inline constexpr uint32_t kGroupLayersMax = 128;
// Channels of one tile of the product, in chunks of 8: half of them turn with
// the other half.
inline constexpr uint32_t kTileChannels = 128, kChunkChannels = 8,
                          kChunks = kTileChannels / kChunkChannels;
inline constexpr uint32_t kActivityThresholds = 16;

// Why a section is refused; 0 is none. docs/formats/payload.md and entropy.md
// name the rules.
enum SectionFault : uint32_t {
  kFaultNone = 0,
  kFaultMissing = 1,  // Never given.
  kFaultChecksum = 2,
  kFaultHeader = 3,  // Its first bytes are out of bounds, or it ends early.
  kFaultStream = 4,  // The entropy-coded bytes are not those of any symbols.
  kFaultEscapes = 5,
  // A latent, or a token's sum, is out of bounds, or stands where values are
  // stored.
  kFaultBounds = 6,
  // It takes its sinks from a basis that does not know them.
  kFaultSinks = 7,
  // Sound, but the scratch has no room for so many large latents: restore it on
  // the CPU.
  kFaultRests = 8,
};

// Latents of one group at one step: the class of every row, and
// thresholds[k][i] of the activities behind row 16 k + 15.
struct StepModel {
  // [rank], readable up to a multiple of 16 that is not 0
  const uint8_t* classes;
  const uint32_t* thresholds;  // [rank / 16][kActivityThresholds]
};

// A section as it was received.
struct SectionSource {
  // Aligned to 16 bytes, and readable up to a multiple of 16; null: missing.
  const uint8_t* payload = nullptr;
  uint32_t bytes = 0;
  uint32_t crc32c = 0;
  float step = 0;
  // Bytes from which on `KnownSinks` holds those of this section, plus 1; 0:
  // none.
  uint32_t known_sinks = 0;
  StepModel model = {};
};

// What decoding found out of it.
struct SectionState {
  uint32_t fault;
  uint32_t exact_count;
  uint32_t rank_tiles;  // Tiles of own latents that are not all 0.
  uint8_t predicted;
  uint8_t sinks;  // 1 stored, 2 known, as in the section's flags.
  uint8_t rests;  // Whether any tile has a rest.
  uint8_t reserved;
  float step;
};

// K or V of a layer in the engine's memory; strides in bytes.
struct DevicePart {
  uint8_t* base;
  int64_t page, token, head, dim;
};

// Cosines and sines, [positions][pairs].
struct DeviceRotary {
  const float* cosine;
  const float* sine;
  uint32_t pairs;
  // What a turn and its inverse are to be multiplied by: 1 / the square of the
  // layer's scale.
  float undo;
};

enum Turn : uint32_t { kTurnNone = 0, kTurnHalves = 1, kTurnNeighbours = 2 };

// Where kChunkChannels neighbouring channels of a tile belong.
struct ChunkTarget {
  int32_t part;  // 2 * layer, plus 1 for values; negative: nowhere.
  uint16_t head, dim;
  uint32_t pair;  // Of the first channel, in the rotary table.
};

// Channels of one tile. With kTurnHalves chunk i holds the first and chunk i +
// 8 the second of its pairs.
struct alignas(16) ProductTile {
  ChunkTarget chunks[kChunks];
  uint32_t turn;
  uint32_t rotary;  // Index of the table.
};

// What the product does with a block.
struct alignas(16) BlockPlan {
  uint32_t own_tiles;
  uint32_t flags;
  float step;
  uint32_t first_token;
};
enum PlanFlags : uint32_t {
  kPlanValid = 1,
  kPlanPredicted = 2,
  kPlanRests = 4,  // Of own or inherited latents.
};

}  // namespace latentkv::cuda

#endif  // LATENTKV_KERNELS_CUDA_RESTORE_TYPES_H_
