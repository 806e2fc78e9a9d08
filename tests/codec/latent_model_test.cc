#include "codec/latent_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/bytes.h"
#include "core/digest.h"
#include "kernels/latents.h"
#include "tests/codec/synthetic.h"

namespace latentkv {
namespace {

double MagnitudeOf(uint32_t latent_class) {
  return std::exp2(latent_class / 4.0 - 6);
}

TEST(LatentClass, IsTheNearestQuarterOfAnOctave) {
  for (uint32_t c = 0; c < kLatentClasses; ++c) {
    EXPECT_EQ(LatentClass(static_cast<float>(MagnitudeOf(c)), 1), c);
    EXPECT_EQ(LatentClass(static_cast<float>(3 * MagnitudeOf(c)), 3), c);
    EXPECT_EQ(
        LatentClass(static_cast<float>(MagnitudeOf(c) * std::exp2(-0.12)), 1),
        c);
    EXPECT_EQ(
        LatentClass(static_cast<float>(MagnitudeOf(c) * std::exp2(0.12)), 1),
        c);
  }
}

TEST(LatentClass, IsClampedAtBothEnds) {
  const float infinity = std::numeric_limits<float>::infinity(),
              least = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(LatentClass(0, 1), 0u);
  EXPECT_EQ(LatentClass(least, 1), 0u);
  EXPECT_EQ(LatentClass(1, infinity), 0u);
  EXPECT_EQ(LatentClass(0, least), 0u);
  EXPECT_EQ(LatentClass(1e38f, 1), kLatentClasses - 1);
  EXPECT_EQ(LatentClass(1, least), kLatentClasses - 1);
}

TEST(LiveRank, CountsTheLatentsWhoseMeanMagnitudeIsWorthCoding) {
  // Class 16 is a mean magnitude of 2^-2 = 0.25 steps.
  const std::vector<float> scales = {8, 2, 1, 0.26f, 0.2f, 0};
  EXPECT_EQ(LiveRank(scales, 1), 4u);
  EXPECT_EQ(LiveRank(scales, 2), 3u);
  EXPECT_EQ(LiveRank(scales, 1000), 0u);
  EXPECT_EQ(LiveRank(scales, 1e-6f), 5u);
  EXPECT_EQ(LiveRank({}, 1), 0u);
}

TEST(LatentTables, AreLaplaceDistributionsOfTheirMeanMagnitude) {
  const LatentTables tables = MakeLatentTables();
  ASSERT_EQ(tables.tables.size(), kLatentClasses);
  for (uint32_t c = 0; c < kLatentClasses; ++c) {
    const double b = MagnitudeOf(c);
    const EntropyTable& table = tables.tables[c];
    const double zero = 1 - std::exp(-0.5 / b),
                 one = 0.5 * (std::exp(-0.5 / b) - std::exp(-1.5 / b));
    EXPECT_NEAR(table.frequency[0] / 4096.0, zero, 0.02 * zero + 2.0 / 4096)
        << c;
    if (tables.magnitude_max[c] > 0) {
      EXPECT_NEAR(table.frequency[1] / 4096.0, one, 0.1 * one + 2.0 / 4096)
          << c;
      EXPECT_NEAR(table.frequency[2], table.frequency[1], 1) << c;
    }
    EXPECT_GT(table.frequency[kEscapeSymbol], 0) << c;
    // What has no symbol escapes; what has one can be coded.
    for (uint32_t symbol = 0; symbol < kEscapeSymbol; ++symbol) {
      EXPECT_EQ(table.frequency[symbol] > 0,
                symbol <= 2u * tables.magnitude_max[c])
          << c << " " << symbol;
    }
    const double mean = std::exp(-0.5 / b) / (1 - std::exp(-1 / b));
    EXPECT_NEAR(tables.expected[c] / 256.0, std::min(mean, 128.0), 1 / 256.0)
        << c;
  }
}

// Every machine must make the same, or it reads other latents:
// docs/formats/entropy.md.
TEST(LatentTables, AreTheGoldenOnes) {
  const LatentTables tables = MakeLatentTables();
  Bytes bytes;
  ByteWriter writer(&bytes);
  for (uint32_t c = 0; c < kLatentClasses; ++c) {
    for (uint16_t frequency : tables.tables[c].frequency) writer.Put(frequency);
    writer.Put(tables.expected[c]);
    writer.Put(tables.magnitude_max[c]);
  }
  EXPECT_EQ(Sha256({bytes}).Hex(),
            "35cca647af4e8d0f75554aa7267c4836d86abeffbb85514494a5d095fc6a32fc");
}

}  // namespace
}  // namespace latentkv
