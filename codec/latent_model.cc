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

// exp(-1 / b) for b = 2^12, 2^12.25, 2^12.5, 2^12.75, times 2^62, to nearest.
// Squaring halves b.
constexpr uint64_t kLargestDecays[4] = {0x3ffc001fff555800, 0x3ffca302ad0d92bf,
                                        0x3ffd2bfc32f3c235, 0x3ffd9f2b8ee51bde};
constexpr int kLargestExponent = 12;

// A mean magnitude of 2^-2: one token in seven has such a latent at all. On
// SmolLM2 cutting here instead of at 2^-2.5 stores 1 % less at equal divergence
// and takes a seventh of the rank away; 2^-3.5 stores 4 % more, 2^-1.5 costs
// recall.
constexpr uint32_t kLiveClass = 16;

uint64_t Multiply(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(Wide{a} * b >> kFractionBits);
}

// exp(-1 / b) for b = 2^(kLowestExponent + quarters / 4), quarters not
// negative.
uint64_t Decay(uint32_t quarters) {
  uint64_t decay = kLargestDecays[quarters % 4];
  const int exponent = kLowestExponent + static_cast<int>(quarters / 4);
  for (int e = kLargestExponent; e > exponent; --e)
    decay = Multiply(decay, decay);
  return decay;
}

void MakeClass(uint32_t latent_class, LatentTables* tables) {
  const uint64_t decay = Decay(latent_class);
  // exp(-0.5 / b): what rounds away from 0.
  uint64_t tail = Decay(latent_class + 4);
  // The mean of the rounded magnitudes, up to what an escape counts as.
  const uint64_t mean =
      static_cast<uint64_t>((Wide{tail} << kActivityBits) / (kOne - decay));
  tables->expected[latent_class] =
      std::min<uint64_t>(mean, uint64_t{kMagnitudeMax + 1} << kActivityBits);
  std::array<uint64_t, 256> counts{};
  counts[0] = kOne - tail;
  // A symbol takes at least one part of kProbabilityOne: worth it for what is
  // at least half as frequent.
  constexpr uint64_t kRarest = kOne / (2 * kProbabilityOne);
  uint32_t magnitude = 0;
  for (; magnitude < kMagnitudeMax; ++magnitude) {
    const uint64_t next = Multiply(tail, decay), each = (tail - next) / 2;
    if (each < kRarest) break;
    counts[2 * magnitude + 1] = counts[2 * magnitude + 2] = each;
    tail = next;
  }
  counts[kEscapeSymbol] = std::max<uint64_t>(1, tail);
  tables->magnitude_max[latent_class] = static_cast<uint8_t>(magnitude);
  tables->tables.push_back(*MakeEntropyTable(NormalizeCounts(counts)));
}

}  // namespace

uint32_t LatentClass(float scale, float step) {
  // 2^(1/8) rounds to the nearest quarter; everything else is exact, so that
  // all machines agree.
  const float ratio = scale / step * 1.0905077f;
  if (!(ratio >= 0x1p-6f)) return 0;
  if (ratio >= 0x1p10f) return kLatentClasses - 1;
  uint32_t bits;
  std::memcpy(&bits, &ratio, sizeof(bits));
  const int exponent = static_cast<int>(bits >> 23) - 127;
  const uint32_t fraction = bits & 0x7fffff;
  // 2^(1/4), 2^(1/2) and 2^(3/4).
  const int quarter =
      (fraction >= 0x1837f0) + (fraction >= 0x3504f3) + (fraction >= 0x5744fd);
  return std::min<uint32_t>(kLatentClasses - 1,
                            4 * (exponent - kLowestExponent) + quarter);
}

uint32_t LiveRank(absl::Span<const float> scales, float step) {
  const auto dead = std::partition_point(
      scales.begin(), scales.end(),
      [&](float scale) { return LatentClass(scale, step) >= kLiveClass; });
  return dead - scales.begin();
}

LatentTables MakeLatentTables() {
  LatentTables tables;
  tables.tables.reserve(kLatentClasses);
  for (uint32_t c = 0; c < kLatentClasses; ++c) MakeClass(c, &tables);
  tables.slots.resize(kLatentClasses * kProbabilityOne);
  for (uint32_t c = 0; c < kLatentClasses; ++c) {
    const EntropyTable& table = tables.tables[c];
    MakeSlots(table, tables.slots.data() + c * kProbabilityOne);
    for (size_t s = 0; s < 256; ++s)
      tables.ranges.push_back(table.frequency[s] | uint32_t{table.start[s]}
                                                       << 16);
  }
  return tables;
}

}  // namespace latentkv
