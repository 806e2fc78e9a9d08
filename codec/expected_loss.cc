#include "codec/expected_loss.h"

#include <algorithm>
#include <cmath>

#include "codec/latent_model.h"
#include "codec/sinks.h"
#include "kernels/entropy.h"
#include "kernels/pages.h"

namespace latentkv {
namespace {

// Of kinds of text that a basis knows and does not (docs/performance.md,
// "Expected loss").
constexpr double kPower = 1.5;
// Beyond, nothing was measured.
constexpr double kSurpriseMax = 4;

double EntropyBits(const EntropyTable& table) {
  double bits = 0;
  for (const uint32_t frequency : table.frequency) {
    if (frequency == 0) continue;
    const double share = static_cast<double>(frequency) / kProbabilityOne;
    bits -= share * std::log2(share);
  }
  return bits;
}

}  // namespace

ExpectedLoss::ExpectedLoss(const Basis& basis, const LatentTables& tables)
    : basis_(basis) {
  for (uint32_t c = 0; c < kLatentClasses; ++c)
    class_bits_[c] = EntropyBits(tables.tables[c]);
  for (const BasisGroup& group : basis.groups()) {
    shapes_.push_back(
        {RawBytes(basis.geometry(), group.first_layer, group.last_layer, 1),
         SinkBytes(basis.geometry(), group.first_layer, group.last_layer)});
  }
}

double ExpectedLoss::Surprise(float step, uint32_t first_token,
                              absl::Span<const ByteSpan> sections) const {
  double expected = 0, actual = 0;
  for (size_t g = 0; g < sections.size(); ++g) {
    SectionShape shape = shapes_[g];
    if (first_token != 0) shape.sink_bytes = 0;
    const CodedSize coded = CodedSizeOf(shape, sections[g]);
    double token_bits = 0;
    const std::vector<float>& scales = basis_.groups()[g].latent_scale;
    const uint32_t live = LiveRank(scales, step);
    for (uint32_t r = 0; r < live; ++r)
      token_bits += class_bits_[LatentClass(scales[r], step)];
    expected += token_bits * coded.tokens;
    actual += 8.0 * coded.bytes;
  }
  if (!(expected > 0)) return 1;
  return std::pow(std::clamp(actual / expected, 1 / kSurpriseMax, kSurpriseMax),
                  kPower);
}

}  // namespace latentkv
