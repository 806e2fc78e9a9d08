// Entropy coding of latents: rows of one latent each, in descending scale,
// under one distribution a class of scale, shifted for each token by how active
// its latents have been so far. docs/formats/entropy.md says how to decode.
#ifndef LATENTKV_KERNELS_LATENT_ENTROPY_H_
#define LATENTKV_KERNELS_LATENT_ENTROPY_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/bytes.h"
#include "core/limits.h"
#include "kernels/backend.h"
#include "kernels/entropy.h"

namespace latentkv {

// Quarters of an octave of scale over step.
inline constexpr uint32_t kLatentClasses = 64;
// Rows between two looks at a token's activity.
inline constexpr uint32_t kContextRows = 16;
// Quarters of an octave that activity moves a class, either way.
inline constexpr uint32_t kClassShiftMax = 8;
// Fractional bits of activities.
inline constexpr uint32_t kActivityBits = 8;

// One distribution a class; its symbols are those of kernels/latents.h.
struct LatentTables {
  std::vector<EntropyTable> tables;  // [kLatentClasses]
  // [kLatentClasses][256], frequency | start << 16
  std::vector<uint32_t> ranges;
  // [kLatentClasses][kProbabilityOne], of MakeSlots
  std::vector<uint32_t> slots;
  // Mean magnitude, times 2^kActivityBits.
  std::array<uint32_t, kLatentClasses> expected{};
  // Larger magnitudes escape.
  std::array<uint8_t, kLatentClasses> magnitude_max{};
};

// A latent whose symbol is kEscapeSymbol: its place in [rows][kBlockTokens] and
// what it is.
struct LatentEscape {
  uint32_t place = 0;
  int16_t latent = 0;
};

struct CodedLatents {
  Bytes bytes;
  std::vector<LatentEscape> escapes;  // By rising place.
};

// Codes `latents` [rows][kBlockTokens]. InvalidArgument unless there are
// kBlockTokens latents for each class. `backend` must be available.
absl::StatusOr<CodedLatents> EncodeLatents(
    const LatentTables& tables, absl::Span<const uint8_t> class_of_row,
    absl::Span<const int16_t> latents, Backend backend = BestBackend());

// Symbols [rows][kBlockTokens] as kernels/latents.h has them. DataLoss unless
// `coded` is exactly what EncodeLatents wrote for some symbols; InvalidArgument
// if sizes do not fit. `symbols` may be written on failure. Never reads outside
// `coded`. `backend` must be available.
absl::Status DecodeLatents(const LatentTables& tables,
                           absl::Span<const uint8_t> class_of_row,
                           ByteSpan coded, absl::Span<uint8_t> symbols,
                           Backend backend = BestBackend());

}  // namespace latentkv

#endif  // LATENTKV_KERNELS_LATENT_ENTROPY_H_
