// How active each token's latents have been, and what that does to their
// classes: docs/formats/entropy.md.
#ifndef LATENTKV_KERNELS_CPU_LATENT_CONTEXT_H_
#define LATENTKV_KERNELS_CPU_LATENT_CONTEXT_H_

#include <algorithm>
#include <array>
#include <cstdint>

#include "core/limits.h"
#include "kernels/latent_entropy.h"

namespace latentkv::kernels {

// Unnamed: each backend compiles this for its own instruction set, and the
// linker must not merge them.
namespace {

// What the classes lead one to expect of a token; the same for all tokens.
class ExpectedActivity {
 public:
  // A look forgets an eighth.
  static constexpr uint32_t kDecayBits = 3;
  // Added on both sides of the comparison.
  static constexpr uint32_t kPrior = 4u << kActivityBits;

  // A token whose activity plus kPrior is at least k of these is k -
  // kClassShiftMax quarters of an octave above what is expected. Each is below
  // 2^32: activities are below 2^23.
  std::array<uint32_t, 2 * kClassShiftMax> Thresholds() const {
    // 2^16 * 2^((k - 7.5) / 4), k = 0 to 15, to nearest.
    constexpr std::array<uint32_t, 2 * kClassShiftMax> kFactors = {
        17867, 21247, 25268,  30048,  35734,  42495,  50535,  60097,
        71468, 84990, 101070, 120194, 142935, 169979, 202141, 240387};
    std::array<uint32_t, 2 * kClassShiftMax> thresholds;
    for (size_t k = 0; k < kFactors.size(); ++k) {
      thresholds[k] = static_cast<uint32_t>(
          ((activity_ + kPrior) * kFactors[k] + 0xffff) >> 16);
    }
    return thresholds;
  }

  // Behind the rows [first, first + kContextRows) or up to the last.
  void Look(const LatentTables& tables, absl::Span<const uint8_t> class_of_row,
            size_t first) {
    activity_ -= activity_ >> kDecayBits;
    const size_t last =
        std::min<size_t>(first + kContextRows, class_of_row.size());
    for (size_t r = first; r < last; ++r)
      activity_ += tables.expected[class_of_row[r]];
  }

 private:
  uint64_t activity_ = 0;
};

// One context a token, in plain integers: what the encoder and the portable
// decoder use. What it is given outlives it.
class LatentContext {
 public:
  LatentContext(const LatentTables& tables,
                absl::Span<const uint8_t> class_of_row)
      : tables_(tables), class_of_row_(class_of_row) {}

  // The class of row `row` at token `token`.
  uint32_t Class(size_t row, uint32_t token) const {
    const int shifted = class_of_row_[row] + shifts_[token];
    return std::clamp<int>(shifted, 0, kLatentClasses - 1);
  }
  void Add(uint32_t token, uint8_t symbol) {
    magnitudes_[token] += (symbol + 1u) >> 1;
  }
  // Call after each row.
  void EndRow(size_t row) {
    if (row % kContextRows != kContextRows - 1) return;
    expected_.Look(tables_, class_of_row_, row + 1 - kContextRows);
    const auto thresholds = expected_.Thresholds();
    for (uint32_t t = 0; t < kBlockTokens; ++t) {
      activities_[t] += (magnitudes_[t] << kActivityBits) -
                        (activities_[t] >> ExpectedActivity::kDecayBits);
      magnitudes_[t] = 0;
      const uint32_t activity = activities_[t] + ExpectedActivity::kPrior;
      shifts_[t] = -static_cast<int>(kClassShiftMax);
      for (uint32_t threshold : thresholds) shifts_[t] += activity >= threshold;
    }
  }

 private:
  const LatentTables& tables_;
  const absl::Span<const uint8_t> class_of_row_;
  ExpectedActivity expected_;
  std::array<uint32_t, kBlockTokens> activities_{}, magnitudes_{};
  std::array<int, kBlockTokens> shifts_{};
};

}  // namespace

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_LATENT_CONTEXT_H_
