// One group of a block in a basis, as bytes: what DecodeSection reads of a basis frame (docs/formats/payload.md).
#ifndef LATENTKV_CODEC_LATENT_SECTION_H_
#define LATENTKV_CODEC_LATENT_SECTION_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "codec/basis.h"
#include "codec/latent_model.h"
#include "core/bytes.h"
#include "core/limits.h"

namespace latentkv {

// A token is stored exactly, not as latents, where a latent is above kLatentMagnitudeMax or their magnitudes sum to
// kLatentSumMax: below, every partial sum of the restore's product is a whole number that a float holds.
inline constexpr int32_t kLatentMagnitudeMax = 256;
inline constexpr int32_t kLatentSumMax = (1 << 24) / 127;

// The content of a section. `latents` is [kBlockTokens][rank of the group]; those of tokens that are exact, and of the
// sinks, are 0.
struct LatentSection {
  std::vector<int16_t> latents;
  std::vector<uint8_t> exact_tokens;  // Ascending.
  Bytes exact_values;                 // Of each: the group's layers in order, K then V, as the engine holds them.
  Bytes sinks;                        // As WriteSinks in codec/sinks.h; empty but in a chain's first block.
};

// The bytes of a section at `step`. Latents behind the live rank must be 0.
absl::StatusOr<Bytes> WriteLatentSection(const BasisGroup& group, const LatentModel& model, float step,
                                         const LatentSection& section);

// DataLoss unless `payload` is what WriteLatentSection writes, with `exact_token_bytes` bytes for each exact token and
// `sink_bytes` bytes of sinks, and every token keeps the two bounds above.
absl::StatusOr<LatentSection> ReadLatentSection(const BasisGroup& group, const LatentModel& model, float step,
                                                size_t exact_token_bytes, size_t sink_bytes, ByteSpan payload);

// Whether a token's latents keep the two bounds.
bool LatentsInBounds(absl::Span<const int16_t> latents);

}  // namespace latentkv

#endif  // LATENTKV_CODEC_LATENT_SECTION_H_
