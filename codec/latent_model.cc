#include "codec/latent_model.h"

#include <algorithm>
#include <cstring>

#include "kernels/latents.h"

namespace latentkv {
namespace {

__extension__ typedef unsigned __int128 Wide;

constexpr int kFractionBits = 62;
constexpr uint64_t kOne = uint64_t{1} << kFractionBits;
constexpr int kLowestExponent = -6;  // Class 0 is a ratio of 2^-6.

// exp(-1 / b) for b = 2^12, 2^12.25, 2^12.5, 2^12.75, times 2^62, to nearest. Squaring halves b.
constexpr uint64_t kLargestDecays[4] = {0x3ffc001fff555800, 0x3ffca302ad0d92bf, 0x3ffd2bfc32f3c235,
                                        0x3ffd9f2b8ee51bde};
constexpr int kLargestExponent = 12;

// Latents of one scale are Laplace with a few far out: offsets of the two scales in quarter octaves and their weights
// of 64. On SmolLM2's latents (6 conversations) within a percent of the classes' own histograms; what is far out need not
// escape.
constexpr int kMixtureOffsets[] = {-1, 4};
constexpr uint64_t kMixtureWeights[] = {62, 2};

uint64_t Multiply(uint64_t a, uint64_t b) { return static_cast<uint64_t>(Wide{a} * b >> kFractionBits); }

// exp(-1 / b) for b = 2^(kLowestExponent + quarters / 4).
uint64_t Decay(int quarters) {
  const int quarter = ((quarters % 4) + 4) % 4;
  const int exponent = kLowestExponent + (quarters - quarter) / 4;
  uint64_t decay = kLargestDecays[quarter];
  for (int e = kLargestExponent; e > exponent; --e) decay = Multiply(decay, decay);
  return decay;
}

struct Distribution {
  std::array<uint64_t, kMagnitudeMax + 1> magnitude{};  // Of 2^62: 0, and each sign of 1, 2, ...
  uint64_t beyond = 0;                                  // Both signs of everything larger.
};

Distribution Mix(uint32_t latent_class) {
  Distribution mixed;
  for (size_t i = 0; i < std::size(kMixtureOffsets); ++i) {
    const int quarters = static_cast<int>(latent_class) + kMixtureOffsets[i];
    const uint64_t decay = Decay(quarters);
    uint64_t tail = Decay(quarters + 4);  // exp(-0.5 / b): what rounds away from 0.
    const auto part = [&](uint64_t share) { return share / 64 * kMixtureWeights[i]; };
    mixed.magnitude[0] += part(kOne - tail);
    for (uint32_t k = 1; k <= kMagnitudeMax; ++k) {
      const uint64_t next = Multiply(tail, decay);
      mixed.magnitude[k] += part((tail - next) / 2);
      tail = next;
    }
    mixed.beyond += part(tail);
  }
  return mixed;
}

}  // namespace

uint32_t LatentClass(float scale, float step) {
  // 2^(1/8) rounds to the nearest quarter; everything else is exact, so that all machines agree.
  const float ratio = scale / step * 1.0905077f;
  if (!(ratio >= 0x1p-6f)) return 0;
  if (ratio >= 0x1p10f) return kLatentClasses - 1;
  uint32_t bits;
  std::memcpy(&bits, &ratio, sizeof(bits));
  const int exponent = static_cast<int>(bits >> 23) - 127;
  const uint32_t fraction = bits & 0x7fffff;
  // 2^(1/4), 2^(1/2) and 2^(3/4).
  const int quarter = (fraction >= 0x1837f0) + (fraction >= 0x3504f3) + (fraction >= 0x5744fd);
  return std::min<uint32_t>(kLatentClasses - 1, 4 * (exponent - kLowestExponent) + quarter);
}

uint32_t LiveRank(absl::Span<const float> scales, float step) {
  constexpr uint32_t kLiveClass = 10;  // 2^-3.5
  const auto dead = std::partition_point(scales.begin(), scales.end(),
                                         [&](float scale) { return LatentClass(scale, step) >= kLiveClass; });
  return dead - scales.begin();
}

LatentModel::LatentModel() {
  tables_.reserve(kLatentClasses);
  for (uint32_t c = 0; c < kLatentClasses; ++c) {
    const Distribution mixed = Mix(c);
    // A symbol takes at least one part of kProbabilityOne: worth it for what is at least half as frequent.
    constexpr uint64_t kRarest = kOne / (2 * kProbabilityOne);
    uint32_t last = 0;
    while (last < kMagnitudeMax && mixed.magnitude[last + 1] >= kRarest) ++last;
    std::array<uint64_t, 256> counts{};
    counts[0] = mixed.magnitude[0];
    uint64_t beyond = mixed.beyond;
    for (uint32_t k = 1; k <= kMagnitudeMax; ++k) {
      if (k <= last) {
        counts[2 * k - 1] = counts[2 * k] = mixed.magnitude[k];
      } else {
        beyond += 2 * mixed.magnitude[k];
      }
    }
    counts[kEscapeSymbol] = std::max<uint64_t>(1, beyond);
    magnitude_max_[c] = last;
    tables_.push_back(*MakeEntropyTable(NormalizeCounts(counts)));
  }
  for (const EntropyTable& table : tables_) pointers_.push_back(&table);
}

}  // namespace latentkv
