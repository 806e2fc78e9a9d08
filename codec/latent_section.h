// One group of a block in a basis, as bytes: what a section of a basis frame
// holds (docs/formats/payload.md).
#ifndef LATENTKV_CODEC_LATENT_SECTION_H_
#define LATENTKV_CODEC_LATENT_SECTION_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "codec/basis.h"
#include "core/bytes.h"
#include "kernels/latent_entropy.h"

namespace latentkv {

// A token is stored exactly, not as latents, where a latent is above
// kLatentMagnitudeMax or the magnitudes of its own and inherited ones sum to
// kLatentSumMax: below, every partial sum of the restore's product is a whole
// number that a float holds.
inline constexpr int32_t kLatentMagnitudeMax = 256;
inline constexpr int32_t kLatentSumMax = (1 << 24) / 127;

// Where the first kSinkTokens tokens of a chain come from.
enum class SinkSource : uint8_t { kNone = 0, kStored = 1, kBasis = 2 };

struct LatentSection {
  bool predicted = false;  // From features and inherited latents.
  SinkSource sink_source = SinkSource::kNone;
  // [kBlockTokens][rank of the group]; 0 for exact tokens and sinks.
  std::vector<int16_t> latents;
  std::vector<uint8_t> exact_tokens;  // Ascending.
  // Of each: the group's layers in order, K then V, as the engine holds them.
  Bytes exact_values;
  // Of kStored: as WriteSinks of codec/sinks.h.
  Bytes sinks;
};

// Sizes that a section's content follows from.
struct SectionShape {
  size_t exact_token_bytes = 0;
  size_t sink_bytes = 0;  // Above 0 in a chain's first block alone.
};

// The bytes of a section at `step`.
absl::StatusOr<Bytes> WriteLatentSection(const BasisGroup& group,
                                         const LatentTables& tables, float step,
                                         const LatentSection& section);

// DataLoss unless `payload` holds one section of that shape and nothing else.
absl::StatusOr<LatentSection> ReadLatentSection(const BasisGroup& group,
                                                const LatentTables& tables,
                                                float step,
                                                const SectionShape& shape,
                                                ByteSpan payload);

// What of a section is latents.
struct CodedSize {
  uint32_t tokens = 0;  // That have some: neither sinks nor exact.
  // Coded, beyond those that every stream begins with; without escapes, which
  // no model foresees.
  uint64_t bytes = 0;
};
// Of a section that was just written: it is not checked.
CodedSize CodedSizeOf(const SectionShape& shape, ByteSpan payload);

// Whether one token's latents, own and inherited, keep the two bounds above.
bool LatentsInBounds(absl::Span<const int16_t> latents);

}  // namespace latentkv

#endif  // LATENTKV_CODEC_LATENT_SECTION_H_
